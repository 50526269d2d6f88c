"""Trials that are more than one text by one process: two texts, a busy machine, scores, and texts through a daemon."""

from __future__ import annotations

import argparse
import hashlib
import signal
import time
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from protocol import Client, messages as m
from scripts.bench.arguments import start_daemon
from scripts.bench.busy import busy_processes
from scripts.investigation.harness import WARMUPS
from scripts.investigation.methods import LENGTHS, WARM_UP_TOKENS, Method, MethodProcess, MethodTrial, Setup
from server.catalogue.engines import REFERENCE

OWN = REFERENCE[0]
"""Engine that a daemon takes here."""
PAGE, MORE = 512, 32
"""Tokens of a page, and of those that are added to it."""
SCORED = 512
"""Tokens of a text that is scored."""
VERSE = "Tyger Tyger, burning bright,\nIn the forests of the night;\n"
VERSE += "What immortal hand or eye,\nCould frame thy fearful symmetry?\n"
PLAIN = "In the beginning of the year the king rode out, and with him went his brother, three old captains and a boy.\n"


class TwoTexts:
    """Trial of two texts, by one process or by two at the same time."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Start the processes. Raises: EngineFailed."""
        with ExitStack() as starting:
            self._processes = [
                starting.enter_context(MethodProcess(method.order(setup))) for _ in range(method.processes)
            ]
            self._stack = starting.pop_all()

    def run(self, seed: int) -> dict[str, float]:
        new = WARM_UP_TOKENS if seed < WARMUPS else LENGTHS[0]
        began = time.perf_counter()
        for first in range(0, 2, len(self._processes)):
            for i, process in enumerate(self._processes):
                process.ask(new_tokens=new, seed=2 * seed + first + i)
            for process in self._processes:
                process.answer()
        return {"tok_s": 2 * new / (time.perf_counter() - began)}

    def facts(self) -> dict[str, Any]:
        return {
            "load_s": round(max(p.load_s for p in self._processes), 2),
            "rss_mb": round(sum(p.rss_mb() for p in self._processes)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Beside(MethodTrial):
    """Trial beside another program, which keeps a core busy while it runs and is stopped in the turns of others."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Start both. Raises: EngineFailed."""
        super().__init__(method, setup)
        self._stack = ExitStack()
        (self._other,) = self._stack.enter_context(busy_processes(1))
        self._other.send_signal(signal.SIGSTOP)

    def run(self, seed: int) -> dict[str, float]:
        self._other.send_signal(signal.SIGCONT)
        try:
            return super().run(seed)
        finally:
            self._other.send_signal(signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        super().__exit__()


class Scored:
    """Trial of a text of SCORED tokens whose log-probabilities are computed by the method's process."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Start the process. Raises: EngineFailed."""
        self._process = MethodProcess(method.order(setup))

    def run(self, seed: int) -> dict[str, float]:
        self._process.ask(score_tokens=SCORED, seed=seed)
        return {"tok_s": SCORED / self._process.answer()["score_s"]}

    def facts(self) -> dict[str, Any]:
        return {"load_s": round(self._process.load_s, 2), "rss_mb": round(self._process.rss_mb())}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


class DaemonTrial:
    """Trial with a daemon of its own; a run asks it for a text."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """Start the daemon. Raises: Gpt2dError."""
        self._option, self._vocabulary = method.option, setup.architecture.vocabulary
        self._results: list[m.Generated] = []
        arguments = argparse.Namespace(models_dir=setup.models_dir, threads=setup.threads)
        with ExitStack() as starting:
            daemon = starting.enter_context(start_daemon(arguments, "--rows=1"))
            self._client = starting.enter_context(Client(daemon.endpoint))
            began = time.perf_counter()
            self._client.load(setup.model.name, engine=OWN, precision=method.precision)
            self._load_s = time.perf_counter() - began
            self._stack = starting.pop_all()

    def run(self, seed: int) -> dict[str, float]:
        began, result = self.write(seed)
        waited, ledger = time.perf_counter() - began, result.ledger
        if seed >= WARMUPS:
            self._results.append(result)
        return {
            "prefill_ms": ledger.prefill_ms,
            "tok_s": ledger.tokens_per_second,
            f"whole_{len(result.ids)}_ms": 1e3 * waited,
        }

    def write(self, seed: int) -> tuple[float, m.Generated]:
        """Return when it began, and what came."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        counts = ("prompt_tokens", "new_tokens", "reused_tokens", "guessed_tokens", "accepted_tokens")
        texts = hashlib.sha256(str([result.ids for result in self._results]).encode()).hexdigest()[:16]
        memory = sum(worker.rss_bytes for worker in self._client.stats().workers)
        return {
            "load_s": round(self._load_s, 2), "rss_mb": round(memory / 1e6), "texts": texts,
            **{name: sum(getattr(result.ledger, name) for result in self._results) for name in counts},
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Page(DaemonTrial):
    """Trial of the second page of a text; `option` is computed or reused."""

    def write(self, seed: int) -> tuple[float, m.Generated]:
        reuse = self._option == "reused"
        ids = np.random.default_rng(seed).integers(0, self._vocabulary, PAGE + MORE).tolist()
        ask: dict[str, Any] = {"strategy": "greedy", "ignore_eos": True, "speculate": 0}
        if reuse:  # the first page, which nobody times
            self._client.generate(prompt_ids=ids[:PAGE], max_new_tokens=1, **ask)
        began = time.perf_counter()
        return began, self._client.generate(prompt_ids=ids, max_new_tokens=LENGTHS[1], deterministic=not reuse, **ask)


class ScoredByDaemon(DaemonTrial):
    """The same text, through a daemon."""

    def run(self, seed: int) -> dict[str, float]:
        ids = np.random.default_rng(seed).integers(0, self._vocabulary, SCORED).tolist()
        began = time.perf_counter()
        self._client.score(ids=ids)
        return {"tok_s": SCORED / (time.perf_counter() - began)}

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in super().facts().items() if name in {"load_s", "rss_mb"}}


class Lookup(DaemonTrial):
    """Trial of a text that repeats itself, or does not, with or without guesses; `option` has both."""

    def write(self, seed: int) -> tuple[float, m.Generated]:
        text, guesses = self._option.split()
        repeats = text == "repeating"
        began = time.perf_counter()
        return began, self._client.generate(
            f"{seed + 1}.\n" + (3 * VERSE if repeats else PLAIN),
            max_new_tokens=LENGTHS[2],
            seed=seed,
            ignore_eos=True,
            deterministic=True,
            temperature=0.2 if repeats else 1.0,
            speculate=8 if guesses == "on" else 0,
        )
