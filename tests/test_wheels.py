"""Kernels for other systems: they compile without a warning for each, and the library has a name that is looked for."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import packaging.utils
import pytest

from scripts.wheels import __main__ as wheels, headers, pack, targets
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
@pytest.mark.timeout(300)  # some ten seconds of two cores each, which a busy machine has not
@pytest.mark.parametrize("name", COMPILED)
def test_the_kernels_compile_for_other_systems_without_a_warning(name: str, tmp_path: Path) -> None:
    """Without what takes most of the time and finds no other mistakes: optimising, and what zig adds where that is not
    done, checks of undefined behaviour and names for debuggers.
    """
    flags = "-Werror -fno-sanitize=undefined -g0"
    folder = targets.configure(target(name), tmp_path / name, flags=flags, optimised=False)
    commands = targets.compilations(folder)
    assert {Path(command[-1]).name for command in commands} >= SOURCES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(targets.compile_one, build=folder), commands))


def test_the_compiler_of_the_tests_is_the_one_that_builds_where_there_is_none() -> None:
    assert build.ZIG in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()


def test_windows_stands_outside_the_checkout_while_programs_run(tmp_path: Path) -> None:
    """A drive of Wine's is a link to /, which setuptools would follow for ever when the checkout is installed."""
    here = [target for target in targets.TARGETS if wheels.runner(target) == []]
    if not here:
        pytest.skip("wheels are built for other systems only")
    for name in targets.PROGRAMS:
        (tmp_path / name).write_text('#!/bin/sh\ntest -d "$WINEPREFIX" && echo "$WINEPREFIX"\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    prefix = Path(wheels.run(here[0], tmp_path / "library"))
    assert prefix.is_absolute() and ROOT not in prefix.parents
    assert not prefix.exists()


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


def test_a_wheel_is_the_same_bytes_whenever_it_is_written_and_pip_installs_it(tmp_path: Path) -> None:
    library = tmp_path / targets.LINUX
    library.write_bytes(b"not a library")
    made = []
    for day in (0, 1_000_000_000):
        os.utime(library, (day, day))
        made.append(pack.write_wheel(tmp_path / str(day), target("linux-x86_64"), pack.files_of(library)))
    assert made[0].name == made[1].name and made[0].read_bytes() == made[1].read_bytes()
    tags = packaging.utils.parse_wheel_filename(made[0].name)[3]
    assert sorted(map(str, tags)) == ["py3-none-manylinux2014_x86_64", "py3-none-manylinux_2_17_x86_64"]
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "there")]
    anywhere = ["--platform", "manylinux2014_x86_64", "--only-binary", ":all:"]
    subprocess.run([*pip, *anywhere, str(made[0])], capture_output=True, timeout=60, check=True)
    package = tmp_path / "there" / pack.PACKAGE
    assert (package / targets.LINUX).read_bytes() == b"not a library"
    assert (package / "built_from").read_text() == build.digest()
    assert (package / "__init__.py").read_text() == (build.SOURCES / pack.PACKAGE / "__init__.py").read_text()


GOOD = {
    "linux-aarch64": headers.Facts("AARCH64", headers.interface(), frozenset({"libc.so.6"}), (2, 17)),
    "macos-arm64": headers.Facts(
        "ARM64", headers.interface(), frozenset({"/usr/lib/libSystem.B.dylib"}), (11, 0), signed=True
    ),
    "windows-x86_64": headers.Facts(
        "AMD64", headers.interface(), frozenset({"KERNEL32.dll", "api-ms-win-crt-heap-l1-1-0.dll"})
    ),
}


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        *((name, {}, []) for name in GOOD),
        ("linux-aarch64", {"machine": "X86_64"}, ["is for X86_64"]),
        ("linux-aarch64", {"oldest": (2, 34)}, ["wants version 2.34, and the wheel promises 2.17"]),
        ("linux-aarch64", {"oldest": (2, 4)}, []),
        ("macos-arm64", {"oldest": (14, 0)}, ["wants version 14.0, and the wheel promises 11.0"]),
        ("macos-arm64", {"signed": False}, ["is not signed, and no such Mac loads what is not"]),
        (
            "windows-x86_64",
            {"libraries": frozenset({"libstdc++-6.dll"})},
            ["wants libstdc++-6.dll, which not every such system has"],
        ),
        ("linux-aarch64", {"exports": headers.interface() | {"_Znwm"}}, ["exports more than the interface: _Znwm"]),
        ("macos-arm64", {"exports": headers.interface() | {"_Znwm", "_ZdlPvm"}}, []),
        ("linux-aarch64", {"exports": headers.interface() - {"gpt2d_new"}}, ["does not export gpt2d_new"]),
    ],
)
def test_what_is_wrong_with_a_library(name: str, change: dict[str, Any], wrong: list[str]) -> None:
    assert list(headers.problems(target(name), dataclasses.replace(GOOD[name], **change))) == wrong


def test_the_interface_is_what_its_header_declares() -> None:
    assert {
        "gpt2d_version",
        "gpt2d_new",
        "gpt2d_weights",
        "gpt2d_waits",
        "gpt2d_instruction_sets",
    } < headers.interface()
    assert "gpt2d_model" not in headers.interface()
