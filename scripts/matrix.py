#!/usr/bin/env python3
"""Run every engine x precision x strategy that a server offers, through the socket.

    python -m scripts.matrix                    all of them, on the embedded model
    python -m scripts.matrix --once             each engine once (its first precision) and each strategy once
    python -m scripts.matrix --model gpt2       another model

Starts a daemon and asks its hello what it offers. Every combination must stream the result's text, write the same again
with the same seed, give log-probabilities (unless it is a search), account for its time, and stop when it is cancelled.
Prints one line each; the last line is one JSON object, and the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from protocol import Client, Gpt2dError, messages as m
from protocol.errors import Cancelled, NotLoaded
from scripts.bench.arguments import add_place, start_daemon

PROMPT = "When in the chronicle of wasted time\n"
NEW_TOKENS = 12


def combinations(info: m.ServerInfo, *, once: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (engine, precision, strategies)."""
    seen: set[str] = set()
    for engine in info.engines:
        for precision in engine.precisions[:1] if once else engine.precisions:
            strategies = [s for s in engine.strategies if not once or s not in seen] or engine.strategies[:1]
            seen.update(strategies)
            yield engine.name, precision, strategies


def check(client: Client, which: dict[str, str], strategy: str) -> str:
    """Return what is wrong; empty: nothing. Raises: Gpt2dError."""
    ask: dict[str, Any] = {
        **which,
        "strategy": strategy,
        "seed": 7,
        "max_new_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "deterministic": True,
    }
    search = strategy in m.SEARCHES
    with client.stream(PROMPT, **ask, logprobs=None if search else 2) as stream:
        text = "".join(piece.text for piece in stream)
        first = stream.result
    if text != first.text or len(first.ids) != NEW_TOKENS:
        return f"streamed {text!r}, the result is {first.text!r}"
    if client.generate(PROMPT, **ask).ids != first.ids:
        return "the same seed wrote something else"
    if not search and not (
        len(first.logprobs) == NEW_TOKENS and all(one.logprob <= 0 and len(one.top) == 2 for one in first.logprobs)
    ):
        return f"log-probabilities: {first.logprobs}"
    ledger = first.ledger
    if not (ledger.new_tokens == NEW_TOKENS and 0 < ledger.prefill_ms < ledger.inference_ms):
        return f"the ledger: {ledger}"
    with client.stream(PROMPT, **(ask | {"max_new_tokens": 900})) as stream:
        if search:  # its text may come at its end only
            stream.cancel()
        try:
            for _ in stream:
                stream.cancel()
        except Cancelled:  # before it had begun
            return ""
        reason = stream.result.finish_reason
        return "" if reason == "cancelled" else f"cancelled, it ended with {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="each engine once and each strategy once")
    add_place(parser)
    args = parser.parse_args()
    failed: list[str] = []
    ran = 0
    with start_daemon(args) as daemon, Client(daemon.endpoint) as client:
        for engine, precision, strategies in combinations(client.hello(), once=args.once):
            which = {"model": args.model, "engine": engine, "precision": precision}
            for strategy in strategies:
                began, name = time.monotonic(), f"{engine}/{precision} {strategy}"
                try:
                    client.load(**which)
                    wrong = check(client, which, strategy)
                except Gpt2dError as e:
                    wrong = f"{type(e).__name__}: {e}"
                print(f"{name}: {wrong or 'ok'} ({time.monotonic() - began:.1f} s)", flush=True)
                ran += 1
                failed += [name] if wrong else []
            with contextlib.suppress(NotLoaded):
                client.unload(**which)
    print(json.dumps({"ran": ran, "failed": failed}))
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
