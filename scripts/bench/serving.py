#!/usr/bin/env python3
"""Measure how the daemon serves many clients: throughput, time to first token, time per token.

    python -m scripts.bench.serving --like gpt2 --clients 8
    python -m scripts.bench.serving --like gpt2 --clients 8 --rate 4              an open loop: 4 requests a second
    python -m scripts.bench.serving --like gpt2 --clients 1 --intruder-tokens 1000  long prompts arrive meanwhile
    python -m scripts.bench.serving --like gpt2 --clients 1 --beside int4           a second model writes meanwhile
    python -m scripts.bench.serving --like gpt2 --clients 1 --requests 60 --prompt-tokens 8 --new-tokens 5 \
        --intruder-tokens 1000 --scored-tokens 50000     short ones, while others send long prompts and long texts

Starts a daemon of its own. Each client has a connection of its own and streams --requests generations one after the
other (a closed loop), or as they fall due at --rate requests a second in all (an open one: the time a request waits for
its client counts). `fairness` is the slowest client's time for its work over the fastest's, `clients_cores` how many
cores the clients took meanwhile, which the daemon's threads did without. The last line is one JSON object.
scripts.investigation.serving_methods runs the whole series with it: from 1 to 64 clients, rising rates, longer prompts,
more tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from protocol import Client
from protocol.errors import Cancelled, DeadlineExceeded
from scripts.bench.arguments import add_arguments, parse, start_daemon
from scripts.bench.figures import percentile

SCORED_STRIDE, SCORED_S = 64, 5.0
"""Stride of what is scored meanwhile, and seconds after which that is asked for again: nobody waits for its end."""


@dataclass(frozen=True)
class Request:
    """Seconds of a request: until the first token, the gaps between pieces, all; and the tokens written."""

    first_s: float
    gaps_s: list[float]
    whole_s: float
    tokens: int


def stream_one(client: Client, ids: list[int], new_tokens: int, due: float, precision: str) -> Request:
    first, last = 0.0, due
    gaps: list[float] = []
    with client.stream(
        prompt_ids=ids, max_new_tokens=new_tokens, strategy="greedy", ignore_eos=True, speculate=0, precision=precision
    ) as stream:
        for _ in stream:
            now = time.perf_counter()
            if first:
                gaps.append(now - last)
            else:
                first = now - due
            last = now
        return Request(first, gaps, time.perf_counter() - due, len(stream.result.ids))


def serve(
    clients: Sequence[Client],
    prompts: Sequence[Sequence[list[int]]],
    new_tokens: int,
    precision: str,
    due_s: Sequence[Sequence[float]] = (),
) -> tuple[list[list[Request]], float]:
    """Let each client stream its prompts one after the other, in a thread of its own.

    Returns what each saw, and the seconds it all took.

    `due_s` says when each request falls due, from the beginning; left out: when the one before it is answered.
    Raises: what a request failed with.
    """
    began = time.perf_counter()

    def work(index: int) -> list[Request]:
        done = []
        for turn, ids in enumerate(prompts[index]):
            due = time.perf_counter()
            if due_s:
                due = began + due_s[index][turn]
                time.sleep(max(0.0, due - time.perf_counter()))
            done.append(stream_one(clients[index], ids, new_tokens, due, precision))
        return done

    with ThreadPoolExecutor(len(clients)) as pool:
        requests = list(pool.map(work, range(len(clients))))
    return requests, time.perf_counter() - began


def summary(values_s: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    return {
        name: round(percentile(values_s, share) * 1000, 1)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=1)
    parser.add_argument("--clients", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=3, help="of each client (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, help="requests a second of all clients together (default: as fast as they are answered)"
    )
    parser.add_argument("--rows", type=int, help="sequences that run together (default: the daemon's)")
    parser.add_argument(
        "--intruder-tokens", type=int, metavar="N", help="one more client sends prompts of N tokens all the time"
    )
    parser.add_argument(
        "--scored-tokens",
        type=int,
        metavar="N",
        help=f"one more client has texts of N tokens scored all the time, at a stride of {SCORED_STRIDE}",
    )
    parser.add_argument(
        "--beside",
        metavar="PRECISION",
        help="one more client writes all the time, with a second model: this one at PRECISION",
    )
    args, model = parse(parser)
    vocabulary = model.architecture.vocabulary if model.architecture else 0
    rng = np.random.default_rng(0)
    over = threading.Event()
    beside: list[int] = []

    with (
        start_daemon(args, *([f"--rows={args.rows}"] if args.rows else [])) as daemon,
        Client(daemon.endpoint) as control,
    ):
        loaded = control.load(model.name, engine=args.engine, precision=args.precision)
        for precision in {args.precision, args.beside or args.precision}:
            control.load(model.name, engine=args.engine, precision=precision)
            control.generate(
                prompt_ids=[1] * args.prompt_tokens, max_new_tokens=8, ignore_eos=True, precision=precision
            )  # warms up
        clients = [Client(daemon.endpoint) for _ in range(args.clients)]
        for client in clients:
            client.hello()
        prompts = rng.integers(0, vocabulary, (args.clients, args.requests, args.prompt_tokens)).tolist()
        due_s: list[list[float]] = []
        if args.rate:
            turns = range(0, args.requests * args.clients, args.clients)
            due_s = [[(turn + i) / args.rate for turn in turns] for i in range(args.clients)]

        def intrude() -> None:
            with Client(daemon.endpoint) as client:
                while not over.is_set():
                    ids = rng.integers(0, vocabulary, args.intruder_tokens).tolist()
                    client.generate(prompt_ids=ids, max_new_tokens=1, ignore_eos=True, precision=args.precision)

        def have_scored() -> None:
            with Client(daemon.endpoint) as client:
                ids = rng.integers(0, vocabulary, args.scored_tokens).tolist()
                while not over.is_set():
                    with contextlib.suppress(DeadlineExceeded, Cancelled):
                        client.score(ids=ids, stride=SCORED_STRIDE, timeout=SCORED_S, precision=args.precision)

        def write_beside() -> None:
            with Client(daemon.endpoint) as client:
                ids = rng.integers(0, vocabulary, args.prompt_tokens).tolist()
                while not over.is_set():
                    for piece in client.stream(
                        prompt_ids=ids,
                        max_new_tokens=args.new_tokens,
                        ignore_eos=True,
                        speculate=0,
                        precision=args.beside,
                    ):
                        beside.append(len(piece.ids))
                        if over.is_set():
                            break

        others = [
            threading.Thread(target=f)
            for f, wanted in (
                (intrude, args.intruder_tokens),
                (have_scored, args.scored_tokens),
                (write_beside, args.beside),
            )
            if wanted
        ]
        for thread in others:
            thread.start()
        own_s = time.process_time()
        try:
            done, took = serve(clients, prompts, args.new_tokens, args.precision, due_s)
            own_s = time.process_time() - own_s
            written_beside = sum(beside)
        finally:
            over.set()
        for thread in others:
            thread.join()
        for client in clients:
            client.close()

    requests = [request for own in done for request in own]
    busy = [sum(request.whole_s for request in own) for own in done]
    print(f"{len(requests)} requests in {took:.1f} s", file=sys.stderr)
    figures = {
        "model": loaded.model,
        "engine": loaded.engine,
        "precision": loaded.precision,
        "rows": loaded.rows,
        "clients": args.clients,
        "tok_s": round(sum(request.tokens for request in requests) / took, 1),
        "first_token_ms": summary([request.first_s for request in requests]),
        "per_token_ms": summary(
            [(request.whole_s - request.first_s) / max(1, request.tokens - 1) for request in requests]
        ),
        "longest_gap_ms": summary([max(request.gaps_s, default=0.0) for request in requests]),
        "mean_request_s": round(statistics.mean(request.whole_s for request in requests), 2),
        "beside_tok_s": round(written_beside / took, 1),
        "clients_cores": round(own_s / took, 2),
        "fairness": round(max(busy) / min(busy), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
