"""Versions of Python that the project supports: the same in every place that lists them."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from protocol.errors import BadModel
from server.catalogue import engines
from server.catalogue.engines import TRAITS, choose_engine, onnx_problem

ROOT = Path(__file__).resolve().parent.parent
FILES = ("environment.py", "quiet.py", "system_packages.py", "torch_build.py")
PREPARE = (
    "import sys; sys.version_info = {}; sys.version = 'x'; import environment; environment.prepare(environment.CLIENT)"
)


def test_the_packages_admit_every_supported_version() -> None:
    from packaging.specifiers import SpecifierSet

    for folder in (ROOT, ROOT / "server" / "kernels"):
        wanted = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
        admitted = [minor for minor in range(9, 17) if f"3.{minor}" in SpecifierSet(wanted)]
        assert admitted[:4] == [11, 12, 13, 14], wanted


@pytest.mark.parametrize(
    ("version", "admitted", "tested"),
    [((3, 10, 9), False, True), ((3, 11, 0), True, True), ((3, 14, 2), True, True), ((3, 15, 0), True, False)],
)
def test_a_first_start_refuses_only_what_cannot_run(
    version: tuple[int, ...], admitted: bool, tested: bool, tmp_path: Path
) -> None:
    """A supported version goes on to make its environment (which a file in its place ends here)."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (tmp_path / ".venv").touch()
    for name in FILES:
        shutil.copy(ROOT / "scripts" / name, folder)
    done = subprocess.run(
        [sys.executable, "-S", "-c", PREPARE.format(version)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert ("gpt2d needs Python" in done.stderr) is not admitted, done.stderr
    assert ("has no Python that works" in done.stderr) is admitted, done.stderr
    assert ("Python 3.15 is untested" in done.stderr) is not tested, done.stderr


MACHINES = {
    ("linux", "x86_64"): True,
    ("linux", "aarch64"): True,
    ("darwin", "arm64"): True,
    ("darwin", "x86_64"): False,
    ("win32", "AMD64"): True,
}
"""Systems and processors, and whether the wheels of ONNX Runtime and imgui-bundle are made for them."""


def pinned(file: str, name: str, python: str, system: str, machine: str) -> list[str]:
    """Return the pins of a package that apply on a machine."""
    from packaging.requirements import Requirement

    place = {"python_version": python, "sys_platform": system, "platform_machine": machine}
    found = []
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(place):
                found.append(str(requirement.specifier))
    return found


@pytest.mark.parametrize(("system", "machine"), MACHINES)
@pytest.mark.parametrize("python", ["3.11", "3.14", "3.15"])
def test_what_has_no_wheel_is_not_asked_for(
    system: str, machine: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what begins says so from the same facts."""
    made = MACHINES[system, machine]
    has_onnx = made and python != "3.15"
    place = python, system, machine
    for file in ("requirements-client.txt", "requirements-server.txt"):
        assert pinned(file, "numpy", *place) == ["==2.5.5" if python == "3.15" else "==2.4.6"]
    assert len(pinned("requirements-client.txt", "imgui-bundle", *place)) == made
    assert len(pinned("requirements-server.txt", "onnxruntime", *place)) == has_onnx
    assert len(pinned("requirements-server.txt", "sentencepiece", *place)) == made
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    environment = importlib.import_module("environment")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(sys, "version_info", tuple(map(int, python.split("."))))
    assert environment.has_onnx_runtime() is has_onnx
    monkeypatch.setattr(sys, "path", [])
    assert ("is not installed" in onnx_problem()) is has_onnx


@pytest.mark.parametrize("kind", ["CLIENT", "LIGHT"])
def test_where_no_engine_is_left_nothing_is_installed(kind: str, tmp_path: Path) -> None:
    """A client for another machine's daemon is."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (tmp_path / ".venv").touch()
    for name in FILES:
        shutil.copy(ROOT / "scripts" / name, folder)
    code = (
        "import os, platform, sys, environment; os.environ['PATH'] = os.devnull; os.environ.pop('CXX', None); "
        "sys.version_info = (3, 15, 0); platform.machine = lambda: 'riscv64'; "
    )
    code += f"environment.prepare(environment.{kind})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert ("no engine can run here: ONNX Runtime is not made for" in done.stderr) is (kind == "LIGHT"), done.stderr
    assert ("has no Python that works" in done.stderr) is (kind == "CLIENT"), done.stderr


def test_a_daemon_says_which_engines_it_is_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ENGINES", {"torch": TRAITS["torch"]})
    monkeypatch.setattr(engines, "native_problem", lambda: "no kernels")
    monkeypatch.setattr(sys, "path", [])
    (notice,) = engines.notices()
    assert notice.startswith("only reference engines can be used, where they are installed: no kernels; ")
    assert onnx_problem() and notice.endswith(onnx_problem())
    with pytest.raises(BadModel, match=r"no engine 'onnx' here \(.*\); there are: torch"):
        choose_engine("onnx", None)
