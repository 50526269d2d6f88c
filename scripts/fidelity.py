#!/usr/bin/env python3
"""Measure what each engine and precision costs against full precision, on a text that the model was not trained on.

    python -m scripts.fidelity --model demo                      the works held out from its training
    python -m scripts.fidelity --model gpt2 --text wiki.txt      a model from the hub is downloaded first
    python -m scripts.fidelity --model demo --only native,onnx

Starts a daemon of its own, which measures one after the other, each in a process of its own, and keeps the results for
every daemon of this user: the client shows them where a precision is chosen. Each kind of KV cache is measured, the
default first. Columns: the share of matrix weights that are quantised, MB on disk and resident, perplexity and its
change, how often the likeliest token is the same, the divergence of the next-token distribution in nats (mean and 99th
percentile), how many greedy tokens are the same before the first that differs, and greedy tokens a second. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from protocol import Client, Gpt2dError, messages as m
from scripts.bench.arguments import add_place, start_daemon
from server.catalogue.engines import ENGINES, REFERENCE
from server.worker.fidelity import TOKENS

MAX_CHARACTERS = 50_000
"""What the server takes; in English TOKENS are some 18,000."""
COLUMNS = (
    "engine", "precision", "KV cache", "quantised", "disk MB", "memory MB", "perplexity", "change %", "top-1 same",
    "KL mean", "KL p99", "greedy same", "tok/s",
)  # fmt: skip
KEYS = ("quantised_share", "perplexity", "perplexity_change_pct", "top1_agreement", "kl_mean", "kl_p99", "tok_s")


def cells(engine: str, precision: str, cache: str, f: m.Fidelity) -> list[str]:
    return [
        engine, precision, cache,
        f"{f.quantised_share:.1%}", f"{f.disk_bytes / 1e6:.1f}", f"{f.memory_bytes / 1e6:.0f}",
        f"{f.perplexity:.3f}", f"{f.perplexity_change_pct:+.3f}", f"{f.top1_agreement:.2%}", f"{f.kl_mean:.2g}",
        f"{f.kl_p99:.2g}", f"{f.greedy_tokens:.1f} of {f.greedy_limit}", f"{f.tok_s:.0f}",
    ]  # fmt: skip


def show(bar: tqdm, progress: m.Progress) -> None:
    """Bring the bar up to date; it shows whatever stage the daemon is at."""
    bar.desc, bar.unit = f"{progress.stage}: ", progress.unit
    bar.n, bar.total = progress.done, progress.total
    bar.refresh()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="demo, a folder of --models-dir, or a GPT-2 of the hub")
    parser.add_argument("--text", type=Path, help=f"a file of UTF-8 text; its first {TOKENS} tokens count")
    parser.add_argument("--only", default=",".join(ENGINES), metavar="ENGINE,...", help="default: %(default)s")
    add_place(parser)
    args = parser.parse_args()
    engines = args.only.split(",")
    if unknown := set(engines) - set(ENGINES):
        parser.error(f"no engine {', '.join(unknown)}; there are: {', '.join(ENGINES)}")
    try:
        text = args.text.read_text(encoding="utf-8")[:MAX_CHARACTERS] if args.text else None
    except (OSError, ValueError) as e:
        parser.error(f"--text: {e}")
    rows: list[dict[str, object]] = []
    with start_daemon(args) as daemon, Client(daemon.endpoint) as client:
        try:
            if not all(model.on_disk for model in client.models() if model.name == args.model):
                with tqdm(leave=False, disable=None) as bar:
                    client.load(args.model, engine=REFERENCE[0], precision=REFERENCE[1], on_progress=partial(show, bar))
                client.unload(args.model)
        except Gpt2dError as e:
            sys.exit(str(e))
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        for engine in engines:
            ways = [(name, cache) for name, stored in ENGINES[engine].precisions.items() for cache in stored.caches]
            for precision, cache in ways:
                try:
                    with tqdm(leave=False, disable=None) as bar:  # only where stderr is a terminal
                        which = {"engine": engine, "precision": precision, "cache": cache}
                        fidelity = client.measure(
                            args.model, **which, text=text, on_progress=partial(show, bar)
                        ).fidelity
                except Gpt2dError as e:
                    print(f"{engine}/{precision}/{cache}: {e}", file=sys.stderr)
                    continue
                print(f"| {' | '.join(cells(engine, precision, cache, fidelity))} |", flush=True)
                rows.append(which | {key: getattr(fidelity, key) for key in KEYS})
    if not rows:
        sys.exit("nothing was measured")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
