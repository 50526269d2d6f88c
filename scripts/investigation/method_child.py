"""Method of optimisation_methods or onnx_methods in a process of its own.

Run as a program it loads the method, reads a line of JSON for each task and answers with a line. A text is random
tokens that are continued greedily; the answer says when each new token was there, so that one run has the prefill and
the time of 25 and of 100 tokens.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from scripts.bench.engine import as_module
from scripts.investigation.texts import PROMPT_TOKENS
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.catalogue import HELD_OUT_FILE
from server.catalogue.engines import CACHE_BITS, REFERENCE
from server.config import Config
from server.engines.base import Engine, Selective

PROGRAM = "scripts.investigation.method_child"
CACHE_BYTES = 64 << 30
"""Room for all forms of all sizes together: nothing is built twice."""

Write = Callable[[list[int], int], list[float]]
"""Function of prompt and new tokens that returns the seconds from the start to each new token."""


@dataclass(frozen=True)
class Order:
    """Method to load: `loader` is a module of this folder and its function, which takes this and returns a Loaded."""

    loader: str
    precision: str
    option: str
    folder: str
    threads: int
    build_s: float = 0.0
    """Time that making the engine's own form of the model took, before the process started again."""

    @property
    def architecture(self) -> Architecture:
        return read_architecture(Path(self.folder))


@dataclass(frozen=True)
class Loaded:
    write: Write
    engine: Callable[[], Engine]
    """Method as an engine, to compare with full precision."""
    profile: Callable[[], dict[str, float]] | None = None
    """Share of the decode steps' time by operator type. Called last: the engine may be gone then."""
    score: Callable[[list[int]], object] | None = None
    """Function that computes the log-probability of each token of a text."""


class JustBuilt(Exception):
    """A form of the model was made.

    The process starts again, so that its memory and its time to load are those of every later start.
    """


def own_engine(order: Order, engine: str, *, compiled: bool = False, cache: str | None = None) -> Engine:
    """Load one of the daemon's engines. Raises: JustBuilt, and what load_engine raises."""
    from server.engines.load import load_engine

    arch, config = order.architecture, Config()
    built = compiled and not order.build_s

    def progress(stage: str, done: int, total: int, unit: str) -> None:  # noqa: ARG001 - as load_engine calls it
        nonlocal built
        if stage == "build":
            if not built:
                check_memory(arch.loading_bytes(engine, order.precision, 1))
            built = True

    made = load_engine(
        Path(order.folder),
        arch,
        engine,
        order.precision,
        1,
        order.threads,
        config.cache_dir,
        CACHE_BYTES,
        progress,
        compiled=compiled,
        cache=cache,
    )
    if built:
        raise JustBuilt
    return made.engine


def check_memory(needed: float) -> None:
    """Check that the machine has this many bytes free. Raises: MemoryError."""
    free = psutil.virtual_memory().available
    if free < needed:
        raise MemoryError(f"building it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free")


def by_steps(engine: Engine, best: Sequence[int] | None = None) -> Write:
    """Return what writes one token after the other, greedily, with the engine's cache.

    `best` is how many of the largest logits an engine that can leave out the others has to compute.
    """
    decode = partial(engine.decode, best=best) if best and isinstance(engine, Selective) else engine.decode

    def write(prompt: list[int], count: int) -> list[float]:
        began = time.perf_counter()
        token = int(engine.prefill(0, prompt, 0, [len(prompt) - 1])[0].argmax())
        stamps = [time.perf_counter() - began]
        for past in range(len(prompt), len(prompt) + count - 1):
            token = int(decode([token], [past])[0].argmax())
            stamps.append(time.perf_counter() - began)
        return stamps

    return write


def of_engine(engine: Engine) -> Loaded:
    return Loaded(by_steps(engine), lambda: engine)


def own(order: Order) -> Loaded:
    """Load one of the daemon's engines.

    `option` is its name and, behind a "+", nothing or `compile`, `head` (in two passes: the likeliest token is enough),
    or what its KV cache is made of.
    """
    name, more = order.option.partition("+")[::2]
    engine = own_engine(order, name, compiled=more == "compile", cache=more if more in CACHE_BITS else None)
    return Loaded(by_steps(engine, [1] if more == "head" else None), lambda: engine)


def fidelity(loaded: Loaded, order: Order, tokens: int) -> dict[str, Any]:
    """Compare with full precision, as scripts.fidelity does, on a text that the model was not trained on."""
    from server.checkpoint.tokenizer import read_tokenizer
    from server.worker import fidelity as measuring
    from server.worker.text import Text

    arch = order.architecture
    text = HELD_OUT_FILE.read_text(encoding="utf-8")
    ids = Text(read_tokenizer(Path(order.folder)), arch).encode(text)[:tokens]
    full = replace(order, precision=REFERENCE[1])
    try:
        reference = own_engine(full, REFERENCE[0])
    except JustBuilt:
        reference = own_engine(full, REFERENCE[0])
    measuring.PROMPTS, measuring.NEW_TOKENS = 1, 2  # its greedy texts are not asked for here, and take most of its time
    compared = measuring.compare(loaded.engine(), reference, ids, lambda *_: None)
    change = 100 * (compared.perplexity / compared.reference_perplexity - 1)
    return {
        "perplexity": compared.perplexity,
        "perplexity_change_pct": change,
        "top1_agreement": compared.top1_agreement,
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer

    def answer(**found: object) -> None:
        print(json.dumps(found), file=answers, flush=True)

    order = Order(**json.loads(sys.argv[1]))
    began = time.perf_counter()
    try:
        module, name = order.loader.split(".")
        loader = getattr(importlib.import_module(f"scripts.investigation.{module}"), name)
        loaded: Loaded = loader(order)
        answer(load_s=time.perf_counter() - began)
        for line in sys.stdin:
            answer(**do(json.loads(line), loaded, order))
    except JustBuilt:
        os.dup2(answers.fileno(), 1)
        again = replace(order, build_s=order.build_s + time.perf_counter() - began)
        os.execv(sys.executable, as_module(PROGRAM, json.dumps(asdict(again))))  # noqa: S606 - this program again
    except Exception as e:  # noqa: BLE001 - answered to the process that waits
        answer(problem=f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}")


def do(task: dict[str, Any], loaded: Loaded, order: Order) -> dict[str, Any]:
    if "new_tokens" in task:
        prompt = np.random.default_rng(task["seed"]).integers(0, order.architecture.vocabulary, PROMPT_TOKENS).tolist()
        return {"stamps": loaded.write(prompt, task["new_tokens"])}
    if "score_tokens" in task:
        if loaded.score is None:
            raise ValueError(f"{order.loader} scores no texts")
        rng = np.random.default_rng(task["seed"])
        text = rng.integers(0, order.architecture.vocabulary, task["score_tokens"]).tolist()
        began = time.perf_counter()
        loaded.score(text)
        return {"score_s": time.perf_counter() - began}
    found: dict[str, Any] = {"build_s": order.build_s}
    if task["fidelity_tokens"]:
        found |= fidelity(loaded, order, task["fidelity_tokens"])
    if loaded.profile:
        found["profile"] = loaded.profile()
    return found


if __name__ == "__main__":
    importlib.import_module(PROGRAM).main()  # the loaders know it under this name
