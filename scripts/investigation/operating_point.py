#!/usr/bin/env python3
"""Measure the chosen set-up at work: one prompt, many seeds; how its latency spreads, and how its texts do.

    python -m scripts.investigation.operating_point              all; started again, it measures what is missing
    python -m scripts.investigation.operating_point --quick      seconds: to see that everything works
    python -m scripts.investigation.operating_point --sizes gpt2 --trials 500 --seconds 1000
    python -m scripts.investigation.operating_point --engine onnx --set temperature=0.7 --prompt "Once upon a time"

The set-up is the daemon's default engine, precision and settings (it samples from the 50 likeliest tokens at
temperature 1, and guesses ahead), unless --engine, --precision and --set say otherwise. Each trial is one request with
a seed of its own; its prompt is computed again (`deterministic`; with --reuse the daemon may remember it), and the end
of text is ignored, so that each text has its length.

Kept for each trial: `inference_ms` as the server measures it, `first_token_ms`, `whole_ms` as the client waits, `tok_s`
of decoding: the data of a histogram. The texts' spread: how many are different, `pairwise_distinct` (1 less what two
texts share of their 2-grams, the mean over all pairs: 0 where all are the same, 1 where no two have anything in
common), and the mean share of 4-grams that repeat within a text. Random weights write noise; their spread says nothing
about the real model's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from protocol import Gpt2dError, messages as m
from scripts.bench.figures import percentile
from scripts.investigation.harness import QUICK_RUNS, WARMUPS, Plan, Results, Row, measure, model_of, parse, parser
from scripts.investigation.one_daemon import Limited, OneDaemon, add_seconds, figure, finish, medians, most, table
from scripts.investigation.texts import distinct, is_trained, pairwise_distinct, repetition
from server.catalogue.catalogue import Model
from server.catalogue.engines import ENGINES, choose_engine

PROMPT = "Our revels now are ended. These our actors,\nAs I foretold you, were all spirits and\n"
"""Lines of The Tempest, which `demo` was not trained on."""
TRIALS = 200
NEW_TOKENS = (25, 100)
NOISE_KEPT = 3
"""Number of texts of random weights in the results; those of trained ones are all kept."""


class Point:
    """Trial of the set-up, asked with one seed after the other."""

    def __init__(self, daemon: OneDaemon, model: Model, args: argparse.Namespace, new_tokens: int) -> None:
        self._daemon, self._model = daemon, model
        self._new_tokens = new_tokens
        self._prompt, self._settings = args.prompt, args.settings
        self._reuse = args.reuse
        self._loaded = daemon.load(model, args.engine, args.precision)
        self._texts: list[m.Generated] = []

    def run(self, seed: int) -> dict[str, float]:
        ask = {
            "max_new_tokens": self._new_tokens,
            "ignore_eos": True,
            "deterministic": not self._reuse,
            "seed": len(self._texts),
            "model": self._model.name,
            "engine": self._loaded.engine,
            "precision": self._loaded.precision,
        }
        began = time.perf_counter()
        done = self._daemon.client.generate(self._prompt, **(ask | self._settings))
        whole_ms = (time.perf_counter() - began) * 1000
        if seed >= WARMUPS:
            self._texts.append(done)
        ledger = done.ledger
        return {
            "inference_ms": ledger.inference_ms,
            "first_token_ms": ledger.first_token_ms,
            "whole_ms": whole_ms,
            "tok_s": ledger.tokens_per_second,
            "accepted": ledger.accepted_tokens / self._new_tokens,
        }

    def facts(self) -> dict[str, Any]:
        ids, loaded = [text.ids for text in self._texts], self._loaded
        return {
            "model": self._model.name, "settings": self._texts[0].settings if self._texts else {},
            "rss_mb": self._daemon.rss_mb(self._model, loaded.engine, loaded.precision),
            "texts": [text.text for text in self._texts[: None if is_trained(self._model) else NOISE_KEPT]],
            "different_texts": len(set(map(tuple, ids))), "pairwise_distinct": pairwise_distinct(ids),
            "repetition": statistics.mean(map(repetition, ids)),
            **{f"distinct_{n}": statistics.mean(distinct(i, n) for i in ids) for n in (1, 2, 3)},
        }  # fmt: skip


def plans(args: argparse.Namespace, daemon: OneDaemon, size: str, model: Model) -> Iterator[Plan]:
    for new_tokens in args.new_tokens:
        key = {
            "model": size,
            "trained": is_trained(model),
            "engine": args.engine,
            "precision": args.precision,
            "prompt": args.prompt.replace("\n", " / "),
            "settings": " ".join(f"{name}={value}" for name, value in args.settings.items()) or "default",
            "new_tokens": new_tokens,
            "reuse": args.reuse,
            "trials": args.trials,
            "threads": args.threads,
        }

        def make(new_tokens: int = new_tokens) -> AbstractContextManager[Limited]:
            return Limited(Point(daemon, model, args, new_tokens), args.trials, args.seconds)

        yield Plan(key, make)


def measured(args: argparse.Namespace, results: Results) -> list[Row]:
    rows: list[Row] = []
    for size in args.sizes:
        model = model_of(size, args.models_dir)
        with OneDaemon(args) as daemon:
            rows += measure(results, list(plans(args, daemon, size, model)), args.trials, size)
    return rows


def tables(rows: list[Row]) -> str:
    latency = {
        "model": lambda r: r.key["model"],
        "new": lambda r: r.key["new_tokens"],
        "trials": most,
        "inference ms": lambda r: medians(r, "inference_ms"),
        "p5": lambda r: figure(percentile(r.samples["inference_ms"], 0.05)),
        "p95": lambda r: figure(percentile(r.samples["inference_ms"], 0.95)),
        "p99": lambda r: figure(percentile(r.samples["inference_ms"], 0.99)),
        "first token ms": lambda r: medians(r, "first_token_ms"),
        "whole ms": lambda r: medians(r, "whole_ms"),
        "tok/s": lambda r: medians(r, "tok_s"),
    }
    spread = {name: latency[name] for name in ("model", "new", "trials")} | {
        "weights": lambda r: "trained" if r.key["trained"] else "random",
        "different texts": lambda r: r.facts["different_texts"],
        "pairwise distinct": lambda r: figure(r.facts["pairwise_distinct"]),
        "repeated 4-grams": lambda r: figure(r.facts["repetition"]),
        "distinct-1": lambda r: figure(r.facts["distinct_1"]),
        "distinct-2": lambda r: figure(r.facts["distinct_2"]),
    }
    samples = [
        f"{r.key['model']}, seed {seed}: {text!r}"
        for r in rows
        if r.key["trained"] and not r.problem
        for seed, text in enumerate(r.facts["texts"][:3])
    ]
    return "\n".join([table(rows, latency), table([r for r in rows if not r.problem], spread), *samples])


def setting(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE of a generation's settings. Raises: ValueError."""
    name, value = text.split("=", 1)
    if name not in m.SETTINGS:
        raise ValueError(name)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    made = parser(__doc__, "operating_point")
    made.add_argument("--engine", choices=list(ENGINES), help="default: the daemon's")
    made.add_argument("--precision", help="default: the engine's")
    made.add_argument("--prompt", default=PROMPT, help="default: %(default)r")
    made.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a setting of the generation, such as temperature=0.8",
    )
    made.add_argument(
        "--new-tokens",
        nargs="+",
        type=int,
        default=list(NEW_TOKENS),
        metavar="N",
        help=f"default: {' '.join(map(str, NEW_TOKENS))}",
    )
    made.add_argument(
        "--trials",
        type=int,
        default=TRIALS,
        help="of each size and length, with the seeds 0, 1, ... (default: %(default)s)",
    )
    made.add_argument(
        "--reuse", action="store_true", help="let the daemon remember the prompt from one trial to the next"
    )
    add_seconds(made, 45.0)
    args, results = parse(made, "operating_point")
    args.settings = dict(args.settings)
    if args.quick:
        args.trials = QUICK_RUNS
    try:
        args.engine, args.precision = choose_engine(args.engine, args.precision)
        msgspec.convert({"prompt": ""} | args.settings, m.Generate)
    except (Gpt2dError, ValueError) as e:
        made.error(str(e))
    rows = measured(args, results)
    finish(results, rows, tables(rows))


if __name__ == "__main__":
    main()
