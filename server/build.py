"""The native kernels, built from their sources for this machine: `gpt2d-server --build-kernels`.

The system's C++ compiler builds them; where there is none, on x86-64 Linux, the one that the package `ziglang` brings,
which is fetched for this and deleted afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pkgutil
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "kernels"
COMPILERS = ("c++", "g++", "clang++")
"""Programs that CMake looks for, in its order; $CXX comes first."""
PROGRAM = "#include <vector>\nint main() { return int(std::vector<int>(1)[0]); }\n"
ZIG = "ziglang==0.17.1"
ZIG_FOLDER = "gpt2d-ziglang"
INSTALL = (
    "install g++ (Debian: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install; "
    "Windows: winget install BrechtSanders.WinLibs.POSIX.UCRT)"
)
COMPILE_S = 60
INSTALL_S = 1200
BUILD_S = 1800
NO_COMPILER = 3
"""Exit code where there is no compiler, which is no fault: the other engine is used."""
BUILT = 4
"""Exit code of --plan where there is nothing to do."""


class BuildError(Exception):
    """The kernels could not be built: says why, and what to do."""


def system_compiler() -> str | None:
    """Return the command of a C++ compiler that can build a program here; None if there is none.

    Raises: BuildError if $CXX names one that cannot.
    """
    if given := os.environ.get("CXX"):
        if not _works(shlex.split(given)):
            raise BuildError(f"CXX is {given!r}, which cannot build a C++17 program here; unset it or correct it")
        return given
    return next((name for name in COMPILERS if shutil.which(name) and _works([name])), None)


def _works(compiler: list[str]) -> bool:
    """Return True if it compiles and links: a compiler can be installed without the headers."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired), tempfile.TemporaryDirectory() as folder:
        command = [*compiler, "-std=c++17", "-x", "c++", "-", "-o", str(Path(folder) / "program")]
        done = subprocess.run(command, input=PROGRAM.encode(), capture_output=True, timeout=COMPILE_S, check=False)
        return done.returncode == 0
    return False


def zig_fits() -> bool:
    """Return True where the kernels can be built by zig."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def write_zig_wrapper(folder: Path, zig: Path) -> Path:
    """Write the program that CMake takes for a compiler, and return its path.

    It compiles for every processor of the family: zig's own default is the one that it runs on.
    """
    wrapper = folder / "zig-c++"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(str(zig))} c++ -mcpu=baseline "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return wrapper


@contextlib.contextmanager
def _ziglang() -> Iterator[Mapping[str, str]]:
    """Install zig into a folder beside this environment; give the variables of a build with it; delete the folder.

    Whatever it writes lies in that folder: the temporary folder may be memory, and the home read-only.
    Raises: BuildError.
    """
    parent = Path(sys.prefix).parent
    folder = (parent if os.access(parent, os.W_OK) else Path(sys.prefix)) / ZIG_FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
    try:
        folder.mkdir()
        (folder / "tmp").mkdir()
        env = {name: str(folder / "tmp") for name in ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
        target = str(folder / "packages")
        _pip(["--target", target, "--only-binary=:all:", "--no-deps", "--no-cache-dir", ZIG], env, INSTALL_S)
        yield env | {"CXX": str(write_zig_wrapper(folder, folder / "packages" / "ziglang" / "zig"))}
    except OSError as e:
        raise BuildError(f"{folder}: {e.strerror}; free some space there (450 MB), or {INSTALL}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip(arguments: list[str], env: Mapping[str, str], limit: float) -> None:
    """Run `pip install` of this environment, which shows what it says. Raises: BuildError."""
    if all(module.name != "pip" for module in pkgutil.iter_modules()):  # an environment made by uv has none
        command = [sys.executable, "-P", "-m", "ensurepip"]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=INSTALL_S, check=False)
    command = [sys.executable, "-P", "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(
            command, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"`{shlex.join(command)}` took longer than {limit / 60:g} minutes") from None
    if done.returncode:
        raise BuildError(f"`{shlex.join(command)}` failed; the lines above say why")


def digest() -> str:
    """Return what changes with every source of the kernels."""
    found = (p for p in SOURCES.rglob("*") if p.is_file() and p.suffix != ".pyc")
    files = sorted(found, key=lambda p: p.as_posix())  # Windows' own order passes over upper and lower case
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def built() -> bool:
    """Return True if the kernels of the present sources are installed in this environment."""
    marks = [Path(folder, "gpt2d_kernels", "built_from") for folder in sys.path]
    mark = next((mark for mark in marks if mark.parent.is_dir()), None)
    return mark is not None and mark.exists() and mark.read_text(encoding="utf-8") == digest()


def build(compiler: str) -> None:
    """Build the kernels with what `plan` returns, and install them into this environment. Raises: BuildError."""
    define = f"--config-settings=cmake.define.GPT2D_SOURCES={digest()}"
    install = ["--no-deps", "--force-reinstall", define, str(SOURCES)]
    if compiler == ZIG:
        with _ziglang() as env:
            _pip(install, env, BUILD_S)
    else:
        # CMake's own choice on Windows, Visual Studio or NMake, would not take this compiler.
        generator = {"CMAKE_GENERATOR": "Ninja"} if sys.platform == "win32" else {}
        _pip(install, {"CXX": compiler} | generator, BUILD_S)


def plan(*, ziglang: bool = True) -> str | None:
    """Return the compiler to build with: the system's, else ZIG if it may be fetched and runs here, else None.

    Raises: BuildError.
    """
    return system_compiler() or (ZIG if ziglang and zig_fits() else None)


def words(compiler: str) -> str:
    """Return what building with that means, for somebody who waits for it."""
    if compiler == ZIG:
        return (
            "no C++ compiler: building the native kernels with ziglang (downloads 100 MB, takes 450 MB of disk and two "
            "minutes, and is deleted again)"
        )
    return f"building the native kernels with {compiler} (half a minute)"


def main(argv: list[str] | None = None) -> int:
    """Build as scripts/run.py asks for it. Exit codes: 0 built, 1 failed, NO_COMPILER, BUILT."""
    parser = argparse.ArgumentParser(prog="gpt2d-server --build-kernels", description=__doc__)
    parser.add_argument("--no-ziglang", action="store_true", help="use the system's compiler only")
    parser.add_argument("--plan", action="store_true", help="say with what it would be built, and exit")
    args = parser.parse_args(argv)
    if args.plan and built():
        return BUILT
    try:
        compiler = plan(ziglang=not args.no_ziglang)
        if compiler is None:
            print(f"no C++ compiler: {INSTALL}, then run this again", file=sys.stderr)
            return NO_COMPILER
        print(words(compiler), flush=True)
        if not args.plan:
            build(compiler)
            print("the native kernels are built: a server that is started from now on uses them")
    except BuildError as e:
        print(f"the native kernels could not be built: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
