"""Kernels for other systems: they compile without a warning for each, and the library has a name that is looked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from scripts.wheels import targets
from server import build

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ("macos-arm64", "macos-x86_64", "windows-x86_64", "linux-aarch64")
"""One of each system and of each processor."""
SOURCES = {"api.cpp", "model.cpp", "team.cpp", "ops_plain.cpp"}
needs_zig = pytest.mark.skipif(
    targets.zig() is None or targets.cmake() is None, reason="needs ziglang and CMake (requirements-dev.txt)"
)


def target(name: str) -> targets.Target:
    return next(target for target in targets.TARGETS if target.name == name)


@needs_zig
@pytest.mark.parametrize("name", COMPILED)
def test_the_kernels_compile_for_other_systems_without_a_warning(name: str, tmp_path: Path) -> None:
    """Without optimising, which takes three quarters of the time and finds no other mistakes."""
    folder = targets.configure(target(name), tmp_path / name, flags="-Werror", optimised=False)
    commands = targets.compilations(folder)
    assert {Path(command[-1]).name for command in commands} >= SOURCES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(targets.compile_one, build=folder), commands))


def test_the_compiler_of_the_tests_is_the_one_that_builds_where_there_is_none() -> None:
    assert build.ZIG in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("of", targets.TARGETS, ids=lambda of: of.name)
def test_the_package_finds_the_library_of_each_system(of: targets.Target, tmp_path: Path) -> None:
    """Also Windows', whose compilers leave out the `lib`."""
    file = Path(shutil.copy(build.SOURCES / "gpt2d_kernels" / "__init__.py", tmp_path))
    spec = importlib.util.spec_from_file_location("kernels_of_a_wheel", file)
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    assert package.library() is None
    (tmp_path / of.library).touch()
    assert package.library() == tmp_path / of.library
