"""Every program in scripts/ starts in the way that its own examples show, and says what it is for."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHILDREN = {
    "scripts.bench.engine",
    "scripts.bench.peer",
    "scripts.bench.steps",
    "scripts.checkpoints.judge",
    "scripts.judges.measures",
    "scripts.judges.turns",
    "scripts.investigation.method_child",
    "scripts.probe",
    "scripts.reliability.daemon",
    "scripts.reliability.deaf",
    "scripts.reliability.far",
    "scripts.reliability.flood",
}
"""Programs that other programs start, and no person does."""
FILES = {"scripts.run", "scripts.test"}
"""Programs started as files, before anything is installed."""


def programs() -> dict[str, Path]:
    """Return each module of scripts/ and its folders that has a `main`, by its name."""
    found = {}
    for file in sorted((ROOT / "scripts").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__main__")] = file
    return found


PROGRAMS = programs()


def test_all_folders_are_looked_at() -> None:
    assert {"scripts.run", "scripts.fidelity", "scripts.bench.decode", "scripts.investigation.onnx_methods"} <= set(
        PROGRAMS
    )
    assert {"scripts.training.train_demo_model"} | CHILDREN | FILES <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_what_it_is_for_and_shows_its_own_command(name: str) -> None:
    text = ast.get_docstring(ast.parse(PROGRAMS[name].read_text(encoding="utf-8"))) or ""
    example = str(PROGRAMS[name].relative_to(ROOT)) if name in FILES else f"python -m {name}"
    assert text and (name in CHILDREN or example in text)


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - CHILDREN))
def test_help(name: str, tmp_path: Path) -> None:
    """A program starts from any folder, with the checkout on the path of modules."""
    command = [str(PROGRAMS[name])] if name in FILES else ["-m", name]
    elsewhere = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=elsewhere
    )
    assert done.returncode == 0, done.stderr
    first = (ast.get_docstring(ast.parse(PROGRAMS[name].read_text(encoding="utf-8"))) or "").splitlines()[0]
    assert first in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there nobody ignores Ctrl-C for what he starts")
def test_tests_that_are_started_in_the_background_have_their_signals(tmp_path: Path) -> None:
    """A shell without job control ignores Ctrl-C for what it starts there, nohup a hang-up, and that is inherited."""
    inner = tmp_path / "test_inner.py"
    inner.write_text(
        "import signal\n\n\ndef test_it():\n"
        "    assert signal.SIG_IGN not in map(signal.getsignal, (signal.SIGINT, signal.SIGHUP))\n"
    )
    pytest_words = ["-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        ["/bin/sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", sys.executable, *pytest_words, str(inner)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


APT = """#!/bin/sh
case "$*" in
*npm*) echo "E: Unable to correct problems"; exit 100 ;;
*) echo "$*" >>"$0.log" ;;
esac
"""


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="packages are installed by root alone")
def test_programs_that_one_test_wants_cost_that_test_alone(tmp_path: Path) -> None:
    """Where they cannot be installed the others are, and the checks go on."""
    (tmp_path / "apt-get").write_text(APT)
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "node").symlink_to("/bin/true")
    done = subprocess.run(
        [sys.executable, "-c", "import test; test.install_programs()"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    installed = (tmp_path / "apt-get.log").read_text()
    assert "xvfb openbox xdotool iproute2 g++ binutils" in installed and "nodejs" not in installed
    assert "g++-aarch64-linux-gnu qemu-user" in installed
    assert "E: Unable to correct problems" in done.stderr
    assert done.stderr.endswith("without npm (Debian's names) the tests that need them are skipped\n")


STAND_IN = """#!/bin/sh
echo "$* ${PYTHONDONTWRITEBYTECODE-}" >>"$0.log"
case "$*" in
*"pytest -n "*) echo "a test failed"; exit 1 ;;
*"pytest endless"*)
    trap 'sleep 0.5; echo "it is over" >>"$0.log"; exit 2' INT
    echo "begun"
    while :; do sleep 0.1; done ;;
*"ruff format"*) echo "would reformat"; exit 1 ;;
esac
"""
"""A Python that runs no check and no test; one of each fails, and another ends its own half a second after Ctrl-C."""


def gate(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start scripts/test.py with the stand-in for the Python of .venv."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    code = (
        "import ending, environment, pathlib, test\n"
        "environment.prepare = test.install_programs = lambda *_: None\n"
        f"environment.PYTHON = pathlib.Path({str(python)!r})\nending.run(test.main)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a POSIX program")
def test_all_checks_and_both_phases_of_the_tests_run_whatever_fails(tmp_path: Path) -> None:
    process = gate(tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.endswith("failed: ruff format, pytest, two tests at a time\n")
    assert "--- ruff format\nwould reformat\n--- ruff format: failed\n" in said
    ran = (tmp_path / "python.log").read_text().splitlines()
    assert sum("pytest" not in line for line in ran) == 6
    assert ran[6:] == ["-m pytest -n 2 --dist loadfile -m not alone ", "-m pytest -m alone "]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a POSIX program")
def test_tests_with_arguments_are_one_process_which_ctrl_c_lets_end(tmp_path: Path) -> None:
    """The tests have daemons and windows to end."""
    process = gate(tmp_path, "endless", "-x")
    assert process.stdout
    assert "begun\n" in iter(process.stdout.readline, "")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    ran = (tmp_path / "python.log").read_text().splitlines()
    assert [line for line in ran if "pytest" in line] == ["-m pytest endless -x "] and ran[-1] == "it is over"
