#!/usr/bin/env python3
"""Measure what the worker takes of a step beside its model: its own Python, and choosing the tokens.

    python -m scripts.bench.worker --sequences 8
    python -m scripts.bench.worker --sequences 8 --native gpt2

Streaming sequences decode together for --steps steps. The engine passes over more memory than the caches hold, as a
model does, and its time is taken off; with --native it is the daemon's own with one layer and the head of a published
shape at int8, whose threads choose the tokens, too. A made-up clock goes on by --step-ms with each step, so that as
many messages are packed as beside a model. Prints microseconds of a step, of them choosing the tokens, and of these the
kernels'; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeAlias
from unittest.mock import patch

import numpy as np

from protocol import messages as m
from scripts.reliability.fakes import FakeEngine, ListConnection
from server import link
from server.catalogue.architecture import PUBLISHED, Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tensors import expected_shapes
from server.checkpoint.tokenizer import read_tokenizer
from server.convert.native_layout import FILE, Layout
from server.engines.base import Engine, Hidden, Logits, Run
from server.engines.native import Choice, NativeEngine
from server.launch.spec import Spec
from server.link import FromWorker, Work
from server.worker.loop import Worker
from server.worker.sampling import sample
from server.worker.text import Text

ELSEWHERE_BYTES = 64 << 20
"""Memory that a step of the engine passes over, so that nothing of the worker's stays in the caches."""
VOCABULARY, CONTEXT = 50257, 1024
WARM_UP = 20
THREADS = 2
Ids: TypeAlias = Sequence[int]


class Timed(Engine, Protocol):
    """Engine that notes the time that it takes for steps, and for choosing tokens."""

    took_s: float
    chose_s: float


class IdleEngine(FakeEngine):
    """Engine whose logits are always the same few; it notes the time that it takes."""

    chose_s = 0.0

    def __init__(self, rows: int, tokens: int) -> None:
        """Make one of `rows` rows, that predicts the first `tokens` of the vocabulary alone."""
        super().__init__(rows, CONTEXT, VOCABULARY)
        self.took_s = 0.0
        self._same = np.full((rows, VOCABULARY), -30, np.float32)
        self._same[:, :tokens] = np.random.default_rng(0).normal(0, 3, (rows, tokens))
        self._step = np.empty_like(self._same)
        self._elsewhere = np.ones(ELSEWHERE_BYTES // 8)

    def prefill(self, row: int, ids: Ids, past: int, wanted: Ids, hidden: Hidden | None = None) -> Logits:  # noqa: ARG002
        return self._same[: len(wanted)].copy()

    def decode(self, ids: Ids, past: Ids, hidden: Hidden | None = None) -> Logits:  # noqa: ARG002
        began = time.perf_counter()
        self._elsewhere.sum()
        self._step[:] = self._same  # last, as a model writes them
        self.took_s += time.perf_counter() - began
        return self._step[: len(ids)]


class ShortEngine(NativeEngine):
    """The daemon's engine with one layer of a model, made-up weights and the threads of a small machine."""

    took_s = chose_s = 0.0

    def __init__(self, like: str, rows: int, tokens: int) -> None:
        """Make one whose choice is among all its tokens: `tokens` of them can be written down."""
        arch = replace(PUBLISHED[like], layers=1)
        some = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)
        weights = {name: np.resize(some, shape) for name, shape in expected_shapes(arch).items()}
        with tempfile.TemporaryDirectory() as folder:
            Layout(arch, weights, "int8", lambda *_: None).write(Path(folder))
            super().__init__(arch, Path(folder) / FILE, "int8", rows, THREADS)
        self._tokens = tokens

    def run(self, runs: Sequence[Run]) -> Logits:  # steps with guesses, too
        began = time.perf_counter()
        logits = super().run(runs).copy()
        logits[:, self._tokens :] = -np.inf
        self.took_s += time.perf_counter() - began
        return logits

    def prefill(self, row: int, ids: Ids, past: int, wanted: Ids, hidden: Hidden | None = None) -> Logits:
        logits = super().prefill(row, ids, past, wanted, hidden).copy()
        logits[:, self._tokens :] = -np.inf
        return logits

    def decode(self, ids: Ids, past: Ids, hidden: Hidden | None = None, best: Ids | None = None) -> Logits:
        began = time.perf_counter()
        logits = super().decode(ids, past, hidden, best)
        self.took_s += time.perf_counter() - began
        return logits

    def choose(self, logits: Logits, rows: Ids, choices: Sequence[Choice]) -> list[int]:
        began = time.perf_counter()
        tokens = super().choose(logits, rows, choices)
        self.chose_s += time.perf_counter() - began
        return [token % self._tokens for token in tokens]


class Packing(ListConnection):
    """Connection that packs what it is to send, and drops it."""

    def send(self, message: FromWorker) -> None:
        link.encode(message)
        self.messages += 1


def worker_of(engine: Timed, connection: Packing, arch: Architecture) -> Worker:
    spec = Spec(
        endpoint="", server_key="", identity="", model="demo", folder=str(DEMO_FOLDER), hub_cache="", models_dir="",
        engine="native", precision="int8", threads=1, rows=engine.rows, room=0, cache_dir="", cache_bytes=0,
    )  # fmt: skip
    return Worker(spec, connection, engine, Text(read_tokenizer(DEMO_FOLDER), arch), "digest", arch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--step-ms", type=float, default=4.0, help="a step of the model (default: %(default)s)")
    parser.add_argument("--strategy", choices=["sample", "greedy"], default="sample", help="default: %(default)s")
    parser.add_argument("--native", choices=list(PUBLISHED), help="the native engine with one layer of this shape")
    args = parser.parse_args()
    if not 1 <= args.steps <= 900 or args.sequences < 1:
        parser.error("--steps must be 1 to 900, and --sequences at least 1")

    arch = read_architecture(DEMO_FOLDER)
    connection = Packing()
    engine: Timed = IdleEngine(args.sequences, arch.vocabulary)
    if args.native:
        engine = ShortEngine(args.native, args.sequences, arch.vocabulary)
    worker = worker_of(engine, connection, arch)
    now, chosen_s = time.monotonic(), 0.0

    def timed(*given: object) -> list[int | Exception]:
        nonlocal chosen_s
        began = time.perf_counter()
        tokens = sample(*given)  # type: ignore[arg-type]  # whatever the runner gives it
        chosen_s += time.perf_counter() - began
        return tokens

    with patch("time.monotonic", lambda: now), patch("server.worker.runner.sample", timed):
        for i in range(args.sequences):
            request = m.Generate(
                prompt_ids=[5 + i] * 32, max_new_tokens=980, strategy=args.strategy, ignore_eos=True, stream=True
            )
            worker.take(Work(id=i, group=i, request=request))
        whole, choosing = [], []
        kernels = []
        for step in range(-args.sequences - WARM_UP, args.steps):
            now += args.step_ms / 1000
            engine.took_s = engine.chose_s = 0.0
            chosen_s = 0.0
            began = time.perf_counter()
            worker.step()
            worker.beat()
            took = time.perf_counter() - began - engine.took_s
            if step == 0:
                connection.messages = 0
            if step >= 0:
                whole.append(took * 1e6)
                choosing.append(chosen_s * 1e6)
                kernels.append(engine.chose_s * 1e6)
    figures = {
        "sequences": args.sequences,
        "step_us": round(statistics.mean(whole), 1),
        "step_us_p50": round(statistics.median(whole), 1),
        "choosing_us": round(statistics.mean(choosing), 1),
        "kernels_us": round(statistics.mean(kernels), 1),
        "rest_us": round(statistics.mean(whole) - statistics.mean(choosing), 1),
        "messages_a_step": round(connection.messages / args.steps, 2),
    }
    print(f"{figures['step_us']} us a step, {figures['choosing_us']} of them to choose {args.sequences} tokens")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
