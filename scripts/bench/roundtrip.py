#!/usr/bin/env python3
"""Measure what the daemon costs over its engine called directly: ping, first token, tokens per second.

    python -m scripts.bench.roundtrip --like gpt2
    python -m scripts.bench.roundtrip --model demo --precision fp32

Starts a daemon of its own on a free port and the same engine in a process beside it, and lets them generate in turns,
in blocks of four after one to warm up (greedy, one client that reads a stream). Figures are medians; `added` and
`ratio` compare the daemon with the engine, both of which get a moment of rest before each generation. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol import Client
from scripts.bench.arguments import add_arguments, parse, start_daemon
from scripts.bench.engine import EngineProcess, Variant
from scripts.bench.figures import percentile

BLOCK = 4
PAUSE_S = 0.02
"""Pause before each request, which then meets a daemon that has put away what the one before computed."""


@dataclass(frozen=True)
class Timing:
    """Seconds from the request to the first token, and to the end."""

    first_s: float
    whole_s: float


def timed_stream(client: Client, ids: list[int], generation: dict[str, Any]) -> Timing:
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    with client.stream(prompt_ids=ids, **generation) as stream:
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
    return Timing(first - began, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=12)
    parser.add_argument("--pings", type=int, default=1000, help="default: %(default)s")
    args, model = parse(parser)
    vocabulary = model.architecture.vocabulary if model.architecture else 0
    generation = {"max_new_tokens": args.new_tokens, "strategy": "greedy", "ignore_eos": True, "speculate": 0}

    with (
        start_daemon(args) as daemon,
        Client(daemon.endpoint) as client,
        EngineProcess(Variant(args.engine, args.precision, str(model.folder), args.threads)) as engine,
    ):
        loaded = client.load(model.name, engine=args.engine, precision=args.precision)
        pings = []
        for _ in range(args.pings):
            began = time.perf_counter()
            client.ping()
            pings.append((time.perf_counter() - began) * 1000)
        through: list[Timing] = []
        direct: list[Timing] = []
        seeds = iter(range(1 << 30))
        for start in range(0, args.runs, BLOCK):
            for i in range(BLOCK + 1):
                ids = np.random.default_rng(next(seeds)).integers(0, vocabulary, args.prompt_tokens).tolist()
                timing = timed_stream(client, ids, generation)
                if i:  # the first of a block warms up
                    through.append(timing)
            for i in range(BLOCK + 1):
                time.sleep(PAUSE_S)
                run = engine.run(args.prompt_tokens, args.new_tokens, next(seeds))
                if i:
                    direct.append(Timing(run.prefill_s, run.prefill_s + run.decode_s))
            done = min(start + BLOCK, args.runs)
            print(f"{done}/{args.runs} runs", file=sys.stderr)
        stats = client.stats()
    first_ms = {
        name: statistics.median(t.first_s for t in runs) * 1000
        for name, runs in (("daemon", through), ("engine", direct))
    }
    rate = {
        name: args.new_tokens / statistics.median(t.whole_s for t in runs)
        for name, runs in (("daemon", through), ("engine", direct))
    }
    added_ms = first_ms["daemon"] - first_ms["engine"]
    figures = {
        "model": loaded.model, "engine": loaded.engine, "precision": loaded.precision, "threads": loaded.threads,
        "ping_ms": {"p50": round(statistics.median(pings), 3), "p99": round(percentile(pings, 0.99), 3)},
        "first_token_ms": {n: round(v, 2) for n, v in first_ms.items()} | {"added": round(added_ms, 2)},
        "tok_s": {n: round(v, 1) for n, v in rate.items()} | {"ratio": round(rate["daemon"] / rate["engine"], 3)},
        "rss_mb": {"gateway": round(stats.rss_bytes / 1e6), "worker": round(stats.workers[0].rss_bytes / 1e6)},
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
