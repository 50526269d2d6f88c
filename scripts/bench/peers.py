#!/usr/bin/env python3
"""Measure our engines beside those that others have built, in turns: the same model, threads and prompts for all.

    python -m scripts.bench.peers --pieces                     what there is to measure, and how long it takes
    python -m scripts.bench.peers --like gpt2 --piece int8     one piece
    python -m scripts.bench.peers --like gpt2                  all pieces of a model that are not measured yet
    python -m scripts.bench.peers --like gpt2 --quick --only native-int8,onnx-int8
    python -m scripts.bench.peers --like gpt2 --only native-int8,llama.cpp-q8_0 --busy 1     beside another busy process
    python -m scripts.bench.peers --like gpt2 --instruction-set avx2     our kernels and llama.cpp with this set alone
    python -m scripts.bench.peers --write                      the tables of README.md and docs/performance.md

A piece is a few engines that fit into the memory together, the default among them; what it measured is kept in
docs/results/peers.jsonl, a line for each engine, and not measured again on the same processor unless --again says so.

Each engine runs in a process of its own; runs alternate (A B A B), and one lock keeps other benchmarks of this machine
away from each. `decode1`, `decode8` and `decode16` are tokens a second of one, eight and sixteen sequences together (16
tokens of prompt; 48 new ones of one sequence, 16 of more), `prefill512` tokens of a prompt a second; medians of the
runs after a warm-up, end of text ignored, and `spread` is how far a run was from its median, at most. Engines that
write one text after the other are asked for one. `cold` is the time from the start of a new process to the end of its
first 25 tokens: import, load, prefill, decode, with the files in the system's cache. --sampler says how our own engines
choose tokens; the peers take the likeliest. With --busy others take their shares of the cores from the first run on,
also while the machine is measured.

B, C and L are measured in the same minutes, in each turn: what the machine itself allows (scripts/bench/machine.py).

What is missing is installed into build/peers first: llama.cpp is compiled for this processor, or for the set that
--instruction-set names, and OpenVINO's and CTranslate2's forms of the model are made in an environment of their own;
that takes minutes, once. An engine that cannot be had is reported with the reason.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
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
from scripts.bench.busy import busy_processes
from scripts.bench.engine import (
    SAMPLERS,
    EngineFailed,
    EngineProcess,
    Run,
    Variant,
    as_module,
    module_environment,
)
from scripts.bench.machine import Limits, can_measure, processor
from scripts.bench.peers_install import BUILD, SET_BUILDS, convert, environment, llama_for
from scripts.bench.peers_table import FILE, Row, rate, read, set_of, spread, write
from server.catalogue.architecture import PUBLISHED
from server.catalogue.engines import ENGINES, INSTRUCTION_SET, TRAITS, instruction_sets

LOCK = Path(tempfile.gettempdir()) / "gpt2d-bench.lock"
ROWS = 16
SHAPES = {"decode1": (1, 16, 48), "decode8": (8, 16, 16), "decode16": (ROWS, 16, 16), "prefill512": (1, 512, 1)}
"""Sequences, prompt tokens and new tokens of each measurement."""
WARM_UP_TOKENS = 4
"""New tokens that are written of each, at most, before it is measured."""
FEWEST_RUNS, MOST_RUNS = 3, 7
RUNS_S = 90
"""Runs of a piece: after the fewest, another one begins as long as they have taken no longer than this."""
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
OF_A_SET = ("native-", "llama.cpp-")
"""Engines that can be made to use an instruction set."""


@dataclass(frozen=True)
class Piece:
    """Engines that are measured together."""

    engines: tuple[str, ...]
    minutes: float
    """What it takes with gpt2 on two cores of a Xeon, about, once everything is installed."""
    large_minutes: float
    """The same with gpt2-large."""

    def of(self, instruction_set: str) -> tuple[str, ...]:
        """Return the engines that can use an instruction set; none where llama.cpp is not among them. "": all."""
        if not instruction_set:
            return self.engines
        found = tuple(name for name in self.engines if name.startswith(OF_A_SET))
        return found if any(name in PEERS for name in found) else ()


@dataclass(frozen=True)
class Setup:
    """What is the same for all engines that are measured together."""

    folder: Path
    vocabulary: int
    threads: int
    sampler: str
    instruction_set: str
    """Empty: each engine takes the best."""


PIECES = {
    "int8": Piece((DEFAULT, "llama.cpp-q8_0", "openvino-int8", "ctranslate2-int8", "onnx-int8"), 1.6, 4.5),
    "int4": Piece((DEFAULT, "native-int4", "llama.cpp-q4_0", "openvino-int4", "onnx-int4"), 1.4, 4.0),
    "fp32": Piece((DEFAULT, "native-fp32", "openvino-fp32", "ctranslate2-fp32"), 2.3, 7.5),
    "half": Piece((DEFAULT, "llama.cpp-f16", "transformers-bf16"), 1.9, 5.7),
    "transformers": Piece((DEFAULT, "transformers-fp32", "transformers-int8"), 2.0, 6.0),
    "optimum": Piece((DEFAULT, "optimum-fp32", "optimum-int8"), 0.9, 2.4),
}


@dataclass(frozen=True)
class Figures:
    """What `measure` found."""

    rates: dict[str, dict[str, list[float]]]
    """Tokens/s of each run, by engine and shape."""
    machine: dict[str, list[float]]
    """What the machine allowed in each turn."""
    failed: dict[str, str]
    """Engines that ended, and why."""


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
    parser.add_argument(
        "--instruction-set", choices=list(SET_BUILDS), default="", help="default: each engine takes the best it knows"
    )
    runs = f"{FEWEST_RUNS} to {MOST_RUNS}, as many as fit into {RUNS_S / 60:g} minutes"
    parser.add_argument("--runs", type=int, help=f"default: {runs}")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="greedy", help="default: %(default)s")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="with --only: others, each busy on a core")
    parser.add_argument("--quick", action="store_true", help="one run, and one cold start")
    parser.add_argument("--again", action="store_true", help="measure again what is measured already")
    parser.add_argument("--file", type=Path, default=FILE, help="where lines are kept (default: %(default)s)")
    add_place(parser)
    args = parser.parse_args()
    if args.runs is not None and args.runs < 1:
        parser.error("--runs must be at least 1")
    if args.busy and not args.only:
        parser.error("--busy is for --only: what is kept was measured on a quiet machine")
    if args.instruction_set and args.instruction_set not in (here := instruction_sets()):
        parser.error(f"--instruction-set {args.instruction_set} is not of this processor, which has {', '.join(here)}")
    if args.pieces:
        list_pieces(read(args.file), args.instruction_set)
    elif args.write:
        write(read(args.file))
    elif args.only:
        names = args.only.split(",")
        if unknown := [name for name in names if name not in (*OWN, *PEERS)]:
            parser.error(f"unknown engine: {', '.join(unknown)}; the engines are: {', '.join([*OWN, *PEERS])}")
        if args.instruction_set and (others := [name for name in names if not name.startswith(OF_A_SET)]):
            parser.error(f"an instruction set cannot be chosen for {', '.join(others)}")
        print_rows(run(args, "", names))
    else:
        usable = [name for name, piece in PIECES.items() if piece.of(args.instruction_set)]
        if args.piece and args.piece not in usable:
            parser.error(f"piece {args.piece} has only peers that choose their instruction set themselves")
        for name in [args.piece] if args.piece else usable:
            if not args.again and is_measured(read(args.file), args.model or args.like, name, args.instruction_set):
                print(f"{name}: measured already (--again measures it again)", file=sys.stderr)
                continue
            rows = run(args, name, PIECES[name].of(args.instruction_set))
            args.file.parent.mkdir(parents=True, exist_ok=True)
            with args.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            print_rows(rows)


def is_measured(rows: Sequence[Row], model: str, piece: str, instruction_set: str = "") -> bool:
    """Return whether every engine of a piece has a line of this processor, with figures or the reason why not."""
    wanted = (model, piece, processor(), instruction_set)
    there = {row["engine"] for row in rows if (row["like"], row["piece"], row["cpu"], set_of(row)) == wanted}
    return set(PIECES[piece].of(instruction_set)) <= there


def list_pieces(rows: Sequence[Row], instruction_set: str) -> None:
    for model in ("gpt2", "gpt2-large"):
        for name, piece in PIECES.items():
            if engines := piece.of(instruction_set):
                minutes = piece.minutes if model == "gpt2" else piece.large_minutes
                minutes *= len(engines) / len(piece.engines)
                state = "measured" if is_measured(rows, model, name, instruction_set) else f"some {minutes:.1f} min"
                command = ["python", "-m", "scripts.bench.peers", "--like", model, "--piece", name]
                command += ["--instruction-set", instruction_set] if instruction_set else []
                print(f"{shlex.join(command):95}{state}")


def run(args: argparse.Namespace, piece: str, names: Sequence[str]) -> list[Row]:
    """Measure engines in turns; return a row for each."""
    model = find_model(args.model, args.like, args.models_dir)
    if model.folder is None or model.architecture is None:
        raise RuntimeError(f"{model.name} was found without its folder")
    setup = Setup(model.folder, model.architecture.vocabulary, args.threads, args.sampler, args.instruction_set)
    found: dict[str, dict[str, Any]] = {}
    if not can_measure():
        sys.exit("this measures the machine, too, for which it needs a C compiler, and a processor with AVX2")
    limits = Limits(args.threads, args.instruction_set)
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for name in names:
            try:
                processes[name] = stack.enter_context(start(name, setup))
            except (EngineFailed, OSError, subprocess.SubprocessError) as e:
                found[name] = {"error": str(e)}
                print(f"{name}: {e}", file=sys.stderr)
        stack.enter_context(busy_processes(args.busy))
        figures = measure(processes, limits, 1 if args.quick else args.runs)
        for name, error in figures.failed.items():
            del processes[name]
            found[name] = {"error": error}
        for name, process in processes.items():
            found[name] = {
                "rates": figures.rates[name],
                "load_s": round(process.load_s, 2),
                "rss_mb": round(process.rss_mb()),
            }
    for name in processes:
        found[name]["cold_s"] = [round(cold_start(name, setup), 3) for _ in range(1 if args.quick else COLD_RUNS)]
    common = {
        "piece": piece,
        "like": args.model or args.like,
        "cpu": processor(),
        "instruction_set": args.instruction_set,
        "threads": args.threads,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["python", "-m", "scripts.bench.peers", *sys.argv[1:]]),
        "machine": figures.machine,
    }
    return [{"engine": name, **common, **found[name]} for name in names]


def start(name: str, setup: Setup) -> EngineProcess:
    """Start an engine, installing and converting what it needs. Raises: EngineFailed, OSError, SubprocessError."""
    engine, precision = name.rsplit("-", 1)
    variant = Variant(engine, precision, str(setup.folder), setup.threads, ROWS, setup.sampler)
    if name in OWN:
        forced = {INSTRUCTION_SET: setup.instruction_set} if setup.instruction_set else {}
        return EngineProcess(variant, variables=module_environment() | forced)
    built = BUILD / setup.folder.name
    built.mkdir(parents=True, exist_ok=True)
    python = environment("env", "requirements-peers.txt")
    convert(engine, precision, setup.folder, built)
    order = {
        "engine": engine,
        "precision": precision,
        "folder": str(setup.folder),
        "built": str(built),
        "threads": setup.threads,
        "vocabulary": setup.vocabulary,
    }
    folders = [llama_for(setup.instruction_set, python)] if setup.instruction_set else []
    command = as_module("scripts.bench.peer", json.dumps(order), python=python)
    return EngineProcess(variant, command, module_environment(*folders))


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


def measure(processes: dict[str, EngineProcess], limits: Limits, runs: int | None) -> Figures:
    """Measure every engine in turns; one that ends has no further turn."""
    figures = Figures({name: {} for name in processes}, {}, {})
    seeds = iter(np.random.SeedSequence(1).generate_state((runs or MOST_RUNS) * len(SHAPES) + len(SHAPES)).tolist())

    def turn(shape: str, most_tokens: int) -> Iterator[tuple[str, float]]:
        (batch, prompt, new), seed = SHAPES[shape], next(seeds)
        for name, process in processes.items():
            if batch > most_sequences(name) or name in figures.failed:
                continue
            try:
                with alone():
                    run = process.run(prompt, min(new, most_tokens), seed, batch)
            except EngineFailed as e:
                figures.failed[name] = f"{shape}: {e}"
                print(f"{name}, {figures.failed[name]}", file=sys.stderr)
            else:
                yield name, tokens_s_of(run, batch, prompt, min(new, most_tokens))

    for shape in SHAPES:
        list(turn(shape, WARM_UP_TOKENS))
    began, done = time.monotonic(), 0
    while more_runs(done, time.monotonic() - began, runs):
        done += 1
        print(f"run {done}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for shape in SHAPES:
            for name, tokens_s in turn(shape, SHAPES[shape][2]):
                figures.rates[name].setdefault(shape, []).append(round(tokens_s, 1))
            with alone():
                for limit, value in limits.measured().items():
                    figures.machine.setdefault(limit, []).append(round(value, 1))
    return figures


def more_runs(done: int, took_s: float, wanted: int | None) -> bool:
    """Return whether another run begins: those that are wanted, else by FEWEST_RUNS, MOST_RUNS and RUNS_S."""
    if wanted is not None:
        return done < wanted
    return done < FEWEST_RUNS or (done < MOST_RUNS and took_s < RUNS_S)


def tokens_s_of(run: Run, batch: int, prompt: int, new: int) -> float:
    return batch * (new - 1) / run.decode_s if new > 1 else prompt / run.prefill_s


def cold_start(name: str, setup: Setup) -> float:
    """Return the seconds from the start of a process to the end of its first text."""
    with alone():
        began = time.perf_counter()
        with start(name, setup) as process:
            process.run(*COLD)
            return time.perf_counter() - began


def print_rows(rows: Sequence[Row]) -> None:
    """Print the medians to stderr, and the rows as one JSON object."""
    columns = [*SHAPES, "spread", "load_s", "rss_mb", "cold_s"]
    print(f"{'':20}" + "".join(f"{c:>12}" for c in columns), file=sys.stderr)
    for row in rows:
        cells = str(row.get("error", ""))[:80]
        if not cells:
            rates = [f"{rate(row, shape):.1f}" if shape in row["rates"] else "-" for shape in SHAPES]
            values = [*rates, f"{spread(row):.0%}", row["load_s"], row["rss_mb"], statistics.median(row["cold_s"])]
            cells = "".join(f"{c!s:>12}" for c in values)
        print(f"{row['engine']:20}{cells}", file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
