"""Times of single steps of the native engine, in a process of their own: rows.py starts it for each of its processes.

The kernels' library is called directly, by its C interface, so that builds older than this checkout can stand beside
its own. Steps of different rows and builds take turns: A B, then B A. Run as a program, this file reads an `Order` as
its argument and prints what it has measured, a line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.bench.busy import busy_processes
from scripts.bench.machine import PASSES, Probe, Step
from server.catalogue.architecture import Architecture
from server.catalogue.engines import CACHE_SCALE_BYTES, choose_cache
from server.engines.base import KV
from server.engines.native import NativeEngine, shape_of

Elements = NDArray[np.floating | np.signedinteger]
CHOSEN_CACHE = 6
"""Version of the kernels from which on a model says what its KV cache is made of."""
ASLEEP_S = 0.001
"""Pause before the machine is measured: the kernels' threads look for another step for a while, then sleep."""
TIMED = 3
"""Steps of a turn that count, after one that brings back what the others have displaced."""
PREFILL_TURNS = 3
"""A prefill takes as long as dozens of steps: it is in every third turn only."""
BUSY_TURN_S = 2.0
"""Length of a turn beside busy processes: hundreds of slices of the scheduler, and some trials of another number of
threads.
"""


@dataclass(frozen=True)
class Build:
    """A library of the kernels, and the threads that it runs with.

    Without a library it is the installed one through the daemon's own engine, which may take fewer threads.
    """

    name: str
    library: str
    threads: int
    cache: str | None = None
    """What its KV cache is made of; None: the precision's default."""


@dataclass(frozen=True)
class Order:
    """Everything that a process measures."""

    arch: dict[str, Any]
    precision: str
    weights: str
    """The file that `Layout.write` made."""
    instruction_set: str
    builds: list[Build]
    steps: list[Step]
    turns: int
    threads: int
    """Threads of the machine's own figures."""
    probe: str
    last_first: bool = False
    """The last build's model is made first, and gets the memory that the first's would have had."""
    busy: int = 0
    busy_ms: float = 0
    period_ms: float = 0


class Timed(Protocol):
    """What computes steps."""

    def time(self, step: Step, rng: np.random.Generator) -> float:
        """Compute random tokens; return the milliseconds that the call took."""
        ...


class Model:
    """A model in the kernels, with made-up keys and values."""

    def __init__(self, order: Order, build: Build) -> None:
        arch, self._rows = Architecture(**order.arch), max(step.rows for step in order.steps)
        self._kernels = ctypes.CDLL(build.library)
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._kernels.gpt2d_new.restype = self._kernels.gpt2d_weights.restype = pointer
        self._kernels.gpt2d_weights.argtypes = [pointer, ctypes.POINTER(ctypes.c_size_t)]
        self._kernels.gpt2d_restore.argtypes = [pointer, integer, integer, pointer, pointer]
        self._kernels.gpt2d_forward.argtypes = [pointer, integer, *[pointer] * 3, integer, *[pointer] * 4]
        weights = np.fromfile(order.weights, np.uint8)
        cache = build.cache if self._kernels.gpt2d_version() >= CHOSEN_CACHE else choose_old_cache(order.precision)
        shape, needed = shape_of(arch, order.precision, cache), ctypes.c_size_t()
        for shape.tied in (1, 0):  # the file's size says which
            self._model = pointer(
                self._kernels.gpt2d_new(ctypes.byref(shape), self._rows, build.threads, order.instruction_set.encode())
            )
            if not self._model:
                sys.exit(
                    f"{build.library} makes no such model: there is no memory for it, or no {order.instruction_set}"
                )
            self.address = self._kernels.gpt2d_weights(self._model, ctypes.byref(needed))
            if needed.value == len(weights):
                break
            self._kernels.gpt2d_free(self._model)
        else:
            sys.exit(f"{build.library} has another layout of the weights: {needed.value} bytes, not {len(weights)}")
        self.size = needed.value
        ctypes.memmove(self.address, weights.ctypes.data, self.size)
        self._logits = np.empty((self._rows, arch.vocabulary), np.float32)
        self._vocabulary = arch.vocabulary
        self._fill(cache_of(arch, order, cache))

    def _fill(self, values: Elements) -> None:
        """Write keys and values into every row as far as a step reads them: memory that nobody wrote is not there."""
        for row in range(self._rows if values.size else 0):
            _check(self._kernels.gpt2d_restore(self._model, row, values.shape[2], _at(values), _at(values)))

    def time(self, step: Step, rng: np.random.Generator) -> float:
        count = step.rows * step.tokens
        ids = rng.integers(0, self._vocabulary, count).astype(np.int32)
        rows = np.repeat(np.arange(step.rows, dtype=np.int32), step.tokens)
        positions = np.tile(np.arange(step.past, step.past + step.tokens, dtype=np.int32), step.rows)
        wanted = np.arange(step.tokens - 1, count, step.tokens, dtype=np.int32)
        arrays = _at(ids), _at(rows), _at(positions), len(wanted), _at(wanted), _at(self._logits), None, None
        began = time.perf_counter()
        code = self._kernels.gpt2d_forward(self._model, count, *arrays)
        took = time.perf_counter() - began
        _check(code)
        return took * 1e3


class Engine:
    """The daemon's engine with the same model, which decides how many threads take each step."""

    def __init__(self, order: Order, build: Build) -> None:
        arch = Architecture(**order.arch)
        rows = max(step.rows for step in order.steps)
        self._vocabulary = arch.vocabulary
        self._engine = NativeEngine(
            arch,
            Path(order.weights),
            order.precision,
            rows,
            build.threads,
            cache=build.cache,
            instruction_set=order.instruction_set,
        )
        values = cache_of(arch, order, build.cache)
        for row in range(rows if values.size else 0):
            self._engine.restore(row, KV(values, values))

    def time(self, step: Step, rng: np.random.Generator) -> float:
        ids = rng.integers(0, self._vocabulary, step.rows * step.tokens).tolist()
        began = time.perf_counter()
        if step.tokens == 1:
            self._engine.decode(ids, [step.past] * step.rows)
        else:
            self._engine.prefill(0, ids, step.past, [step.tokens - 1])
        return (time.perf_counter() - began) * 1e3


def choose_old_cache(precision: str) -> str:
    """Return what the KV cache is made of in builds that have no choice."""
    return "fp32" if precision == "fp32" else "fp16"


def cache_of(arch: Architecture, order: Order, cache: str | None) -> Elements:
    """Return made-up keys, or values, of a row as the kernels restore them, as far as a step reads it."""
    positions = max(step.past for step in order.steps)
    values = np.random.default_rng(0).normal(0, 1, (arch.layers, arch.heads, positions, arch.head)).astype(np.float32)
    cache = choose_cache("native", order.precision, cache)
    if cache != "int8":
        return values.astype(np.float16 if cache == "fp16" else np.float32)
    scales = np.maximum(np.abs(values).max(axis=3, initial=0, keepdims=True), 1e-6) / np.float32(127)
    found = np.empty((*values.shape[:3], arch.head + CACHE_SCALE_BYTES), np.int8)
    found[..., : arch.head], found[..., arch.head :] = np.rint(values / scales), scales.view(np.int8)
    return found


def _at(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)


def _check(code: int) -> None:
    if code:
        sys.exit(f"the kernels refuse the step, or have no memory for it (code {code})")


@dataclass
class Times:
    """Times of a step with one build, turn by turn, and what the machine could do beside each turn."""

    ms: list[list[float]] = field(default_factory=list)
    read_gb_s: list[float] = field(default_factory=list)
    gmac_s: list[float] = field(default_factory=list)


def measure(order: Order) -> dict[str, Any]:
    models = make_models(order)
    first = next(model for model in models if isinstance(model, Model))
    probe, rng = Probe(Path(order.probe), order.threads), np.random.default_rng(1)

    def machine(model: Timed, passes: int = 1) -> tuple[float, float]:
        time.sleep(ASLEEP_S)
        read = model if isinstance(model, Model) else first
        read_gb_s = probe.read_gb_s(read.address, read.size, passes)
        return read_gb_s, probe.gmac_s(order.instruction_set.partition(":")[0], order.precision, passes)

    load, meeting_us = os.getloadavg()[0], probe.meeting_us()
    quiet = machine(first, PASSES)
    sections = []
    for past in dict.fromkeys(step.past for step in order.steps):
        times = {step: [Times() for _ in models] for step in order.steps if step.past == past}
        with busy_processes(order.busy, order.busy_ms, order.period_ms):
            for turn in range(order.turns):
                take_turn(turn, models, times, order, rng, (lambda _: quiet) if order.busy else machine)
        sections += [{"step": asdict(step), "builds": [asdict(t) for t in found]} for step, found in times.items()]
    return {"meeting_us": round(meeting_us, 3), "load_average": round(load, 2), "sections": sections}


def make_models(order: Order) -> list[Model | Engine]:
    """Return the builds' models in the builds' order."""
    made = {
        build: Model(order, build) if build.library else Engine(order, build)
        for build in (reversed(order.builds) if order.last_first else order.builds)
    }
    return [made[build] for build in order.builds]


def take_turn(
    turn: int,
    models: Sequence[Timed],
    times: dict[Step, list[Times]],
    order: Order,
    rng: np.random.Generator,
    machine: Callable[[Timed], tuple[float, float]],
) -> None:
    """Have each build compute some steps of each kind, in the other order than in the turn before; add their times.

    The machine is measured before and after each build's: what counts is the mean time of these two. It reads that
    build's own weights: those of another would take their place in the caches.
    """
    for step, lists in times.items():
        if step.tokens > 1 and turn % PREFILL_TURNS:
            continue
        pairs = list(zip(models, lists, strict=True))
        for model, found in pairs if turn % 2 == 0 else reversed(pairs):
            before = machine(model)
            model.time(step, rng)
            until = time.perf_counter() + (BUSY_TURN_S if order.busy else 0)
            taken = [model.time(step, rng) for _ in range(1 if step.tokens > 1 else TIMED)]
            while time.perf_counter() < until:
                taken.append(model.time(step, rng))
            after = machine(model)
            found.ms.append([round(ms, 4) for ms in taken])
            read_gb_s, gmac_s = (statistics.harmonic_mean(both) for both in zip(before, after, strict=True))
            found.read_gb_s.append(round(read_gb_s, 2))
            found.gmac_s.append(round(gmac_s, 1))


def main() -> None:
    order = json.loads(sys.argv[1])
    order["builds"] = [Build(**build) for build in order["builds"]]
    order["steps"] = [Step(**step) for step in order["steps"]]
    print(json.dumps(measure(Order(**order))))


if __name__ == "__main__":
    main()
