#!/usr/bin/env python3
"""Build the native kernels with every compiler that there is, and compare what the builds offer, compute and cost.

    python -m scripts.bench.compilers

Compilers: g++ and clang++ where they are installed, and zig where the package `ziglang` is. Each build is measured in a
process of its own, in turns: the prefill of a random model of gpt2's width. Where objdump is, loops that do not keep
their sums in registers are named. Ends with 1 if two builds differ in their instruction sets or in one bit of a result.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.bench.loops import problem, product_loops
from server.build import SOURCES, write_zig_wrapper
from server.catalogue.architecture import Architecture
from server.catalogue.engines import TRAITS, instruction_sets

BUILD_S, RUN_S = 900, 300
TURNS = 5
SHAPE = Architecture(layers=2, heads=12, width=768, inner=3072, context=256, vocabulary=5000, epsilon=1e-5, ends=(0,))
"""Two of gpt2's blocks."""
PROMPT = 200
ROWS = 4


def compilers(folder: Path) -> dict[str, str]:
    """Return the commands of the C++ compilers that there are, by name; zig's is a file written into the folder."""
    found = {name: path for name in ("g++", "clang++") if (path := shutil.which(name))}
    if spec := importlib.util.find_spec("ziglang"):
        zig = Path(str(spec.submodule_search_locations[0] if spec.submodule_search_locations else "")) / "zig"
        found["zig"] = str(write_zig_wrapper(folder, zig))
    return found


def build(compiler: str, folder: Path) -> Path:
    """Build the kernels with a compiler; return the folder that offers them to a program as its `gpt2d_kernels`."""
    folder.mkdir()
    configure = ["cmake", "-S", str(SOURCES), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=Release"]
    caches = {name: str(folder) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    for command in (configure, ["cmake", "--build", str(folder / "build"), "--parallel"]):
        env = os.environ | caches | {"CXX": compiler}
        subprocess.run(command, env=env, stdout=sys.stderr, timeout=BUILD_S, check=True)
    package = folder / "packages" / "gpt2d_kernels"
    shutil.copytree(SOURCES / "gpt2d_kernels", package)
    shutil.copy(folder / "build" / "libgpt2d_kernels.so", package)
    return package.parent


def run(packages: Path) -> dict[str, dict[str, float | str]]:
    """Return what the kernels in that folder compute and how fast, by instruction set and precision."""
    path = os.pathsep.join([str(packages), *filter(None, sys.path)])
    command = [sys.executable, "-P", "-m", __spec__.name, "--run"]
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode:
        sys.exit(f"the kernels in {packages} failed:\n{done.stderr}")
    found: dict[str, dict[str, float | str]] = json.loads(done.stdout)
    return found


def measure() -> dict[str, dict[str, float | str]]:
    """Run a random model on the kernels of this process."""
    import numpy as np

    from server.checkpoint.tensors import expected_shapes
    from server.convert.native_layout import FILE, Layout
    from server.engines.native import NativeEngine

    found: dict[str, dict[str, float | str]] = {}
    for precision in TRAITS["native"].precisions:
        rng = np.random.default_rng(1)
        shapes = expected_shapes(SHAPE).items()
        weights = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes}
        prompt = rng.integers(0, SHAPE.vocabulary, PROMPT).tolist()
        with tempfile.TemporaryDirectory() as folder:
            Layout(SHAPE, weights, precision, lambda *_: None).write(Path(folder))
            for name in instruction_sets():
                engine = NativeEngine(SHAPE, Path(folder) / FILE, precision, ROWS, 1, instruction_set=name)
                began = time.perf_counter()
                logits = engine.prefill(0, prompt, 0, range(PROMPT))
                prefill_s = time.perf_counter() - began
                steps = engine.decode([3], [PROMPT])
                digest = hashlib.sha256(logits.tobytes() + steps.tobytes()).hexdigest()
                found[f"{name} {precision}"] = {"digest": digest, "tok_s": round(PROMPT / prefill_s, 1)}
                engine.close()
    return found


def print_loops(name: str, packages: Path) -> None:
    """Say which inner loops of a build's products store their sums, where objdump can tell."""
    if shutil.which("objdump"):
        loops = product_loops(packages / "gpt2d_kernels" / "libgpt2d_kernels.so")
        problems = sorted(filter(None, map(problem, loops)))
        print(f"{name:<8} {len(loops)} inner loops of products", *problems, sep="\n         ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().run:
        print(json.dumps(measure()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        builds = {name: build(path, Path(folder) / name) for name, path in compilers(Path(folder)).items()}
        for name, packages in builds.items():
            print_loops(name, packages)
        runs: dict[str, list[dict[str, dict[str, float | str]]]] = {name: [] for name in builds}
        for _ in range(TURNS):
            for name, packages in builds.items():
                runs[name].append(run(packages))
    if not runs:
        sys.exit("no C++ compiler: install g++ or clang++, or `pip install ziglang`")
    first = next(iter(runs))
    same = True
    for name, of_build in runs.items():
        for kernel in sorted({*of_build[0], *runs[first][0]}):
            rates = [
                statistics.median(float(r[kernel]["tok_s"]) for r in rs if kernel in r)
                for rs in (of_build, runs[first])
            ]
            equal = of_build[0].get(kernel, {}).get("digest") == runs[first][0].get(kernel, {}).get("digest")
            same = same and equal
            bits = "same bits" if equal else "OTHER BITS"
            print(f"{name:<8} {kernel:<12} {rates[0]:9.1f} tokens/s {rates[0] / rates[1]:5.2f} of {first}'s, {bits}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
