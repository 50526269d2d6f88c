#!/usr/bin/env python3
"""Measure our engines beside those that others have built, in turns: the same model, threads and prompts for all.

    python -m scripts.bench.peers --pieces                     what there is to measure, and how long it takes
    python -m scripts.bench.peers --like gpt2 --piece int8     one piece
    python -m scripts.bench.peers --like gpt2                  all pieces of a model that are not measured yet
    python -m scripts.bench.peers --like gpt2 --quick --only native-int8,onnx-int8
    python -m scripts.bench.peers --write                      the tables of README.md and docs/performance.md

A piece is a few engines that fit into the memory together, the default among them; what it measured is kept in
docs/results/peers.jsonl, a line for each engine, and not measured again on the same processor unless --again says so.

Each engine runs in a process of its own; runs alternate (A B A B), and one lock keeps other benchmarks of this machine
away from each. `decode1`, `decode8` and `decode16` are tokens a second of one, eight and sixteen sequences together (32
tokens of prompt; 128 new ones of one sequence, 64 of more), `prefill512` tokens of a prompt a second; medians of --runs
after a warm-up, end of text ignored. Engines that write one text after the other are asked for one. `cold` is the time
from the start of a new process to the end of its first 25 tokens: import, load, prefill, decode, with the files in
the system's cache. --sampler says how our own engines choose tokens; the peers take the likeliest.

B, C and L are measured in the same minutes, in each turn: what the machine itself allows (scripts/bench/machine.py).

What is missing is installed into build/peers first: llama.cpp is compiled for this processor, and OpenVINO's and
CTranslate2's forms of the model are made in an environment of their own; that takes minutes, once. An engine that
cannot be had is reported with the reason.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.arguments import add_place, find_model
from scripts.bench.engine import ROOT, SAMPLERS, EngineFailed, EngineProcess, Run, Variant, as_module
from scripts.bench.machine import Limits, can_measure, processor
from scripts.bench.peers_table import FILE, Row, read, write
from server.catalogue.architecture import PUBLISHED
from server.catalogue.engines import ENGINES, TRAITS

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "peers"
LOCK = Path(tempfile.gettempdir()) / "gpt2d-bench.lock"
ROWS = 16
SHAPES = {"decode1": (1, 32, 128), "decode8": (8, 32, 64), "decode16": (ROWS, 32, 64), "prefill512": (1, 512, 1)}
"""Sequences, prompt tokens and new tokens of each measurement."""
COLD = (32, 25, 0)
"""Prompt tokens, new tokens and seed of a cold start's text."""
COLD_RUNS = 3
OWN = [f"{engine}-{precision}" for engine, traits in ENGINES.items() for precision in traits.precisions]
OWN += ["transformers-fp32", "transformers-bf16", "transformers-int8"]
"""Engines that run in the checkout's own environment."""
PEERS = [
    *("ctranslate2-fp32", "ctranslate2-int8"),
    *("llama.cpp-f16", "llama.cpp-q8_0", "llama.cpp-q4_0"),
    *("openvino-fp32", "openvino-int8", "openvino-int4"),
]
"""Engines that run in build/peers/env."""
DEFAULT = "native-int8"
"""Engine that each piece has, so that what different pieces measured can be compared by its figures."""
INSTALL_S = 3600


@dataclass(frozen=True)
class Piece:
    """Engines that are measured together."""

    engines: tuple[str, ...]
    minutes: float
    """What it takes with gpt2 on two cores of an EPYC, about, once everything is installed."""


PIECES = {
    "int8": Piece((DEFAULT, "llama.cpp-q8_0", "openvino-int8", "ctranslate2-int8", "onnx-int8"), 2.0),
    "int4": Piece((DEFAULT, "native-int4", "llama.cpp-q4_0", "openvino-int4", "onnx-int4"), 1.5),
    "fp32": Piece((DEFAULT, "native-fp32", "openvino-fp32", "ctranslate2-fp32"), 3.0),
    "half": Piece((DEFAULT, "llama.cpp-f16", "transformers-bf16"), 4.0),
    "transformers": Piece((DEFAULT, "transformers-fp32", "transformers-int8"), 4.0),
    "optimum": Piece((DEFAULT, "optimum-fp32", "optimum-int8"), 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="a model of the daemon: a folder of --models-dir")
    which.add_argument(
        "--like", choices=list(PUBLISHED), default="gpt2", help="random weights of these shapes (default: %(default)s)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--piece", choices=list(PIECES), metavar="NAME", help=f"one of: {', '.join(PIECES)}")
    what.add_argument("--only", metavar="A,B,...", help=f"of: {', '.join([*OWN, *PEERS])}; printed, and not kept")
    what.add_argument("--pieces", action="store_true", help="list the pieces of gpt2 and gpt2-large")
    what.add_argument("--write", action="store_true", help="write the tables from what was measured")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="greedy", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one run, and one cold start")
    parser.add_argument("--again", action="store_true", help="measure again what is measured already")
    parser.add_argument("--file", type=Path, default=FILE, help="where lines are kept (default: %(default)s)")
    add_place(parser)
    args = parser.parse_args()
    if args.pieces:
        list_pieces(read(args.file))
    elif args.write:
        write(read(args.file))
    elif args.only:
        names = args.only.split(",")
        if unknown := [name for name in names if name not in (*OWN, *PEERS)]:
            parser.error(f"unknown engine: {', '.join(unknown)}; the engines are: {', '.join([*OWN, *PEERS])}")
        print_rows(run(args, "", names))
    else:
        for name in [args.piece] if args.piece else PIECES:
            if not args.again and is_measured(read(args.file), args.model or args.like, name):
                print(f"{name}: measured already (--again measures it again)", file=sys.stderr)
                continue
            rows = run(args, name, PIECES[name].engines)
            args.file.parent.mkdir(parents=True, exist_ok=True)
            with args.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            print_rows(rows)


def is_measured(rows: Sequence[Row], model: str, piece: str) -> bool:
    """Return whether every engine of a piece has a line of this processor, with figures or the reason why not."""
    there = {row["engine"] for row in rows if (row["like"], row["piece"], row["cpu"]) == (model, piece, processor())}
    return set(PIECES[piece].engines) <= there


def list_pieces(rows: Sequence[Row]) -> None:
    for model in ("gpt2", "gpt2-large"):
        for name, piece in PIECES.items():
            minutes = piece.minutes * PUBLISHED[model].parameters / PUBLISHED["gpt2"].parameters
            state = "measured" if is_measured(rows, model, name) else f"some {minutes:.0f} min"
            command = shlex.join(["python", "-m", "scripts.bench.peers", "--like", model, "--piece", name])
            print(f"{command:70}{state}")


def run(args: argparse.Namespace, piece: str, names: Sequence[str]) -> list[Row]:
    """Measure engines in turns; return a row for each."""
    model = find_model(args.model, args.like, args.models_dir)
    if model.folder is None or model.architecture is None:
        raise RuntimeError(f"{model.name} was found without its folder")
    folder, vocabulary = model.folder, model.architecture.vocabulary
    found: dict[str, dict[str, Any]] = {}
    if not can_measure():
        sys.exit("this measures the machine, too, for which it needs a C compiler, and a processor with AVX2")
    limits = Limits(args.threads)
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for name in names:
            try:
                processes[name] = stack.enter_context(start(name, folder, vocabulary, args.threads, args.sampler))
            except (EngineFailed, OSError, subprocess.SubprocessError) as e:
                found[name] = {"error": str(e)}
                print(f"{name}: {e}", file=sys.stderr)
        rates, machine = measure(processes, limits, 1 if args.quick else args.runs)
        for name, process in processes.items():
            found[name] = {"rates": rates[name], "load_s": round(process.load_s, 2), "rss_mb": round(process.rss_mb())}
    for name in processes:
        found[name]["cold_s"] = [
            round(cold_start(name, folder, vocabulary, args.threads, args.sampler), 3)
            for _ in range(1 if args.quick else COLD_RUNS)
        ]
    common = {
        "piece": piece,
        "like": args.model or args.like,
        "cpu": processor(),
        "threads": args.threads,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["python", "-m", "scripts.bench.peers", *sys.argv[1:]]),
        "machine": machine,
    }
    return [{"engine": name, **common, **found[name]} for name in names]


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


def most_sequences(name: str) -> int:
    """Return how many sequences an engine can decode together."""
    traits = TRAITS.get(name.rsplit("-", 1)[0])
    return (traits.most_rows if traits else 0) or ROWS


def measure(
    processes: dict[str, EngineProcess], limits: Limits, runs: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Return the rates of each engine's runs, and what the machine allowed in each turn."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
    machine: dict[str, list[float]] = {}
    seeds = np.random.SeedSequence(1).generate_state((runs + 1) * len(SHAPES)).tolist()
    for i in range(runs + 1):
        print(f"run {i} of {runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for shape, (batch, prompt, new) in SHAPES.items():
            seed = seeds.pop()
            for name, process in processes.items():
                if batch > most_sequences(name):
                    continue
                try:
                    with alone():
                        run = process.run(prompt, new, seed, batch)
                except EngineFailed as e:
                    raise EngineFailed(f"{name}, {shape}: {e}; the other engines of this piece by --only") from None
                if i:  # the first warms up
                    found[name].setdefault(shape, []).append(round(rate(run, batch, prompt, new), 1))
            with alone():
                for name, value in limits.measured().items():
                    machine.setdefault(name, []).append(round(value, 1))
    return found, machine


def rate(run: Run, batch: int, prompt: int, new: int) -> float:
    return batch * (new - 1) / run.decode_s if new > 1 else prompt / run.prefill_s


def cold_start(name: str, folder: Path, vocabulary: int, threads: int, sampler: str) -> float:
    """Return the seconds from the start of a process to the end of its first text."""
    with alone():
        began = time.perf_counter()
        with start(name, folder, vocabulary, threads, sampler) as process:
            process.run(*COLD)
            return time.perf_counter() - began


def print_rows(rows: Sequence[Row]) -> None:
    """Print the medians to stderr, and the rows as one JSON object."""
    print(f"{'':20}" + "".join(f"{c:>12}" for c in [*SHAPES, "load_s", "rss_mb", "cold_s"]), file=sys.stderr)
    for row in rows:
        cells = str(row.get("error", ""))[:80]
        if not cells:
            rates = [statistics.median(row["rates"][s]) if s in row["rates"] else "-" for s in SHAPES]
            cells = "".join(f"{c!s:>12}" for c in [*rates, row["load_s"], row["rss_mb"], min(row["cold_s"])])
        print(f"{row['engine']:20}{cells}", file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
