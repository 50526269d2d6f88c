"""The kernels' own programs: their team of threads, and every call where memory runs out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpt2d_kernels
import pytest

from server.catalogue.engines import instruction_sets

DIGEST = "820e3eb7dab2a058"
"""What tests/kernels_test.cpp prints on every processor: of logits, drawn tokens and roundings.

As the digests of test_digests.py it changes only with the order of a sum.
"""
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ (Debian: apt-get install g++)")
KERNELS = Path(__file__).resolve().parent.parent.parent / "server" / "kernels"


def runs(program: Path, tested: Path, says: str = "ok") -> None:
    """Build the program from its source and what it tests, run it, and look at what it says."""
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
    assert (done.returncode, done.stdout) == (0, f"{says}\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_the_instruction_sets_are_those_of_the_processor() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    avx2 = {"avx2", "fma", "f16c"} <= flags
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= flags
    vnni = avx2 and "avx_vnni" in flags
    assert instruction_sets() == ["avx512"] * avx512 + ["avxvnni"] * vnni + ["avx2"] * avx2 + ["plain"]


@needs_compiler
def test_where_the_kernels_have_plain_instructions_alone_onnx_is_the_default(tmp_path: Path) -> None:
    package = tmp_path / "gpt2d_kernels"
    package.mkdir()
    shutil.copy(gpt2d_kernels.__file__, package)
    source = tmp_path / "plain.cpp"
    source.write_text('extern "C" const char *gpt2d_instruction_sets() { return "plain"; }')
    library = str(package / "libgpt2d_kernels.so")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", library], check=True, timeout=60)
    code = (
        "from server.catalogue.engines import ENGINES, choose_engine, notices; "
        "print(list(ENGINES)[0], choose_engine(None, None), choose_engine('native', None), *notices(), sep='|')"
    )
    path = os.pathsep.join([str(tmp_path), str(KERNELS.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == (
        "onnx|('onnx', 'int8')|('native', 'int8')|onnx is the default engine: this processor has none of the "
        "instructions that make native fast (AVX2, VNNI or Arm's dot products); the same text on every processor is "
        "native's promise alone (docs/kernels.md)\n"
    )


@pytest.mark.skipif(gpt2d_kernels.library() is None, reason="needs the kernels of the native engine")
def test_kernels_that_are_built_while_a_server_runs_are_told_of(tmp_path: Path) -> None:
    package = tmp_path / "gpt2d_kernels"
    package.mkdir()
    shutil.copy(gpt2d_kernels.__file__, package)
    library = gpt2d_kernels.library()
    assert library
    code = (
        "import os, shutil; from server.catalogue.engines import notices; before = notices(); "
        f"shutil.copy({str(library)!r}, {str(package / library.name)!r}); "
        "print(*before, *notices(), os.getpid(), sep='|')"
    )
    path = os.pathsep.join([str(tmp_path), str(KERNELS.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    told = done.stdout.rstrip().split("|")
    assert told[0].startswith("the slower engine onnx is the default: the native kernels were installed without")
    since = f"the native kernels were built after this server was started (process {told[2]})"
    assert told[1] == f"the slower engine onnx is the default: {since}; they are used once it is restarted"


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


@needs_compiler
def test_steps_give_their_bits_with_any_threads_and_in_any_company(tmp_path: Path) -> None:
    """Also scores, and a head that is read in two passes."""
    library = gpt2d_kernels.library()
    assert library
    runs(tmp_path / "steps_test", library)


@needs_compiler
def test_what_makes_no_sense_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    """Arguments of every call beside their limits, weights of any bytes, settings of any numbers."""
    library = gpt2d_kernels.library()
    assert library
    runs(tmp_path / "refusals_test", library)


@needs_compiler
def test_every_instruction_set_gives_the_bits_that_all_processors_give(tmp_path: Path) -> None:
    """Also for numbers that are too large or below the normal ones, and for a caller that rounds in another way."""
    library = gpt2d_kernels.library()
    assert library
    runs(tmp_path / "kernels_test", library, DIGEST)


SOURCES = sorted(p.stem for p in (KERNELS / "src").glob("*.cpp") if not p.stem.startswith("ops_"))
"""What every set needs."""
FLAGS = ("-O1", "-std=c++17", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi")


def compiled(compiler: str, target: Path, sources: list[str], *flags: str) -> None:
    """Compile sources of the kernels, or link them where `target` is no object file. Raises CalledProcessError."""
    include = ["-I", str(KERNELS / "src"), "-I", str(KERNELS / "include")]
    paths = [str(KERNELS / name) for name in sources]
    subprocess.run([compiler, *FLAGS, *flags, *include, *paths, "-o", str(target)], check=True, timeout=100)


@pytest.mark.skipif("avx512" not in instruction_sets(), reason="needs AVX512-VNNI, which has that instruction")
@needs_compiler
def test_the_set_for_avxvnni_gives_these_bits_too(tmp_path: Path) -> None:
    """With AVX512-VNNI's code of its only instruction: a processor with AVX-VNNI has the set among its own."""
    others = tmp_path / "others.cpp"
    none = '{"", [] { return false; }, {}, {}, {}, {}, {}, {}, {}, {}}'
    sets = ", ".join(f"{name}_ops = {{{none}}}" for name in ("avx512", "avx2", "plain"))
    others.write_text(f'#include "ops.h"\nnamespace gpt2d {{ const BothOps {sets}; }}\n')
    sources = [f"src/{name}.cpp" for name in (*SOURCES, "ops_avxvnni")] + ["tests/kernels_test.cpp", str(others)]
    flags = ("-mavx2", "-mfma", "-mf16c", "-mavx512vl", "-mavx512vnni", "-DGPT2D_EVEX", "-DGPT2D_AVXVNNI")
    compiled("g++", tmp_path / "program", sources, *flags)
    done = subprocess.run([str(tmp_path / "program")], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{DIGEST}\n", f"avxvnni: {DIGEST}\n")
