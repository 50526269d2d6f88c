"""Building the kernels: which compiler is taken, what is said where there is none, what is left behind."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from server import build

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="zig builds for x86-64 Linux"
)


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def build_kernels(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an environment that finds only the programs of that folder."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "server.build", *arguments],
        env={"PATH": str(folder), "HOME": str(folder), "PYTHONPATH": str(build.SOURCES.parent.parent)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    done = build_kernels(tmp_path, "--no-ziglang")
    assert done.returncode == build.NO_COMPILER
    assert done.stderr == f"no C++ compiler: {build.INSTALL}, then run this again\n"


def test_a_compiler_that_cannot_link_is_none(tmp_path: Path) -> None:
    """As g++ is without the headers of the standard library."""
    program(tmp_path, "g++", "exit 1")
    assert build_kernels(tmp_path, "--no-ziglang").returncode == build.NO_COMPILER


def test_a_cxx_that_does_not_work_is_not_replaced_by_another(tmp_path: Path) -> None:
    done = build_kernels(tmp_path, CXX="no-such-compiler -O2")
    assert done.returncode == 1
    words = "which cannot build a C++17 program here; unset it or correct it"
    assert done.stderr == f"the native kernels could not be built: CXX is 'no-such-compiler -O2', {words}\n"


@on_linux
@pytest.mark.parametrize("end", [KeyboardInterrupt, build.BuildError("no network")])
def test_what_zig_needs_lies_beside_the_environment_and_goes_however_it_ends(
    end: BaseException | type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "my checkout" / ".venv"
    folder = prefix.parent / build.ZIG_FOLDER
    (folder / "left by a killed build").mkdir(parents=True)
    seen: list[tuple[list[str], dict[str, str]]] = []

    def pip(arguments: list[str], env: dict[str, str], _: float) -> None:
        seen.append((arguments, env))
        if build.ZIG in arguments:  # "installs" it
            zig = folder / "packages" / "ziglang"
            zig.mkdir(parents=True)
            program(zig, "zig", 'echo "$@"')
            return
        compiler = subprocess.run([env["CXX"], "-O3"], capture_output=True, text=True, timeout=10, check=True)
        assert compiler.stdout == "c++ -mcpu=baseline -O3\n"
        raise end

    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(build, "system_compiler", lambda: None)
    monkeypatch.setattr(build, "_pip", pip)
    with pytest.raises(type(end) if isinstance(end, BaseException) else end):
        build.build(build.plan() or "")
    assert list(folder.parent.iterdir()) == []
    assert len(seen) == 2, "zig, then the kernels"
    for _, env in seen:
        for name in ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
            assert Path(env[name]).is_relative_to(folder), name
    assert build.plan(ziglang=False) is None, "and only where it is not declined"


@pytest.mark.parametrize(("system", "generator"), [("win32", "Ninja"), ("darwin", None), ("linux", None)])
def test_on_windows_the_compiler_that_was_found_is_the_one_that_builds(
    system: str, generator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake's own generators there take Visual Studio's compiler, whatever $CXX says."""
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(build, "_pip", lambda _, env, __: seen.append(env))
    build.build("g++")
    assert [(env["CXX"], env.get("CMAKE_GENERATOR")) for env in seen] == [("g++", generator)]


def test_kernels_that_are_built_of_these_sources_are_not_planned_again(tmp_path: Path) -> None:
    package = tmp_path / "gpt2d_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    paths = f"{tmp_path}:{build.SOURCES.parent.parent}"
    codes = []
    for sources in (None, "older", build.digest()):
        if sources is not None:
            (package / "built_from").write_text(sources)
        codes.append(build_kernels(tmp_path, "--plan", "--no-ziglang", PYTHONPATH=paths).returncode)
    assert codes == [build.NO_COMPILER, build.NO_COMPILER, build.BUILT]
