"""The kernels' team of threads, by a program that is built from its sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent.parent / "server" / "kernels"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ (Debian: apt-get install g++)")
def test_a_job_that_throws_ends_on_every_thread(tmp_path: Path) -> None:
    """Memory that runs out on a helper's thread ends neither the process nor leaves anybody waiting."""
    program = tmp_path / "team_test"
    sources = [str(KERNELS / "tests" / "team_test.cpp"), str(KERNELS / "src" / "team.cpp")]
    build = ["g++", "-std=c++17", "-O1", "-pthread", "-I", str(KERNELS / "src"), *sources, "-o", str(program)]
    subprocess.run(build, check=True, timeout=100)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
