#!/usr/bin/env python3
"""Measure our engines beside those that others have built, in turns: the same model, threads and prompts for all.

    python -m scripts.bench.peers --like gpt2 --only native-int8,llama.cpp-q8_0,native-int4,llama.cpp-q4_0,openvino-int8
    python -m scripts.bench.peers --like gpt2 --quick --only native-int8,onnx-int8

Each engine runs in a process of its own; runs alternate (A B A B), and one lock keeps other benchmarks of this machine
away from each. `decode1`, `decode8` and `decode16` are tokens a second of one, eight and sixteen sequences together (32
tokens of prompt; 128 new ones of one sequence, 64 of more), `prefill512` tokens of a prompt a second; medians of --runs
after a warm-up, end of text ignored. --sampler says how our own engines choose tokens; the peers take the likeliest.

What is missing is installed into build/peers first: llama.cpp is compiled for this processor, and OpenVINO's and
CTranslate2's forms of the model are made in an environment of their own; that takes minutes, once. An engine that
cannot be had is reported with the reason. `probe` is scripts/bench/decode_probe.c in the same minutes: what the machine
itself allows. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from scripts.bench.arguments import add_place, find_model
from scripts.bench.engine import ROOT, SAMPLERS, EngineFailed, EngineProcess, Run, Variant, as_module
from server.catalogue.architecture import PUBLISHED
from server.catalogue.engines import ENGINES

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "peers"
LOCK = Path(tempfile.gettempdir()) / "gpt2d-bench.lock"
ROWS = 16
SHAPES = {"decode1": (1, 32, 128), "decode8": (8, 32, 64), "decode16": (ROWS, 32, 64), "prefill512": (1, 512, 1)}
"""Sequences, prompt tokens and new tokens of each measurement."""
OWN = [f"{engine}-{precision}" for engine, traits in ENGINES.items() for precision in traits.precisions]
OWN += ["transformers-fp32", "transformers-bf16", "transformers-int8"]
"""Engines that run in the checkout's own environment."""
PEERS = [
    *("ctranslate2-fp32", "ctranslate2-int8"),
    *("llama.cpp-f16", "llama.cpp-q8_0", "llama.cpp-q4_0"),
    *("openvino-fp32", "openvino-int8", "openvino-int4"),
]
"""Engines that run in build/peers/env."""
INSTALL_S = 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="a model of the daemon: a folder of --models-dir")
    which.add_argument(
        "--like", choices=list(PUBLISHED), default="gpt2", help="random weights of these shapes (default: %(default)s)"
    )
    parser.add_argument("--only", metavar="A,B,...", help=f"of: {', '.join([*OWN, *PEERS])} (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="greedy", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="three runs")
    add_place(parser)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else [*OWN, *PEERS]
    if unknown := [name for name in names if name not in (*OWN, *PEERS)]:
        parser.error(f"unknown engine: {', '.join(unknown)}; the engines are: {', '.join([*OWN, *PEERS])}")
    model = find_model(args.model, args.like, args.models_dir)
    if model.folder is None or model.architecture is None:
        raise RuntimeError(f"{model.name} was found without its folder")
    results: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for name in names:
            try:
                processes[name] = stack.enter_context(
                    start(name, model.folder, model.architecture.vocabulary, args.threads, args.sampler)
                )
            except (EngineFailed, OSError, subprocess.SubprocessError) as e:
                results[name] = {"error": str(e)}
                print(f"{name}: {e}", file=sys.stderr)
        measured = measure(processes, 3 if args.quick else args.runs)
        for name, process in processes.items():
            results[name] = {**measured[name], "load_s": round(process.load_s, 2), "rss_mb": round(process.rss_mb())}
    print_table(results)
    print(json.dumps({"model": model.name, "threads": args.threads, "engines": results, "probe": probe(args.threads)}))


def start(name: str, folder: Path, vocabulary: int, threads: int, sampler: str) -> EngineProcess:
    """Start an engine, installing and converting what it needs. Raises: EngineFailed, OSError, SubprocessError."""
    engine, precision = name.rsplit("-", 1)
    variant = Variant(engine, precision, str(folder), threads, ROWS, sampler)
    if name in OWN:
        return EngineProcess(variant)
    built = BUILD / folder.name
    built.mkdir(parents=True, exist_ok=True)
    python = environment("env", "requirements-peers.txt")
    convert(engine, precision, folder, built)
    order = {
        "engine": engine,
        "precision": precision,
        "folder": str(folder),
        "built": str(built),
        "threads": threads,
        "vocabulary": vocabulary,
    }
    return EngineProcess(variant, as_module("scripts.bench.peer", json.dumps(order), python=python))


def environment(name: str, requirements: str) -> str:
    """Return the Python of an environment that has these requirements. Raises: SubprocessError."""
    folder, file = BUILD / name, HERE / requirements
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != file.read_text():
        print(f"installing {requirements} into {folder} (once; minutes)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL_S)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(file)]
        native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "PIP_NO_BINARY": "llama-cpp-python"}
        subprocess.run(pip, check=True, timeout=INSTALL_S, env=os.environ | native, stdout=sys.stderr)
        # Some of them bring it along, for another torch than this one, and then nothing can be imported.
        subprocess.run(
            [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True, timeout=INSTALL_S
        )
        stamp.write_text(file.read_text())
    return str(python)


def convert(engine: str, precision: str, folder: Path, built: Path) -> None:
    """Make a peer's own form of the model, where it has one. Raises: SubprocessError."""
    target = built / f"{engine}-{precision}"
    if target.exists() or engine not in {"openvino", "ctranslate2"}:
        return
    tools = Path(environment("convert", "requirements-peers-convert.txt")).parent
    if engine == "openvino":
        command = [str(tools / "optimum-cli"), "export", "openvino", "--model", str(folder)]
        command += ["--task", "text-generation-with-past", "--weight-format", precision, str(target)]
    else:
        kind = {"fp32": "float32", "int8": "int8"}[precision]
        command = [str(tools / "ct2-transformers-converter"), "--model", str(folder)]
        command += ["--output_dir", str(target), "--quantization", kind]
    try:
        # OpenVINO's tools report their use to Google Analytics unless they believe that they run on a build server.
        silent = os.environ | {"CI": "true"}
        subprocess.run(command, check=True, timeout=INSTALL_S, env=silent, stdout=sys.stderr)
    except subprocess.SubprocessError:
        shutil.rmtree(target, ignore_errors=True)
        raise


@contextmanager
def alone() -> Iterator[None]:
    """Keep away everybody else who asks for the same while this one measures."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def measure(processes: dict[str, EngineProcess], runs: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {name: {shape: [] for shape in SHAPES} for name in processes}
    seeds = np.random.SeedSequence(1).generate_state((runs + 1) * len(SHAPES)).tolist()
    for i in range(runs + 1):
        print(f"run {i} of {runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for shape, (batch, prompt, new) in SHAPES.items():
            seed = seeds.pop()
            for name, process in processes.items():
                with alone():
                    run = process.run(prompt, new, seed, batch)
                if i:  # the first warms up
                    found[name][shape].append(rate(run, batch, prompt, new))
    return {
        name: {shape: round(statistics.median(rates), 1) for shape, rates in shapes.items()}
        for name, shapes in found.items()
    }


def rate(run: Run, batch: int, prompt: int, new: int) -> float:
    return batch * (new - 1) / run.decode_s if new > 1 else prompt / run.prefill_s


def probe(threads: int) -> dict[str, object]:
    """Return what decode_probe.c measures, or why it measures nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return {"error": "no C compiler"}
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "decode_probe"
    source = HERE / "decode_probe.c"
    flags = ["-O3", "-march=native", "-ffast-math", "-pthread"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program), "-lm"], check=True, timeout=120)
    with alone():
        done = subprocess.run([str(program), str(threads)], capture_output=True, text=True, timeout=300, check=False)
    figures: dict[str, object] = json.loads(done.stdout)
    return figures


def print_table(results: dict[str, dict[str, object]]) -> None:
    columns = [*SHAPES, "load_s", "rss_mb"]
    print(f"{'':20}" + "".join(f"{c:>12}" for c in columns), file=sys.stderr)
    for name, row in results.items():
        cells = str(row["error"])[:80] if "error" in row else "".join(f"{row[c]!s:>12}" for c in columns)
        print(f"{name:20}{cells}", file=sys.stderr)


if __name__ == "__main__":
    main()
