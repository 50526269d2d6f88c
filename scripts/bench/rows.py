#!/usr/bin/env python3
"""Measure steps of the native engine by their number of rows, each beside L: what the machine allowed in that process.

    python -m scripts.bench.rows --like gpt2
    python -m scripts.bench.rows --like gpt2 --precisions int8 --rows 8 --past 33 --processes 1
    python -m scripts.bench.rows --like gpt2 --precisions int8 --against build/before/libgpt2d_kernels.so
    python -m scripts.bench.rows --like gpt2 --precisions int8 --rows 1,8 --past 33 --busy 1 --busy-share 5/16

The kernels are called directly, without a daemon and without a sampler, with made-up keys and values. Steps of all rows
take turns within a process, a few of the same kind in each; there are several processes, since where their memory lies
and what others do on the machine differ by a tenth. The machine is measured too, by as many threads as the steps have:

    B   GB/s that memory is read with: a pass of loads over these weights
    C   GMAC/s that the format can do: 0.76 of the dot products alone (blocks of 32 inputs have scales), at fp32 all of
        the fused multiply-adds
    L   max(bytes of weights / B, products / C) + bytes of keys and values / B + 0.1 ms

A machine that others share changes within seconds: memory may be half as fast, and arithmetic too. So both are measured
right before and after each turn, which is judged by an L of its own. Judge a step by `x L`, the median of all turns'
time over L, and not by another run's milliseconds; `least` and `most` are those of the processes. ms, B, C, L, GB/s
(weights, keys and values) and GMAC/s (matrices) are medians of all turns, too.

--against has a second build of the kernels take turns with the first (A B, then B A), --against-cache the same kernels
with another KV cache: `x first` is its time over that of the first, the mean of two medians: of the turns that either
begins. Every other process makes the models in the other order: have an even number of them. --busy runs other
processes beside the steps, and has three take turns: all threads, one, and as many as the daemon's engine chooses;
times of a turn are then means, since what counts is how many tokens come in a second, and B and C are those of the
quiet machine before.
Tables go to stderr. The one line on stdout is a JSON object with every time and with the state of the machine: keep it
with the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from protocol.errors import Gpt2dError
from scripts.bench.arguments import add_place, find_model
from scripts.bench.engine import as_module, module_environment
from scripts.bench.machine import Amount, Step, amount, compile_probe
from scripts.bench.peers import alone
from scripts.bench.steps import Build, Order
from server.catalogue.architecture import PUBLISHED, Architecture
from server.catalogue.engines import TRAITS, instruction_sets, native_problem
from server.checkpoint.lora import open_weights
from server.checkpoint.tensors import expected_shapes
from server.convert.native_layout import FILE, Layout, Tensors
from server.gateway.status import cpu

PASTS = (33, 300, 900)
PROCESS_S = 1800


def numbers(text: str) -> list[int]:
    """Parse numbers, as in 1,8. Raises: ValueError."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 0:
        raise ValueError(text)
    return found


def share(text: str) -> tuple[float, float]:
    """Parse how many milliseconds of how many, as in 5/16. Raises: ValueError."""
    busy, period = (float(word) for word in text.split("/"))
    if not 0 < busy <= period:
        raise ValueError(text)
    return busy, period


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a model of the daemon: demo, or a folder of --models-dir")
    which.add_argument("--like", choices=list(PUBLISHED), help="made-up weights of these shapes")
    names = ",".join(TRAITS["native"].precisions)
    made.add_argument("--precisions", default=names, metavar="A,B,...", help="default: %(default)s")
    made.add_argument(
        "--rows",
        type=numbers,
        default=[1, 2, 4, 8, 16],
        metavar="1,8",
        help="sequences in a step (default: 1,2,4,8,16)",
    )
    made.add_argument(
        "--past", type=numbers, metavar="33,300", help="tokens before a step (default: what fits of 33,300,900)"
    )
    made.add_argument("--prefill", type=int, metavar="N", help="a prompt's tokens; 0: none (default: 512, if it fits)")
    made.add_argument("--processes", type=int, default=4, help="of each precision (default: %(default)s)")
    made.add_argument(
        "--turns",
        type=int,
        default=20,
        help="turns of each step, of three steps each (default: %(default)s; 3 with --busy)",
    )
    made.add_argument(
        "--instruction-set",
        metavar="NAME",
        help="avx512, avxvnni or avx2 (default: the best here); with :ahead or :wait behind it few rows fetch weights "
        "ahead, or leave that to the processor (default: what suits it)",
    )
    made.add_argument("--kernels", type=Path, metavar="FILE", help="libgpt2d_kernels.so (default: the installed one)")
    made.add_argument("--against", type=Path, metavar="FILE", help="another one, to take turns with it")
    made.add_argument(
        "--against-cache", metavar="fp16", help="the KV cache of what takes turns (default: as the first)"
    )
    made.add_argument("--busy", type=int, default=0, metavar="N", help="other processes, each busy on one core")
    made.add_argument(
        "--busy-share",
        type=share,
        default=(16.0, 16.0),
        metavar="5/16",
        help="busy for 5 of each 16 ms (default: always)",
    )
    add_place(made)
    return made


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str
    arch: Architecture
    weights: Tensors


def subject(args: argparse.Namespace) -> Subject:
    """Return a model of this disk, or a published shape with some random numbers again and again."""
    if args.like:
        arch = PUBLISHED[args.like]
        some = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)
        tensors = {name: np.resize(some, shape) for name, shape in expected_shapes(arch).items()}
        return Subject(f"like {args.like}", arch, tensors)
    model = find_model(args.model, args.like, args.models_dir)
    if model.folder is None or model.architecture is None:
        raise RuntimeError(f"{model.name} was found without its folder")
    try:
        return Subject(model.name, model.architecture, open_weights(model.folder, model.architecture, None))
    except Gpt2dError as e:
        sys.exit(str(e))


def steps_of(args: argparse.Namespace, arch: Architecture) -> list[Step]:
    """Return what is measured. Exits with a sentence where that does not fit into the context."""
    pasts = args.past or [past for past in PASTS if past < arch.context]
    prefill = min(512, arch.context) if args.prefill is None else args.prefill
    if max(*pasts, prefill - 1) >= arch.context:
        sys.exit(f"--past and --prefill: this model's context is {arch.context} tokens")
    steps = [Step(rows, past) for past in pasts for rows in args.rows if rows]
    return steps + ([Step(1, 0, prefill)] if prefill else [])


def builds_of(args: argparse.Namespace) -> list[Build]:
    """Return the builds that take turns, the first of which the others are compared with."""
    import gpt2d_kernels

    ours = args.kernels or gpt2d_kernels.library()
    builds = [Build("ours", str(ours), args.threads)]
    if args.against or args.against_cache:
        builds.append(Build("against", str(args.against or ours), args.threads, args.against_cache))
    if args.busy and args.threads > 1:
        builds += [Build(f"{build.name}, 1 thread", build.library, 1) for build in builds]
        builds += [] if args.kernels else [Build("ours, threads chosen", "", args.threads)]
    return builds


def run(order: Order) -> dict[str, Any]:
    """Measure in a process. Exits where it fails, which has said why."""
    command = as_module("scripts.bench.steps", json.dumps(asdict(order)))
    with alone():
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=PROCESS_S, env=module_environment(), check=False
        )
    if done.returncode:
        sys.exit(f"the process of the steps ended with exit code {done.returncode}; the lines above say why")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@dataclass(frozen=True)
class Turns:
    """Turns of a step with one build in one process."""

    ms: list[float]
    """Of each turn: the median of its steps, or beside busy processes their mean."""
    read_gb_s: list[float]
    gmac_s: list[float]
    least_ms: list[float]
    """L of each turn."""

    @property
    def over(self) -> list[float]:
        """Each turn's time over its L."""
        return [ms / least for ms, least in zip(self.ms, self.least_ms, strict=True)]


def turns_of(process: dict[str, Any], section: int, build: int, work: Amount, *, busy: bool) -> Turns:
    """Return what a process has measured of a step with a build."""
    found = process["sections"][section]["builds"][build]
    middle, machine = statistics.fmean if busy else statistics.median, (found["read_gb_s"], found["gmac_s"])
    return Turns(
        [middle(ms) for ms in found["ms"]], *machine, [work.least_ms(*of) for of in zip(*machine, strict=True)]
    )


def over_first(first: Sequence[Turns], other: Sequence[Turns]) -> float:
    """Return a build's time over that of the first, each with its turns of some processes.

    Who begins a turn has ended the one before, and its weights are still in the caches: the medians of the turns that
    either begins are averaged.
    """
    halves = [
        [t / f for a, b in zip(first, other, strict=True) for f, t in zip(a.ms[half::2], b.ms[half::2], strict=True)]
        for half in range(2)
    ]
    return statistics.geometric_mean(statistics.median(half) for half in halves if half)


def print_table(order: Order, arch: Architecture, processes: Sequence[dict[str, Any]]) -> None:
    median = statistics.median
    say(
        f"\n{order.precision}, {order.instruction_set}, {order.threads} threads, {len(processes)} processes, "
        f"a meeting of the threads {median(process['meeting_us'] for process in processes):.2f} us, "
        f"load average {max(process['load_average'] for process in processes):.1f}"
    )
    say(
        f"{'rows':>14}{'past':>6}{'ms':>9}{'B':>7}{'C':>6}{'L':>8}{'x L':>7}{'least':>7}{'most':>6}"
        f"{'GB/s':>7}{'GMAC/s':>8}{'tokens/s':>10}{'  x first' if len(order.builds) > 1 else ''}"
    )
    for i, section in enumerate(processes[0]["sections"]):
        step = Step(**section["step"])
        work = amount(arch, order.precision, step)
        of_first: list[Turns] = []
        for j, build in enumerate(order.builds):
            runs = [turns_of(process, i, j, work, busy=bool(order.busy)) for process in processes]
            times, over = [ms for run in runs for ms in run.ms], [median(run.over) for run in runs]
            ms = median(times)
            of_first = of_first or runs
            x_first = over_first(of_first, runs)
            say(
                f"{step.name if j == 0 else '':>14}{step.past:6}{ms:9.3f}"
                f"{median(b for run in runs for b in run.read_gb_s):7.1f}"
                f"{median(c for run in runs for c in run.gmac_s):6.0f}"
                f"{median(least for run in runs for least in run.least_ms):8.3f}"
                f"{median(x for run in runs for x in run.over):7.2f}{min(over):7.2f}{max(over):6.2f}"
                f"{(work.weight_bytes + work.kv_bytes) / ms / 1e6:7.1f}{work.macs / ms / 1e6:8.0f}"
                f"{step.rows * step.tokens / ms * 1e3:10.0f}"
                f"{f'{x_first:9.3f} {build.name}' if len(order.builds) > 1 else ''}"
            )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parsed = parser()
    args = parsed.parse_args()
    precisions = args.precisions.split(",")
    if unknown := set(precisions) - set(TRAITS["native"].precisions):
        parsed.error(f"unknown precision: {', '.join(sorted(unknown))}")
    if min(args.processes, args.turns, args.threads) < 1:
        parsed.error("--processes, --turns and --threads must be at least 1")
    if problem := native_problem():
        sys.exit(problem)
    of = subject(args)
    steps, builds = steps_of(args, of.arch), builds_of(args)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        probe = compile_probe(Path(folder))
        for precision in precisions:
            Layout(of.arch, of.weights, precision, lambda *_: None).write(Path(folder))
            order = Order(
                arch=asdict(of.arch),
                precision=precision,
                weights=str(Path(folder) / FILE),
                instruction_set=args.instruction_set or instruction_sets()[0],
                builds=builds,
                steps=steps,
                turns=min(args.turns, 3) if args.busy else args.turns,
                threads=args.threads,
                probe=str(probe),
                busy=args.busy,
                busy_ms=args.busy_share[0],
                period_ms=args.busy_share[1],
            )
            found[precision] = [run(replace(order, last_first=i % 2 == 1)) for i in range(args.processes)]
            print_table(order, of.arch, found[precision])
    print(
        json.dumps(
            {
                "model": of.name,
                "machine": cpu(),
                "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "instruction_set": args.instruction_set or instruction_sets()[0],
                "threads": args.threads,
                "busy": {"processes": args.busy, "ms": args.busy_share[0], "of_ms": args.busy_share[1]},
                "builds": [asdict(build) for build in builds],
                "precisions": found,
            }
        )
    )


if __name__ == "__main__":
    main()
