#!/usr/bin/env python3
"""Build wheels of the native kernels for Linux, macOS and Windows, on x86-64 and Arm, and check each.

    python -m scripts.wheels                            all six, into dist/
    python -m scripts.wheels linux-x86_64 macos-arm64   some of them

Each is built twice, in two folders, and must be the same bytes; the library's headers must say the right processor,
the functions of the interface and no others, and no library or version of the system that is not everywhere. The
kernels' own tests run where they can: this machine's; those of Arm Linux by qemu-aarch64 (Debian: qemu-user
libc6-arm64-cross); those of Windows by wine64; and all must compute the same bits. Needs ziglang and CMake
(requirements-dev.txt), and `pip install lief`. Some ten minutes, most of it for the standard libraries of six systems,
which zig builds once. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.wheels.headers import Facts, interface, problems, read
from scripts.wheels.pack import files_of, write_wheel
from scripts.wheels.targets import PROGRAMS, TARGETS, BuildFailed, Target, build_library

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "wheels"
RUN_S, LOAD_S = 300, 60
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"
"""Where Debian's package libc6-arm64-cross has them."""
LOAD = """
import ctypes, gpt2d_kernels as kernels
library = ctypes.CDLL(str(kernels.library()))
library.gpt2d_instruction_sets.restype = ctypes.c_char_p
assert library.gpt2d_version() == kernels.VERSION
print(library.gpt2d_instruction_sets().decode())
"""


def runner(target: Target) -> list[str] | None:
    """Return what a program of that system begins with here; None where it cannot be run."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if platform.system() == target.system and machine == target.processor.lower().replace("amd64", "x86_64"):
        return []
    if target.name == "linux-aarch64" and (qemu := shutil.which("qemu-aarch64")) and Path(ARM_LIBRARIES).exists():
        return [qemu, "-L", ARM_LIBRARIES]
    if target.name == "windows-x86_64" and (wine := shutil.which("wine64", path=f"{os.environ['PATH']}:/usr/lib/wine")):
        return [wine]
    return None


def run(target: Target, library: Path) -> str:
    """Run the kernels' own tests beside a library; return the digest of what they compute. Raises: BuildFailed."""
    before = runner(target)
    if before is None:
        return ""
    ending = ".exe" if target.system == "Windows" else ""
    said: list[str] = []
    # Not in the checkout: Wine links to / there, and setuptools follows links for ever when that is installed.
    with tempfile.TemporaryDirectory(prefix="gpt2d-wine-", ignore_cleanup_errors=True) as prefix:
        quiet = os.environ | {"WINEDEBUG": "-all", "WINEPREFIX": prefix}
        for name in PROGRAMS:
            command = [*before, str(library.parent / f"{name}{ending}")]
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=RUN_S, check=False)
            if done.returncode:
                raise BuildFailed(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            said += done.stdout.split()
    return said[0]


def load(wheel: Path, folder: Path) -> str:
    """Install a wheel of this machine into a folder, and load the library as the engine does. Raises: BuildFailed."""
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    for command in ([*pip, str(wheel)], [sys.executable, "-P", "-c", LOAD]):
        variables = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=LOAD_S, check=False)
        if done.returncode:
            raise BuildFailed(f"{wheel.name} cannot be installed and loaded:\n{done.stdout}{done.stderr}")
    return f"loads from Python ({done.stdout.strip()})"


def make(target: Target, into: Path) -> str:
    """Build, check and write one wheel, and say what was found; return `run`'s digest. Raises: BuildFailed, OSError."""
    made: list[bytes] = []
    for attempt in ("first", "second"):
        shutil.rmtree(BUILD / attempt / target.name, ignore_errors=True)
        library = build_library(target, BUILD / attempt / target.name, tests=runner(target) is not None)
        wheel = write_wheel(into, target, files_of(library))
        made.append(wheel.read_bytes())
    if made[0] != made[1]:
        raise BuildFailed(f"two builds differ: compare {BUILD}/first and {BUILD}/second")
    facts = read(library)
    if wrong := list(problems(target, facts)):
        raise BuildFailed(f"{library}: {'; '.join(wrong)}")
    ran = run(target, library)
    found = [f"{len(made[0]) >> 10} KB", described(facts), f"computes {ran}" if ran else "not run here"]
    if runner(target) == []:
        found.append(load(wheel, BUILD / "installed"))
    print(f"{wheel.name}\n  {', '.join(found)}", flush=True)
    return ran


def described(facts: Facts) -> str:
    wanted = f"from version {'.'.join(map(str, facts.oldest))} on, " if facts.oldest else ""
    return f"{facts.machine}, {wanted}{len(facts.exports & interface())} functions"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [target.name for target in TARGETS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names)} (default: all)")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", metavar="FOLDER", help="default: %(default)s")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(names)):
        parser.error(f"unknown: {', '.join(unknown)}; the names are: {', '.join(names)}")
    failed: list[str] = []
    computed: set[str] = set()
    for target in TARGETS:
        if target.name in (args.names or names):
            try:
                computed.add(make(target, args.into))
            except (BuildFailed, ImportError, OSError, ValueError) as e:
                print(f"{target.name}: {e}", file=sys.stderr, flush=True)
                failed.append(target.name)
    if len(computed - {""}) > 1:
        failed.append("what is computed differs")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
