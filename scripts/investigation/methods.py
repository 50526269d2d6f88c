"""Parts that optimisation_methods and onnx_methods share: methods in processes, groups that fit into memory, tables."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import psutil

from scripts.bench.engine import EngineFailed, EngineProcess, Variant, as_module
from scripts.investigation.harness import WARMUPS, Plan, Row, Trial, measure, model_of, parse, parser, runs_of
from scripts.investigation.method_child import PROGRAM, Order
from scripts.investigation.method_figures import measured, print_tables, runs_in, summary
from scripts.investigation.texts import is_trained
from server.catalogue.architecture import PUBLISHED, Architecture, read_architecture
from server.catalogue.catalogue import DEMO, DEMO_FOLDER, Model

LENGTHS = (8, 25, 100)
"""Numbers of new tokens. Every run writes the first, and the longer ones where they do not take too long."""
LIMITS_S = {25: (1.0, 5.0), 100: (0.5, 5.0)}
"""Time that they may take: in every run, and in the first FEW_RUNS.

A sample off_25 is how far the time would be off, as a share, that follows from the first 8 tokens.
"""
FEW_RUNS = 1
WARM_UP_TOKENS = 3
LOAD_S = 600.0
GROUP_SHARE = 0.63
"""Share of the machine's memory for trials that live together. The rest is for loading them, and for the files."""
TORCH_BYTES, OTHER_BYTES = 450 << 20, 120 << 20
"""Memory of a process with and without torch, before it has a model."""
FIDELITY_TOKENS, QUICK_FIDELITY_TOKENS = 4096, 256


class MethodProcess(EngineProcess):
    """Child; its answers are waited for only for a limited time."""

    def __init__(self, order: Order, limit_s: float = LOAD_S) -> None:
        """Start it. Raises: EngineFailed."""
        self._limit_s = limit_s
        variant = Variant(order.loader, order.precision, order.folder, order.threads)
        super().__init__(variant, as_module(PROGRAM, json.dumps(asdict(order))))

    def ask(self, **task: object) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the method's process has no stdin")
        print(json.dumps(task), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        return self._read()

    def _read(self) -> dict[str, Any]:
        began, timer = time.monotonic(), threading.Timer(self._limit_s, self._process.kill)
        timer.start()
        try:
            answer = super()._read()
        except EngineFailed:
            if time.monotonic() - began < self._limit_s:
                raise
            raise EngineFailed(f"it took longer than {self._limit_s:.0f} s") from None
        finally:
            timer.cancel()
        if "problem" in answer:
            self.close()
            raise EngineFailed(answer["problem"])
        return answer

    def close(self) -> None:
        """End it. It has nothing to lose: one that does not end at once is killed."""
        try:
            super().close()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Setup:
    """Model to measure, under the name of its size."""

    size: str
    model: Model
    threads: int
    models_dir: Path
    quick: bool

    @property
    def architecture(self) -> Architecture:
        return read_architecture(self.model.folder or Path())

    @property
    def fidelity_tokens(self) -> int:
        """Number of tokens to compare with full precision.

        0 where the weights are random, or a text to measure with would not be the model's own kind.
        """
        if self.size != DEMO:
            return 0
        return QUICK_FIDELITY_TOKENS if self.quick else FIDELITY_TOKENS


class Maker(Protocol):
    def __call__(self, method: Method, setup: Setup, /) -> AbstractContextManager[Trial]: ...


class MethodTrial:
    """Trial of a method that writes one text after the other."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Start its process. Raises: EngineFailed."""
        self._lengths = method.lengths
        self._fidelity_tokens = setup.fidelity_tokens if method.judged else 0
        self._process = MethodProcess(method.order(setup), method.limit_s)
        self._prefill_s, self._step_s = 0.0, 0.0

    def run(self, seed: int) -> dict[str, float]:
        new = WARM_UP_TOKENS
        if seed >= WARMUPS:
            new = longest(self._lengths, self._prefill_s, self._step_s, seed - WARMUPS)
        self._process.ask(new_tokens=new, seed=seed)
        stamps = self._process.answer()["stamps"]
        self._prefill_s, self._step_s = stamps[0], (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        found = {"prefill_ms": 1e3 * stamps[0], "tok_s": 1 / self._step_s}
        for length in self._lengths:
            if length <= new:
                whole, decode = stamps[length - 1], stamps[length - 1] - stamps[0]
                found |= {f"whole_{length}_ms": 1e3 * whole, f"decode_{length}_ms": 1e3 * decode}
                if length == self._lengths[0]:
                    step = decode / (length - 1)
                else:
                    found[f"off_{length}"] = (stamps[0] + (length - 1) * step) / whole - 1
        return found

    def facts(self) -> dict[str, Any]:
        measured = {"load_s": round(self._process.load_s, 2), "rss_mb": round(self._process.rss_mb())}
        self._process.ask(fidelity_tokens=self._fidelity_tokens)
        return measured | self._process.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


def longest(lengths: Sequence[int], prefill_s: float, step_s: float, run: int) -> int:
    """Return the number of tokens that a run writes."""
    allowed = [n for n in lengths[1:] if prefill_s + n * step_s <= LIMITS_S[n][run < FEW_RUNS]]
    return max(allowed, default=lengths[0])


@dataclass(frozen=True)
class Method:
    """Row of the table for each size.

    The figures at its end are about right; groups and the estimate of the time follow from them.
    """

    name: str
    loader: str = "method_child.own"
    precision: str = "fp32"
    option: str = ""
    against: str = ""
    """Method with which it is compared instead of the first (itself: with none); both live at the same time."""
    threads: int | None = None
    lengths: Sequence[int] = LENGTHS
    limit_s: float = LOAD_S
    make: Maker = MethodTrial
    skip: Callable[[Architecture], str] = lambda _: ""
    """Function that returns why it is not measured for a model; empty: it is."""
    tok_s: float = 23.0
    """Tokens/s of gpt2 on two cores."""
    weight_bytes: float = 4.0
    torch: bool = True
    processes: int = 1
    judged: bool = True
    """Whether its fidelity is measured: not where it is the same as another's for certain."""
    run_s: float | None = None
    """Seconds that a run of gpt2 takes, where it is not a text of 25 or 100 tokens."""

    def order(self, setup: Setup) -> Order:
        return Order(self.loader, self.precision, self.option, str(setup.model.folder), self.threads or setup.threads)

    def bytes(self, arch: Architecture) -> float:
        return (TORCH_BYTES if self.torch else OTHER_BYTES) + self.weight_bytes * arch.parameters

    def seconds(self, arch: Architecture, runs: int) -> float:
        scale = arch.parameters / 124e6
        step = max(scale / self.tok_s, 0.003 if self.torch else 0.0005)
        start = (4.0 if self.torch else 0.5) + 0.5 * self.weight_bytes * scale
        if self.run_s is not None:
            return start + (runs + WARMUPS) * scale * self.run_s
        prefill = scale * 0.05
        tokens = [longest(self.lengths, prefill, step, run) for run in range(runs)]
        return start + sum(prefill + n * step for n in (*tokens, *[WARM_UP_TOKENS] * WARMUPS))


def above(parameters: float) -> Callable[[Architecture], str]:
    """Return a `skip` that leaves a method that takes long out of models with more parameters."""
    reason = f"left out above {parameters / 1e6:.0f} million parameters, where it takes long; "
    reason += "smaller models show what it does"
    return lambda arch: reason if arch.parameters > parameters else ""


class Skipped(Exception):
    """Reason why a method is not measured."""


def groups(methods: Sequence[Method], arch: Architecture) -> list[list[Method]]:
    """Return the methods that live at the same time.

    Each group begins with the first method of all, with which the others are compared.
    """
    baseline, *others = methods
    room = GROUP_SHARE * psutil.virtual_memory().total - baseline.bytes(arch)
    together: dict[str, list[Method]] = {}
    for method in others:
        together.setdefault(method.against or method.name, []).append(method)
    packed: list[list[Method]] = []
    for unit in together.values():
        size = memory(unit, arch)
        group = next((g for g in packed if memory(g, arch) + size <= room), None)
        if group is None:
            packed.append(group := [])
        group.extend(unit)
    return [[baseline, *group] for group in packed] or [[baseline]]


def memory(methods: Sequence[Method], arch: Architecture) -> float:
    return sum(method.bytes(arch) for method in methods if not method.skip(arch))


def plans(methods: Sequence[Method], setup: Setup, group: int) -> list[Plan]:
    return [Plan(key(method, setup, group), partial(start, method, setup)) for method in methods]


def key(method: Method, setup: Setup, group: int) -> dict[str, str | int | float | bool]:
    return {
        "model": setup.size,
        "trained": is_trained(setup.model),
        "method": method.name,
        "threads": method.threads or setup.threads,
        "group": group,
    }


def start(method: Method, setup: Setup) -> AbstractContextManager[Trial]:
    if reason := method.skip(setup.architecture):
        raise Skipped(reason)
    return method.make(method, setup)


def estimate(methods: Sequence[Method], arch: Architecture, runs: int) -> float:
    """Return the seconds that a model takes, without what is built once."""
    return sum(m.seconds(arch, runs) for group in groups(methods, arch) for m in group if not m.skip(arch))


def only_of(methods: Sequence[Method], names: Sequence[str] | None) -> Iterator[Method]:
    """Yield the first, and those that are asked for with what they are compared with."""
    wanted = {*(names or [m.name for m in methods])}
    wanted |= {m.against for m in methods if m.name in wanted}
    for i, method in enumerate(methods):
        if i == 0 or method.name in wanted:
            yield method


# A script


def investigate(
    doc: str | None,
    name: str,
    methods_of: Callable[[str, int, Sequence[str]], list[Method]],
    lengths: Sequence[int],
    more: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Measure all methods of all sizes, and print what was found; `more` prints what has no place in the table."""
    made = parser(doc, name)
    made.add_argument(
        "--only", nargs="+", metavar="METHOD", help="these rows alone, and those that they are compared with"
    )
    args, results = parse(made, name)
    every = {size: methods_of(size, args.threads, args.sizes) for size in args.sizes}
    known = {m.name for methods in every.values() for m in methods}
    if unknown := {*(args.only or [])} - known:
        made.error(f"unknown method: {', '.join(sorted(unknown))}; the methods are: {', '.join(sorted(known))}")
    chosen = {size: list(only_of(methods, args.only)) for size, methods in every.items()}
    expected = sum(
        estimate(methods, shape_of(size), runs_of(size, quick=args.quick)) for size, methods in chosen.items()
    )
    minutes = f"about {expected / 60:.0f} min on two idle cores if nothing is measured yet"
    print(f"{name}: {minutes}, and a quarter more if nothing is built", file=sys.stderr, flush=True)
    rows: list[Row] = []
    began = time.monotonic()
    for size, methods in chosen.items():
        setup = Setup(size, model_of(size, args.models_dir), args.threads, args.models_dir, args.quick)
        packed = groups(methods, setup.architecture)
        for i, group in enumerate(packed, 1):
            rows += measure(
                results, plans(group, setup, i), runs_of(size, quick=args.quick), f"{size} {i}/{len(packed)}"
            )
    every_method = [m for methods in chosen.values() for m in methods]
    against = {m.name: m.against or every_method[0].name for m in every_method}
    found = summary(rows, against, lengths)
    print_tables(found, lengths)
    off = [
        abs(v)
        for row in rows
        for n in lengths
        if len(measured(row, n)) < runs_in(row)
        for v in row.samples.get(f"off_{n}", [])
    ]
    if off:
        print(f"\n~ times, in the runs that measured them, are {np.median(off):.1%} off in the median, ", end="")
        print(f"{max(off):.1%} at most")
    more(found)
    print(
        json.dumps(
            {
                "script": name,
                "rows": found,
                "file": str(args.json),
                "minutes": round((time.monotonic() - began) / 60, 1),
            }
        )
    )
    return found


def shape_of(size: str) -> Architecture:
    return PUBLISHED[size] if size != DEMO else read_architecture(DEMO_FOLDER)
