"""The checkout's own environment: interrupted at any moment, wanted by two commands at once, made by somebody else."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ("ending.py", "environment.py", "quiet.py", "system_packages.py", "torch_build.py")
PREPARE = "import environment; environment.prepare(environment.CLIENT); print('ready')"
DAEMON = "import environment; environment.prepare(environment.LIGHT); print('ready')"
DECLINING = "import environment; environment.prepare(environment.LIGHT, ziglang=False); print('ready')"
LIMIT_S = 60
STUBS = {
    "venv": """
import os, sys
from pathlib import Path
bin = Path(sys.argv[1]) / "bin"
bin.mkdir(parents=True)
(bin / "python").symlink_to(os.environ["PYTHON"])
with open(os.environ["STEPS"], "a") as steps:
    print("venv", file=steps)
if "REACHED" in os.environ:
    (bin / "half").touch()
    open(os.environ["REACHED"], "w").close()  # waits for the test to read it
    open(os.environ["GO_ON"]).close()  # waits for the test to open it
(bin / "activate").touch()
""",
    "pip": """
import os, sys
if "--version" in sys.argv:
    sys.exit()
with open(os.environ["STEPS"], "a") as steps:
    print("pip", "asked" if "--dry-run" in sys.argv else "--editable" in sys.argv, file=steps)
if "--dry-run" in sys.argv:
    print(os.environ["REPORT"])
""",
}
KERNELS = """
import os, sys
plan = "--plan" in sys.argv
with open(os.environ["STEPS"], "a") as steps:
    print("plan" if plan else "build", "--no-ziglang" in sys.argv, file=steps)
COMPILER = None
if COMPILER is None or (COMPILER == "ziglang" and "--no-ziglang" in sys.argv):
    sys.exit(3)
print("building with", COMPILER)
"""
"""Stand-ins that take no time: each notes that it was called."""
WRAPPER = """#!/bin/sh
echo "$PYTHONPATH" >> '{seen}'
PYTHONPATH='{stubs}' exec '{python}' "$@"
"""
"""The Python of the environment, which has the stand-ins; notes which packages it was to take before its own."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its stand-ins are POSIX programs")


class Checkout:
    """The scripts alone, in a folder whose name has a space and a letter that is not ASCII."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a chéckout"
        self.venv = self.root / ".venv"
        self.steps_file = folder / "steps"
        self.fifos = {"REACHED": folder / "reached", "GO_ON": folder / "go_on"}
        self.stubs = folder / "stubs"
        self.running: list[subprocess.Popen[str]] = []
        self.python = folder / "python"
        self.python.write_text(WRAPPER.format(stubs=self.stubs, python=sys.executable, seen=folder / "seen"))
        self.python.chmod(0o755)
        (self.root / "scripts").mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for name in ("requirements-client.txt", "requirements-server.txt", "pyproject.toml"):
            (self.root / name).touch()
        for fifo in self.fifos.values():
            os.mkfifo(fifo)
        for name, code in STUBS.items():
            self.stub(name, code)

    def stub(self, name: str, code: str) -> None:
        (self.stubs / name).mkdir(parents=True, exist_ok=True)
        (self.stubs / name / "__init__.py").touch()
        (self.stubs / name / "__main__.py").write_text(code, encoding="utf-8")

    def start(
        self, *, halting: bool = False, code: str = PREPARE, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        code = f"import sys; sys.executable = {str(self.python)!r}; {code}"
        env = os.environ | {"PYTHON": str(self.python), "STEPS": str(self.steps_file), "PYTHONIOENCODING": "utf-8"}
        env |= {name: str(fifo) for name, fifo in self.fifos.items() if halting}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.root / "scripts",
            env=env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def start_and_halt(self) -> subprocess.Popen[str]:
        """Start, and return in the middle of making .venv."""
        process = self.start(halting=True)
        self.fifos["REACHED"].read_bytes()
        return process

    def go_on(self) -> None:
        self.fifos["GO_ON"].write_bytes(b"")

    def prepare(self, code: str = PREPARE) -> tuple[int, str]:
        process = self.start(code=code)
        out, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode or out == "ready\n"
        return process.returncode, errors

    def wants_torch(self, monkeypatch: pytest.MonkeyPatch, report: Mapping[str, object]) -> None:
        """Make everything ready for the installation of it all; pip will say that it would take what `report` says."""
        monkeypatch.setenv("REPORT", json.dumps(report))
        self.make_by_hand()
        (self.root / "requirements.txt").write_text("numpy==1\ntorch==9.9\n")
        for name in ("http", "cluster", "report", "dev"):
            (self.root / f"requirements-{name}.txt").touch()

    def steps(self) -> list[str]:
        return self.steps_file.read_text().splitlines() if self.steps_file.exists() else []

    def make_by_hand(self) -> None:
        """Make an environment as somebody else does, with something in it that must be kept."""
        folder = self.venv / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(self.python)
        (folder / "activate").touch()
        (folder / "kept").touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    for process in made.running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_an_interrupted_environment_is_made_again(checkout: Checkout, number: signal.Signals) -> None:
    first = checkout.start_and_halt()
    os.killpg(first.pid, number)
    said = first.communicate(timeout=LIMIT_S)[1]
    assert first.returncode != 0 and ("interrupted; the next time" in said) is (number == signal.SIGINT)
    code, errors = checkout.prepare()
    assert code == 0, errors
    assert not (checkout.venv / "bin" / "half").exists(), "what the first one left"
    assert checkout.steps() == ["venv", "venv", "pip False", "pip True"]
    assert checkout.prepare() == (0, ""), "a third one has nothing to do, and says nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody says what runs from a folder")
def test_an_environment_that_is_used_is_not_cleared(checkout: Checkout) -> None:
    first = checkout.start_and_halt()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(LIMIT_S)
    started = [str(checkout.venv / "bin" / "python"), "-c", "input()"]
    user = subprocess.Popen(started, executable=sys.executable, stdin=subprocess.PIPE)
    try:
        code, errors = checkout.prepare(
            PREPARE.replace("import environment;", "import environment; environment.ENDING_S = 0;")
        )
        assert code == 1 and f"used by process {user.pid}; end that" in errors, errors
        assert (checkout.venv / "bin" / "half").exists()
        second = checkout.start()
        assert second.stderr and f"process {user.pid} still runs from" in second.stderr.readline()
        user.communicate(b"\n", timeout=LIMIT_S)
        assert second.communicate(timeout=LIMIT_S)[0] == "ready\n"
    finally:
        user.kill()
        user.wait(LIMIT_S)


def test_a_second_command_waits_and_says_for_whom(checkout: Checkout) -> None:
    first = checkout.start_and_halt()
    second = checkout.start()
    assert second.stderr is not None
    assert f"process {first.pid} is installing into {checkout.venv}; waiting" in second.stderr.readline()
    checkout.go_on()
    for process in (first, second):
        assert process.communicate(timeout=LIMIT_S)[0] == "ready\n"
    assert checkout.steps() == ["venv", "pip False", "pip True"], "one of them has done it"


def test_what_an_ended_command_left_running_is_waited_for(checkout: Checkout) -> None:
    first = checkout.start_and_halt()
    first.kill()  # itself alone: `venv` goes on
    first.wait(LIMIT_S)
    second = checkout.start()
    assert second.stderr is not None and "waiting" in second.stderr.readline()
    checkout.go_on()
    assert second.communicate(timeout=LIMIT_S)[0] == "ready\n"


def test_an_interrupted_installation_goes_on_in_the_same_environment(checkout: Checkout) -> None:
    """A package without its list of files was being installed: pip must not take it for whole."""
    checkout.stub("pip", "import sys; sys.exit('--version' not in sys.argv)")
    code, errors = checkout.prepare()
    assert code == 1 and "install.log" in errors
    broken = checkout.venv / "lib" / "python3.99" / "site-packages" / "half-1.dist-info"
    broken.mkdir(parents=True)
    whole = broken.with_name("whole-1.dist-info")
    whole.mkdir()
    (whole / "RECORD").touch()
    checkout.stub("pip", STUBS["pip"])
    code, errors = checkout.prepare()
    assert code == 0, errors
    assert checkout.steps().count("venv") == 1 and not broken.exists() and whole.exists()


@pytest.mark.parametrize("mark", [False, True])
def test_an_environment_of_somebody_else_is_kept(checkout: Checkout, mark: bool) -> None:
    """Also where one that we began was finished, or replaced, by hand."""
    checkout.make_by_hand()
    if mark:
        (checkout.root / "build").mkdir()
        (checkout.root / "build" / "environment.begun").touch()
    code, errors = checkout.prepare()
    assert code == 0, errors
    assert (checkout.venv / "bin" / "kept").exists() and "venv" not in checkout.steps()


def test_neither_pythonpath_nor_the_folder_hides_what_installs(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Packages on PYTHONPATH would be installed already for pip, and a folder `pip` where somebody is would be pip."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, "g++")
    for name in STUBS:
        (checkout.root / "scripts" / name).mkdir()
        (checkout.root / "scripts" / name / "__init__.py").touch()
    assert checkout.prepare(DAEMON)[0] == 0
    assert checkout.steps() == ["venv", "pip False", "pip True", "plan False", "build False"]
    assert set((tmp_path / "seen").read_text().splitlines()) == {"", str(checkout.root)}


def test_an_environment_without_pip_gets_it(checkout: Checkout) -> None:
    """As uv makes them."""
    checkout.make_by_hand()
    checkout.stub("pip", "import os, sys; sys.exit(not os.path.exists(os.environ['STEPS']))")
    checkout.stub("ensurepip", "import os; open(os.environ['STEPS'], 'w').close()")
    code, errors = checkout.prepare()
    assert code == 0, errors
    assert "adding pip" in errors and (checkout.venv / "bin" / "kept").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_what_is_no_environment_is_named(checkout: Checkout, kind: str) -> None:
    if kind == "file":
        checkout.venv.touch()
    else:
        (checkout.venv / "bin").mkdir(parents=True)
    if kind == "dangling":
        (checkout.venv / "bin" / "python").symlink_to("/nowhere/python")
    code, errors = checkout.prepare()
    assert code == 1 and errors.count("\n") == 1, errors
    assert "delete it, and run this again" in errors and str(checkout.venv) in errors


def test_a_checkout_that_cannot_be_written_to(checkout: Checkout) -> None:
    (checkout.root / "build").touch()
    code, errors = checkout.prepare()
    assert code == 1 and errors.count("\n") == 1, errors
    assert "cannot be written to" in errors and "copy the checkout" in errors


def test_a_checkout_that_is_installed_and_cannot_be_written_to(checkout: Checkout) -> None:
    """It does without kernels that could be built now."""
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, None)
    assert checkout.prepare(DAEMON)[0] == 0
    has_compiler(checkout, "g++")
    code, errors = checkout.prepare("import os; os.access = lambda *_: False; " + DAEMON)
    assert (code, errors) == (0, "")


def test_what_is_installed_is_known_where_files_are_read_as_latin_1(checkout: Checkout) -> None:
    """As on Windows: a folder's name that is not ASCII had everything installed at each start."""
    code = "import pathlib; read = pathlib.Path.read_text; "
    code += "pathlib.Path.read_text = lambda path, encoding='latin-1': read(path, encoding); "
    assert checkout.prepare(code + PREPARE)[0] == 0
    steps = checkout.steps()
    assert checkout.prepare(code + PREPARE) == (0, "")
    assert checkout.steps() == steps


def test_a_python_that_cannot_make_environments(checkout: Checkout) -> None:
    hide = "import os, sys; sys.modules['ensurepip'] = None; os.environ['PATH'] = ''; "
    code, errors = checkout.prepare(hide + PREPARE)
    assert code == 1 and errors.count("\n") == 1, errors
    assert "install what it lacks first" in errors and not checkout.venv.exists()


FULL = "import ending, environment; ending.run(lambda: environment.prepare(environment.FULL) or 0)"
CUDA = {"install": [{"metadata": {"name": name}} for name in ("torch", "nvidia-cublas-cu13")]}
CPU = {"install": [{"metadata": {"name": name}} for name in ("torch", "sympy")]}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has no such build")
@pytest.mark.parametrize(
    ("report", "answer", "installed"),
    [
        (CUDA, None, True),
        (CUDA, b"\n", False),
        (CUDA, b"\x04", False),
        (CUDA, b"Yes\n", True),
        (CPU, b"", True),
        ({}, b"", True),
    ],
)
def test_gigabytes_of_torch_are_announced(
    checkout: Checkout,
    monkeypatch: pytest.MonkeyPatch,
    report: dict[str, object],
    answer: bytes | None,
    installed: bool,
) -> None:
    """Before anything is fetched; a question follows only where somebody can answer it."""
    checkout.wants_torch(monkeypatch, report)
    master, slave = pty.openpty()
    if answer:
        os.write(master, answer)
    process = checkout.start(code=FULL, stdin=subprocess.DEVNULL if answer is None else slave)
    _, errors = process.communicate(timeout=LIMIT_S)
    os.close(master)
    os.close(slave)
    assert checkout.steps()[0] == "pip asked" and (len(checkout.steps()) > 1) is installed, errors
    cpu = f"{shlex.quote(str(checkout.venv / 'bin' / 'python'))} -m pip install torch==9.9"
    assert ("5.6 GB" in errors and cpu in errors) is (report == CUDA), "and a shell takes that"
    assert ("Fetch the CUDA build?" in errors) is (report == CUDA and answer is not None)
    assert (process.returncode == 0) is installed


def test_ctrl_c_is_an_answer_too(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.wants_torch(monkeypatch, CUDA)
    master, slave = pty.openpty()
    process = checkout.start(code=FULL, stdin=slave)
    assert process.stderr
    said = ""
    while not said.endswith("[y/N] "):
        said += process.stderr.read(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=LIMIT_S) == ("", "") and process.returncode == 130
    os.close(master)
    os.close(slave)
    assert checkout.steps() == ["pip asked"]


def has_compiler(checkout: Checkout, name: str | None) -> None:
    (checkout.stubs / "server").mkdir(exist_ok=True)
    (checkout.stubs / "server" / "__init__.py").touch()
    code = KERNELS.replace("COMPILER = None", f"COMPILER = {name!r}")
    (checkout.stubs / "server" / "build.py").write_text(code, encoding="utf-8")


def test_a_compiler_that_comes_later_builds_the_kernels(checkout: Checkout) -> None:
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, None)
    assert checkout.prepare(DAEMON)[0] == 0
    checkout.steps_file.unlink()
    assert checkout.prepare(DAEMON) == (0, ""), "the daemon says what there is to say"
    assert checkout.steps() == ["plan False"]
    has_compiler(checkout, "g++")
    code, errors = checkout.prepare(DAEMON)
    assert code == 0 and "building with g++" in errors
    assert checkout.steps() == ["plan False", "plan False", "build False"]
    assert checkout.prepare(DAEMON) == (0, "")
    (checkout.root / "server" / "kernels" / "a.cpp").touch()
    (checkout.root / "server" / "kernels" / "a.cpp").write_text("int a;")
    checkout.prepare(DAEMON)
    assert checkout.steps()[3:] == ["plan False", "build False"], "nothing was to do, then other sources were there"


def test_kernels_that_were_built_by_hand_are_not_built_again(checkout: Checkout) -> None:
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, "g++")
    with (checkout.stubs / "server" / "build.py").open("a") as stub:
        stub.write("sys.exit(4)\n")
    for _ in range(2):
        code, errors = checkout.prepare(DAEMON)
        assert code == 0 and "building with" not in errors
    assert checkout.steps()[3:] == ["plan False"], "and looked at once"


def test_that_ziglang_is_declined_is_remembered(checkout: Checkout) -> None:
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, "ziglang")
    code, errors = checkout.prepare(DECLINING)
    assert code == 0 and "building" not in errors, errors
    assert checkout.prepare(DAEMON) == (0, "")
    assert [step for step in checkout.steps() if step.startswith(("plan", "build"))] == ["plan True"] * 2


def test_kernels_that_cannot_be_built_cost_speed_alone(checkout: Checkout) -> None:
    (checkout.root / "server" / "kernels").mkdir(parents=True)
    has_compiler(checkout, "g++")
    with (checkout.stubs / "server" / "build.py").open("a") as stub:
        stub.write('plan or sys.exit("ERROR: no space for it")\n')
    code, errors = checkout.prepare(DAEMON)
    assert code == 0 and "no space for it" in errors and "The slower engine onnx is used" in errors, errors
