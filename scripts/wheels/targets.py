"""The six systems that the kernels are built for, and how: by CMake's own rules, with zig as the compiler for each.

Nothing of the machine that builds is looked at, and no program is linked or run to find out about the compiler: what
CMake would ask is told beforehand.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.build import SOURCES, write_zig_wrapper

CACHE = Path(__file__).resolve().parents[2] / "build" / "zig"
"""What zig keeps: the standard library of each system, which takes it a minute."""
CONFIGURE_S, BUILD_S = 60, 900
PROGRAMS = ("kernels_test", "steps_test", "refusals_test", "team_test")
"""The kernels' tests that run beside each library; the first says what it has computed."""
TOLD = {
    "CMAKE_CXX_COMPILER_ID": "Clang",
    "CMAKE_CXX_COMPILER_ID_RUN": "1",
    "CMAKE_CXX_COMPILER_VERSION": "22",
    "CMAKE_CXX_COMPILER_FORCED": "1",
    "CMAKE_CXX_COMPILE_FEATURES": "cxx_std_17",
    "CMAKE_CXX_STANDARD_COMPUTED_DEFAULT": "17",
    "CMAKE_HAVE_LIBC_PTHREAD": "1",
}
"""What CMake would find out by linking a program, which takes zig a minute for a system that it has not yet seen."""


@dataclass(frozen=True)
class Target:
    name: str
    zig: str
    """zig's name for it, with the oldest version that is supported: of glibc, or of macOS."""
    system: str
    """CMake's name of the system."""
    processor: str
    """CMake's name of the processor."""
    tag: str
    """Platform of a wheel's name."""
    library: str

    @property
    def oldest(self) -> tuple[int, ...]:
        """The oldest version of glibc or macOS; empty on Windows."""
        return tuple(map(int, re.findall(r"[0-9]+", self.zig.partition(".")[2])))


HIDDEN = "{ global: gpt2d_*; local: *; };\n"
"""Version script of Linux: the standard library that zig links would export its own memory management."""
LINUX = "libgpt2d_kernels.so"
DARWIN = "libgpt2d_kernels.dylib"
WINDOWS = "gpt2d_kernels.dll"
TARGETS = (
    Target(
        "linux-x86_64", "x86_64-linux-gnu.2.17", "Linux", "x86_64", "manylinux2014_x86_64.manylinux_2_17_x86_64", LINUX
    ),
    Target(
        "linux-aarch64", "aarch64-linux-gnu.2.17", "Linux", "aarch64", "manylinux2014_aarch64.manylinux_2_17_aarch64",
        LINUX,
    ),
    Target("macos-x86_64", "x86_64-macos.11.0", "Darwin", "x86_64", "macosx_11_0_x86_64", DARWIN),
    Target("macos-arm64", "aarch64-macos.11.0", "Darwin", "arm64", "macosx_11_0_arm64", DARWIN),
    Target("windows-x86_64", "x86_64-windows-gnu", "Windows", "AMD64", "win_amd64", WINDOWS),
    Target("windows-arm64", "aarch64-windows-gnu", "Windows", "ARM64", "win_arm64", WINDOWS),
)  # fmt: skip


class BuildFailed(Exception):
    """A build for another system failed: says what the compiler said."""


def zig() -> Path | None:
    """Return the compiler of the package ziglang; None where it is not installed."""
    spec = importlib.util.find_spec("ziglang")
    return (
        Path(next(iter(spec.submodule_search_locations)), "zig") if spec and spec.submodule_search_locations else None
    )


def cmake() -> str | None:
    """Return CMake's command: of this environment, else of the system; None where there is none."""
    return shutil.which("cmake", path=Path(sys.executable).parent) or shutil.which("cmake")


def configure(target: Target, folder: Path, *, flags: str = "", tests: bool = False, optimised: bool = True) -> Path:
    """Write the rules of a build into the folder, and return where they are. Raises: BuildFailed."""
    compiler, program = zig(), cmake()
    if compiler is None or program is None:
        raise BuildFailed("ziglang and CMake are missing: `pip install -r requirements-dev.txt` brings them")
    folder.mkdir(parents=True, exist_ok=True)
    build = folder / "build"
    names = folder / "exported"
    names.write_text(HIDDEN, encoding="utf-8")
    # Without what is for debuggers, which names the folders that it was built in.
    link = "-Wl,--strip-debug" + (f" -Wl,--version-script={names}" if target.system == "Linux" else "")
    told = TOLD | {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_CXX_COMPILER": str(write_zig_wrapper(folder, compiler)),
        "CMAKE_CXX_FLAGS": f"-target {target.zig} {flags}".rstrip(),
        "CMAKE_SHARED_LINKER_FLAGS": link,
        "CMAKE_BUILD_TYPE": "Release" if optimised else "None",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "GPT2D_TESTS": "ON" if tests else "OFF",
    }
    _run([program, "-S", str(SOURCES), "-B", str(build), *(f"-D{n}={v}" for n, v in told.items())], folder, CONFIGURE_S)
    return build


def compilations(build: Path) -> list[list[str]]:
    """Return the commands that compile the sources of a configured build; they run in its folder."""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return [shlex.split(entry["command"]) for entry in entries]


def compile_one(command: Sequence[str], build: Path) -> None:
    """Run one of `compilations`. Raises: BuildFailed."""
    output = build / command[command.index("-o") + 1]
    output.parent.mkdir(parents=True, exist_ok=True)
    _run(command, build, BUILD_S)


def build_library(target: Target, folder: Path, *, tests: bool = False) -> Path:
    """Build the kernels, and return the library; with `tests` their programs lie beside it. Raises: BuildFailed."""
    build = configure(target, folder, tests=tests)
    names = ["gpt2d_kernels", *(PROGRAMS if tests else ())]
    _run([str(cmake()), "--build", str(build), "--parallel", "--target", *names], build, BUILD_S)
    return build / target.library


def _run(command: Sequence[str], folder: Path, limit: float) -> None:
    """Run a command in a folder. Raises: BuildFailed."""
    caches = {name: str(CACHE) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    try:
        done = subprocess.run(
            command, cwd=folder, env=caches | os.environ, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"`{shlex.join(command)}` took longer than {limit / 60:g} minutes") from None
    if done.returncode:
        raise BuildFailed(f"`{shlex.join(command)}` failed:\n{done.stdout}{done.stderr}")
