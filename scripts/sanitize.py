#!/usr/bin/env python3
"""Run the kernels' own tests under the address, undefined-behaviour and thread sanitizers.

They run every instruction set of this processor at each precision: models, layers and choices by themselves, steps of
1 to 16 rows with scores, a head in two passes and another number of threads each time, memory that runs out, and
arguments, settings and weights that make no sense.

    python -m scripts.sanitize              all three
    python -m scripts.sanitize thread       one of them

Needs a C++ compiler with their libraries (Debian: g++) and CMake (`pip install cmake`). Ends with an error if one of
them finds anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("address", "undefined", "thread")
TESTS = ("kernels_test", "steps_test", "refusals_test", "memory_test", "team_test")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:allocator_may_return_null=1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse compares the empty list, too, where none is given.
    parser.add_argument(
        "kinds", nargs="*", choices=[[], *KINDS], metavar="KIND", help=f"of: {', '.join(KINDS)} (default: all)"
    )
    kinds = parser.parse_args().kinds or KINDS
    cmake = shutil.which("cmake")
    if cmake is None:
        sys.exit("CMake is missing; `pip install cmake` brings it")
    failed = [kind for kind in kinds if not passes(cmake, kind)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def passes(cmake: str, kind: str) -> bool:
    """Build and run the tests with one sanitizer."""
    print(f"--- {kind}", flush=True)
    build = ROOT / "build" / "sanitize" / kind
    flags = f"-fsanitize={kind} -fno-sanitize-recover=all -g -O1 -fno-omit-frame-pointer"
    configure = [
        cmake,
        "-S",
        str(ROOT / "server" / "kernels"),
        "-B",
        str(build),
        "-DGPT2D_TESTS=ON",
        f"-DCMAKE_CXX_FLAGS={flags}",
    ]
    for command in (configure, [cmake, "--build", str(build), "--parallel"]):
        if subprocess.run(command, stdout=subprocess.DEVNULL, timeout=600, check=False).returncode:
            return False
    tests = [[str(build / name)] for name in TESTS]
    return not any(
        subprocess.run(test, env=os.environ | OPTIONS, timeout=600, check=False).returncode for test in tests
    )


if __name__ == "__main__":
    main()
