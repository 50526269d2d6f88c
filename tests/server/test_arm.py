"""The kernels on Arm processors, emulated: the bits of their own test, and the texts that a daemon here writes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from protocol import Client, messages as m
from scripts.daemon import Daemon
from server.catalogue.architecture import read_architecture
from server.catalogue.engines import native_problem
from server.catalogue.files import EMBEDDED_FOLDER
from server.convert.native_layout import FILE
from server.engines.native import shape_of
from tests.server.test_kernels import DIGEST, FLAGS, KERNELS, SOURCES

COMPILER = "aarch64-linux-gnu-g++"
PROCESSORS = (("cortex-a72", ["plain"]), ("cortex-a76", ["dotprod", "plain"]), ("max", ["i8mm", "dotprod", "plain"]))
"""What each has, best first. The first is a Raspberry Pi 4's; the last has all that qemu knows."""
PROMPT = "When in the chronicle of wasted time"
TOKENS, SEED = 8, 11
pytestmark = [
    pytest.mark.timeout(300),  # half a minute of compiling
    pytest.mark.skipif(not shutil.which(COMPILER), reason="needs Debian's g++-aarch64-linux-gnu"),
    pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs Debian's qemu-user"),
]


def compiled(folder: Path, *arguments: object) -> None:
    """Run the compiler in a folder. Raises: CalledProcessError."""
    include = ["-I", KERNELS / "src", "-I", KERNELS / "include"]
    subprocess.run([COMPILER, *FLAGS, *map(str, (*include, *arguments))], cwd=folder, check=True, timeout=200)


def emulated(processor: str, program: Path, *arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    command = ["qemu-aarch64", "-cpu", processor, str(program), *map(str, arguments)]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The kernels, compiled for Arm with all its sets."""
    folder = tmp_path_factory.mktemp("arm")
    compiled(folder, "-c", *(KERNELS / "src" / f"{name}.cpp" for name in (*SOURCES, "ops_plain")))
    for name, features in (("dotprod", "+dotprod"), ("i8mm", "+dotprod+i8mm")):
        compiled(folder, "-c", f"-march=armv8.2-a{features}", KERNELS / "src" / f"ops_{name}.cpp")
    return sorted(folder.glob("*.o"))


def test_arm_gives_these_bits_too(objects: list[Path], tmp_path: Path) -> None:
    program = tmp_path / "program"
    compiled(tmp_path, KERNELS / "tests" / "kernels_test.cpp", *objects, "-static", "-o", program)
    for processor, sets in PROCESSORS:
        done = emulated(processor, program)
        told = "".join(f"{name}: {DIGEST}\n" for name in sets)
        assert (done.stdout, done.stderr) == (f"{DIGEST}\n", told)


@pytest.mark.skipif(bool(native_problem()), reason="needs the native kernels")
def test_arm_writes_the_texts_that_a_daemon_here_writes(objects: list[Path], tmp_path: Path) -> None:
    """From the very file that the daemon has built, greedily and by the default sampler."""
    program = tmp_path / "texts"
    compiled(tmp_path, KERNELS / "tests" / "texts.cpp", *objects, "-static", "-o", program)
    uniforms = np.random.Generator(np.random.PCG64(SEED)).random(TOKENS).tolist()  # as a sampler draws them
    arch = read_architecture(EMBEDDED_FOLDER)
    with Daemon(tmp_path) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", engine="native", precision="int8")
        ids = client.tokenize(PROMPT).ids
        for precision in ("int8", "int4", "fp32"):
            client.load("demo", engine="native", precision=precision)
            greedy, drawn = (
                client.generate(
                    PROMPT, engine="native", precision=precision, strategy=strategy, seed=SEED, max_new_tokens=TOKENS
                )
                for strategy in ("greedy", "sample")
            )
            shape = shape_of(arch, precision)
            numbers = [getattr(shape, name) for name, *_ in shape._fields_ if name != "epsilon"]
            defaults = m.Generate(prompt="")
            job = f"{line(numbers)} {shape.epsilon!r} 2 "
            job += f"{line(ids)} 0 0 1 0 1 {line([0.0] * len(greedy.ids))} "
            job += f"{line(ids)} {defaults.temperature} {defaults.top_k} {defaults.top_p} {defaults.min_p} "
            job += f"{defaults.typical_p} {line(uniforms[: len(drawn.ids)])}"
            (file,) = (tmp_path / "cache").glob(f"*-native-{precision}*/{FILE}")
            for processor, sets in PROCESSORS:
                done = emulated(processor, program, file, sets[0], said=job)
                found = [[int(token) for token in text.split()] for text in done.stdout.splitlines()]
                assert found == [greedy.ids, drawn.ids], (processor, precision, done.stderr)


def line(numbers: Iterable[float]) -> str:
    found = [repr(number) for number in numbers]
    return " ".join([str(len(found)), *found])
