"""The kernels' own programs: their team of threads, and every call where memory runs out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import gpt2d_kernels
import pytest

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ (Debian: apt-get install g++)")
KERNELS = Path(__file__).resolve().parent.parent.parent / "server" / "kernels"


def runs(program: Path, tested: Path) -> None:
    """Build the program from its source and what it tests, and run it."""
    build = ["g++", "-std=c++17", "-O1", "-pthread", "-I", str(KERNELS / "src"), "-I", str(KERNELS / "include")]
    build += [
        str(KERNELS / "tests" / f"{program.name}.cpp"),
        str(tested),
        f"-Wl,-rpath,{tested.parent}",
        "-o",
        str(program),
    ]
    subprocess.run(build, check=True, timeout=100)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@needs_compiler
def test_a_job_that_throws_ends_on_every_thread(tmp_path: Path) -> None:
    """Memory that runs out on a helper's thread ends neither the process nor leaves anybody waiting."""
    runs(tmp_path / "team_test", KERNELS / "src" / "team.cpp")


@needs_compiler
def test_every_call_survives_every_allocation_that_fails(tmp_path: Path) -> None:
    """And works when it is called again, with the same result."""
    library = gpt2d_kernels.library()
    assert library
    runs(tmp_path / "memory_test", library)
