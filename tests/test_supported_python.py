"""Versions of Python that the project supports: the same in every place that lists them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
    for name in ("environment.py", "quiet.py", "system_packages.py", "torch_build.py"):
        shutil.copy(ROOT / "scripts" / name, folder)
    done = subprocess.run(
        [sys.executable, "-S", "-c", PREPARE.format(version)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert ("gpt2d needs Python" in done.stderr) is not admitted, done.stderr
    assert ("has no Python that works" in done.stderr) is admitted, done.stderr
    assert ("Python 3.15 is untested" in done.stderr) is not tested, done.stderr
