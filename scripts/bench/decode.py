#!/usr/bin/env python3
"""Measure how fast an engine decodes, by itself: no daemon, end of text ignored.

    python -m scripts.bench.decode --like gpt2 --precision int8 --against transformers
    python -m scripts.bench.decode --model demo --precision fp32
    python -m scripts.bench.decode --like gpt2 --precision int4 --batch 1,8
    python -m scripts.bench.decode --like gpt2 --precision int4 --sampler default

Every variant runs in a process of its own; with --against the runs alternate (A B A B), so that a noisy machine is
noisy for both. Figures are medians (and the best) of --runs after one warm-up. `ratio` is the reference's time for the
whole generation over ours. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack

from scripts.bench.arguments import add_arguments, parse
from scripts.bench.engine import SAMPLERS, EngineProcess, Run, Variant


def decode_rates(runs: list[Run], new_tokens: int, batch: int = 1) -> dict[str, float]:
    """Return the tokens a second of all sequences together."""
    rates = [batch * (new_tokens - 1) / r.decode_s for r in runs]
    return {"median": round(statistics.median(rates), 1), "best": round(max(rates), 1)}


def summary(runs: list[Run], prompt_tokens: int, new_tokens: int, process: EngineProcess) -> dict[str, object]:
    return {
        "decode_tok_s": decode_rates(runs, new_tokens),
        "prefill_tok_s": round(prompt_tokens / statistics.median(r.prefill_s for r in runs), 1),
        "load_s": round(process.load_s, 2),
        "rss_mb": round(process.rss_mb()),
    }


def batches(text: str) -> list[int]:
    """Parse numbers of sequences, as in 1,8. Raises: ValueError."""
    sizes = [int(word) for word in text.split(",")]
    if not all(1 <= size <= 64 for size in sizes):
        raise ValueError(text)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=5)
    parser.add_argument(
        "--against", choices=["transformers"], help="a baseline to run in turns with it (fp32, not compiled)"
    )
    parser.add_argument(
        "--batch",
        type=batches,
        default=[1],
        metavar="1,8",
        help="numbers of sequences that decode together (default: 1)",
    )
    parser.add_argument(
        "--sampler",
        choices=list(SAMPLERS),
        default="greedy",
        help="how the daemon's engines choose: the likeliest token, or as a request without settings (default: greedy)",
    )
    args, model = parse(parser)

    rows = max(1, *args.batch)
    names = {"ours": Variant(args.engine, args.precision, str(model.folder), args.threads, rows, args.sampler)}
    if args.against:
        names["reference"] = Variant(args.against, "fp32", str(model.folder), args.threads)
    with ExitStack() as stack:
        processes = {name: stack.enter_context(EngineProcess(variant)) for name, variant in names.items()}
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for i in range(args.runs + 1):
            for name, process in processes.items():
                run = process.run(args.prompt_tokens, args.new_tokens, seed=i)
                if i:  # the first warms up
                    runs[name].append(run)
                    print(
                        f"run {i}/{args.runs} {names[name].engine}-{names[name].precision}: "
                        f"{(args.new_tokens - 1) / run.decode_s:.1f} tokens/s",
                        file=sys.stderr,
                    )
        together: dict[int, list[Run]] = {batch: [] for batch in args.batch}
        for i in range(args.runs + 1):
            for batch, done in together.items():
                run = processes["ours"].run(args.prompt_tokens, args.new_tokens, seed=1000 + i, batch=batch)
                if i:
                    done.append(run)
        figures = {name: summary(runs[name], args.prompt_tokens, args.new_tokens, processes[name]) for name in names}
    result: dict[str, object] = {
        "engine": args.engine,
        "precision": args.precision,
        "sampler": args.sampler,
        "model": model.name,
        "threads": args.threads,
    }
    result |= figures["ours"] | {"ratio": None}
    result["batches"] = {
        str(b): {"decode_tok_s": decode_rates(done, args.new_tokens, b)} for b, done in together.items()
    }
    if args.against:
        totals = {name: statistics.median(r.prefill_s + r.decode_s for r in runs[name]) for name in names}
        result |= {
            "ratio": round(totals["reference"] / totals["ours"], 2),
            "against": {"engine": args.against} | figures["reference"],
        }
    if hasattr(os, "getloadavg"):
        result["load_average"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
