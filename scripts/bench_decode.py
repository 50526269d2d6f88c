#!/usr/bin/env python3
"""How fast an engine decodes, by itself: no daemon, no sampler, one sequence, greedy, end of text ignored.

    python scripts/bench_decode.py --like gpt2 --precision int8 --against transformers
    python scripts/bench_decode.py --model demo --precision fp32

Every variant runs in a process of its own; with --against the runs alternate (A B A B), so that a noisy machine is noisy
for both. Figures are medians (and the best) of --runs after one warm-up. `ratio` is the reference's time for the whole
generation over ours. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack

from bench_engine import EngineProcess, Run, Variant, add_arguments, parse


def summary(runs: list[Run], prompt_tokens: int, new_tokens: int, process: EngineProcess) -> dict[str, object]:
    rates = [(new_tokens - 1) / r.decode_s for r in runs]
    return {
        "decode_tok_s": {"median": round(statistics.median(rates), 1), "best": round(max(rates), 1)},
        "prefill_tok_s": round(prompt_tokens / statistics.median(r.prefill_s for r in runs), 1),
        "load_s": round(process.load_s, 2),
        "rss_mb": round(process.rss_mb()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=5)
    parser.add_argument("--against", choices=["transformers"], help="a reference to run in turns with it (fp32, eager)")
    args, model = parse(parser)

    names = {"ours": Variant(args.engine, args.precision, str(model.folder), args.threads)}
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
        figures = {name: summary(runs[name], args.prompt_tokens, args.new_tokens, processes[name]) for name in names}
    result: dict[str, object] = {"engine": args.engine, "precision": args.precision, "model": model.name, "threads": args.threads}
    result |= figures["ours"] | {"ratio": None}
    if args.against:
        totals = {name: statistics.median(r.prefill_s + r.decode_s for r in runs[name]) for name in names}
        result |= {"ratio": round(totals["reference"] / totals["ours"], 2), "against": {"engine": args.against} | figures["reference"]}
    if hasattr(os, "getloadavg"):
        result["load_average"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
