#!/usr/bin/env python3
"""Measure engines and quantisation together with sampling (temperature 0.8, top-k 40): one text, and many at once.

    python -m scripts.investigation.combined_methods             all; started again, it measures what is missing
    python -m scripts.investigation.combined_methods --quick     to see that everything works
    python -m scripts.investigation.combined_methods --sizes gpt2 --only transformers/fp32 native/int8

The baseline is transformers' `generate` at fp32, with `num_return_sequences` for several texts. All others are asked
through the daemon's socket: up to 8 texts with `n`, 32 as four requests of 8 at once, with a row for each. Prompts are
32 random tokens, others in each turn, and each text has 25 new tokens. torch and optimum write one text after the
other: 8 are asked of them on the small models, to show it, and no more. gpt2-large is asked for 8 at most, since few
variants with 32 rows fit into the memory at a time.

Each variant is a process; as many as fit into the memory together are asked in turns. Measured: `whole_ms`, until all
texts are there, and `tok_s` of all texts together; `loaded_mb` is the memory of the process once its model is loaded,
`rss_mb` after all of its runs. `faster` is tok/s over the baseline's for as many texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from typing import Any, Self

import psutil

from scripts.bench.engine import EngineProcess, Variant
from scripts.investigation.harness import Plan, Results, Row, Trial, measure, model_of, parse, parser, runs_of
from scripts.investigation.one_daemon import Limited, OneDaemon, add_seconds, figure, finish, medians, most, table
from scripts.investigation.texts import PROMPT_TOKENS, is_trained, random_prompt
from server.catalogue.catalogue import DEMO, Model
from server.catalogue.engines import ENGINES, TRAITS

TEMPERATURE = 0.8
TOP_K = 40
OUTPUTS = {
    DEMO: (1, 8, 32),
    "gpt2": (1, 8, 32),
    "distilgpt2": (1, 8, 32),
    "gpt2-medium": (1, 8, 32),
    "gpt2-large": (1, 8),
    "gpt2-xl": (1, 8),
}
"""Numbers of texts at once, by size."""
SMALL = (DEMO, "gpt2", "distilgpt2")
"""Sizes of which an engine with one row is asked for several texts."""
PART = 8
"""Most texts of one request."""
NEW_TOKENS = 25
BASELINE = "transformers", "fp32"
OURS = [engine for engine in ("onnx", "native") if engine in ENGINES]
VARIANTS = (
    BASELINE,
    ("torch", "int8"),
    ("optimum", "int8"),
    *((engine, precision) for engine in OURS for precision in ENGINES[engine].precisions),
)
MEMORY_SHARE = 0.9
"""Share of the free memory that is for the variants that are asked in turns."""


class Baseline:
    """Process of transformers, which starts when it is first wanted."""

    def __init__(self, model: Model, threads: int) -> None:
        self._variant = Variant(
            *BASELINE, str(model.folder), threads, sampling={"temperature": TEMPERATURE, "top_k": TOP_K}
        )
        self._stack = ExitStack()
        self.loaded_mb = 0.0

    @cached_property
    def process(self) -> EngineProcess:
        process = self._stack.enter_context(EngineProcess(self._variant))
        self.loaded_mb = process.rss_mb()
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class ByTransformers:
    """Trial of a number of texts by the baseline."""

    def __init__(self, baseline: Baseline, outputs: int) -> None:
        self._baseline, self._process = baseline, baseline.process
        self._outputs = outputs

    def run(self, seed: int) -> dict[str, float]:
        whole_s = self._process.run(PROMPT_TOKENS, NEW_TOKENS, seed, self._outputs).decode_s
        return {"whole_ms": whole_s * 1000, "tok_s": self._outputs * NEW_TOKENS / whole_s}

    def facts(self) -> dict[str, Any]:
        return {"load_s": self._process.load_s, "loaded_mb": self._baseline.loaded_mb, "rss_mb": self._process.rss_mb()}


class ByDaemon:
    """Trial of a number of texts by one of the daemon's workers."""

    def __init__(self, daemon: OneDaemon, model: Model, engine: str, precision: str, outputs: int) -> None:
        self._daemon, self._model = daemon, model
        self._outputs = outputs
        self._loaded = daemon.load(model, engine, precision)

    def run(self, seed: int) -> dict[str, float]:
        # One that the worker does not remember from another trial.
        prompt = random_prompt(self._model, (seed, self._outputs))
        parts = [min(PART, self._outputs - first) for first in range(0, self._outputs, PART)]

        def ask(index: int) -> int:
            done = self._daemon.client.generate(
                prompt_ids=prompt,
                n=parts[index],
                max_new_tokens=NEW_TOKENS,
                ignore_eos=True,
                speculate=0,
                seed=seed * 1000 + index * PART,
                model=self._model.name,
                engine=self._loaded.engine,
                precision=self._loaded.precision,
                temperature=TEMPERATURE,
                top_k=TOP_K,
            )
            return len(done.ids) + sum(len(other.ids) for other in done.others)

        began = time.perf_counter()
        if len(parts) == 1:
            tokens = ask(0)
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                tokens = sum(pool.map(ask, range(len(parts))))
        whole_s = time.perf_counter() - began
        return {"whole_ms": whole_s * 1000, "tok_s": tokens / whole_s}

    def facts(self) -> dict[str, Any]:
        loaded = self._loaded
        return {
            "load_s": loaded.load_ms / 1000,
            "loaded_mb": loaded.rss_bytes / 1e6,
            "disk_mb": loaded.disk_bytes / 1e6,
            "rows": loaded.rows,
            "rss_mb": self._daemon.rss_mb(self._model, loaded.engine, loaded.precision),
        }


def groups(
    model: Model, variants: Sequence[tuple[str, str]], rows: int, free: float
) -> Iterator[list[tuple[str, str]]]:
    """Yield the variants in parts that fit into `free` bytes, those first that need most until they are loaded."""
    arch = model.architecture
    if arch is None:
        return

    def needs(variant: tuple[str, str], *, loading: bool) -> int:
        engine, precision = ("torch", "fp32") if variant == BASELINE else variant
        count = TRAITS[engine].most_rows or rows
        return (arch.loading_bytes if loading else arch.memory_bytes)(engine, precision, count)

    left = sorted(variants, key=lambda v: needs(v, loading=False) - needs(v, loading=True))
    while left:
        part: list[tuple[str, str]] = []
        for variant in left:
            together = sum(needs(v, loading=False) for v in part) + needs(variant, loading=True)
            if not part or together <= free:
                part.append(variant)
        left = [v for v in left if v not in part]
        yield part


def plans(
    args: argparse.Namespace,
    daemon: OneDaemon,
    baseline: Baseline,
    size: str,
    model: Model,
    variants: list[tuple[str, str]],
) -> Iterator[Plan]:
    counts = args.outputs or OUTPUTS[size]
    for engine, precision in variants:
        for outputs in counts:
            if engine in TRAITS and TRAITS[engine].most_rows == 1 and outputs > (PART if size in SMALL else 1):
                continue
            key = {
                "model": size,
                "trained": is_trained(model),
                "engine": engine,
                "precision": precision,
                "decoder": "sampling",
                "outputs": outputs,
                "prompt_tokens": PROMPT_TOKENS,
                "new_tokens": NEW_TOKENS,
                "threads": args.threads,
            }

            def make(
                engine: str = engine, precision: str = precision, outputs: int = outputs
            ) -> AbstractContextManager[Limited]:
                trial: Trial
                if (engine, precision) == BASELINE:
                    trial = ByTransformers(baseline, outputs)
                else:
                    trial = ByDaemon(daemon, model, engine, precision, outputs)
                warm = outputs != counts[0]  # the same process has been warmed up by then
                return Limited(trial, runs_of(size, quick=args.quick), args.seconds, warm=warm)

            yield Plan(key, make)


def measured(args: argparse.Namespace, results: Results) -> list[Row]:
    variants = [variant for variant in VARIANTS if "/".join(variant) in args.only]
    rows: list[Row] = []
    for size in args.sizes:
        model, most_outputs = model_of(size, args.models_dir), max(args.outputs or OUTPUTS[size])
        for part in list(groups(model, variants, most_outputs, psutil.virtual_memory().available * MEMORY_SHARE)):
            with OneDaemon(args, f"--rows={most_outputs}") as daemon, Baseline(model, args.threads) as baseline:
                todo = list(plans(args, daemon, baseline, size, model, part))
                rows += measure(results, todo, runs_of(size, quick=args.quick), f"{size}, {len(part)} together")
    order = {name: i for i, name in enumerate(names())}
    return sorted(
        rows,
        key=lambda r: (
            args.sizes.index(r.key["model"]),
            r.key["outputs"],
            order[f"{r.key['engine']}/{r.key['precision']}"],
        ),
    )


def names() -> list[str]:
    return ["/".join(variant) for variant in VARIANTS]


def tables(rows: list[Row]) -> str:
    base = {
        (r.key["model"], r.key["outputs"]): r.median("tok_s")
        for r in rows
        if r.key["engine"] == BASELINE[0] and not r.problem
    }

    def faster(row: Row) -> str:
        against = base.get((row.key["model"], row.key["outputs"]))
        return f"{figure(row.median('tok_s') / against)} x" if against else "-"

    return table(
        rows,
        {
            "model": lambda r: r.key["model"],
            "texts": lambda r: r.key["outputs"],
            "engine": lambda r: r.key["engine"],
            "precision": lambda r: r.key["precision"],
            "runs": most,
            "whole ms": lambda r: medians(r, "whole_ms"),
            "tok/s of all": lambda r: medians(r, "tok_s"),
            "faster": faster,
            "MB loaded": lambda r: figure(r.facts["loaded_mb"]),
            "MB at the end": lambda r: figure(r.facts["rss_mb"]),
        },
    )


def main() -> None:
    made = parser(__doc__, "combined_methods")
    made.add_argument(
        "--only",
        nargs="+",
        choices=names(),
        default=names(),
        metavar="ENGINE/PRECISION",
        help=f"of {', '.join(names())}",
    )
    made.add_argument(
        "--outputs",
        nargs="+",
        type=int,
        metavar="N",
        help=f"texts at once (default: {' '.join(map(str, OUTPUTS[DEMO]))}; fewer on the largest)",
    )
    add_seconds(made, 4.0)
    args, results = parse(made, "combined_methods")
    rows = measured(args, results)
    finish(results, rows, tables(rows))


if __name__ == "__main__":
    main()
