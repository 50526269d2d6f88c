#!/usr/bin/env python3
"""Measure what the door for HTTP costs over the protocol: first token, tokens per second of one stream.

    python -m scripts.bench.door --like gpt2
    python -m scripts.bench.door --model demo --runs 40

Starts a daemon of its own and a door before it, each on a free port, and reads a stream from both in turns (drawn at
temperature 1 from all tokens, one client). Figures are medians: `added` compares the first tokens, `ratio` the tokens
per second of a request and the one beside it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import numpy as np

from protocol import Client
from scripts.bench.arguments import add_arguments, parse, start_daemon
from scripts.bench.roundtrip import PAUSE_S, Timing

START_S = 60.0
WARM_UP = 2
"""Pairs of streams that are not counted."""


@contextlib.contextmanager
def opened(endpoint: str) -> Iterator[str]:
    """Open a door to a daemon, in a process of its own; give its host and port."""
    command = [sys.executable, "-m", "client.doors.http", endpoint, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as door:
        try:
            line = door.stderr.readline() if door.stderr else ""
            if not line.startswith("gpt2d-http: http://"):
                sys.exit(line or "gpt2d-http did not start")
            yield urlsplit(line.split()[1]).netloc
        finally:
            door.terminate()


def by_protocol(client: Client, ids: list[int], new_tokens: int) -> Timing:
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    with client.stream(prompt_ids=ids, max_new_tokens=new_tokens, top_k=0, seed=1) as stream:
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
    return Timing(first - began, time.perf_counter() - began)


def by_http(connection: http.client.HTTPConnection, ids: list[int], new_tokens: int) -> Timing:
    body = json.dumps({"prompt": ids, "max_tokens": new_tokens, "seed": 1, "stream": True})
    time.sleep(PAUSE_S)
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(answer.read().decode())
    answer.readline()
    first = time.perf_counter()
    answer.read()
    return Timing(first - began, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=20)
    args, model = parse(parser)
    vocabulary = model.architecture.vocabulary if model.architecture else 0
    with (
        start_daemon(args) as daemon,
        Client(daemon.endpoint) as client,
        opened(daemon.endpoint) as place,
        contextlib.closing(http.client.HTTPConnection(place, timeout=START_S)) as connection,
    ):
        loaded = client.load(model.name, engine=args.engine, precision=args.precision)
        ways: dict[str, Callable[[list[int]], Timing]] = {
            "protocol": lambda ids: by_protocol(client, ids, args.new_tokens),
            "http": lambda ids: by_http(connection, ids, args.new_tokens),
        }
        random = np.random.default_rng(0)
        found: dict[str, list[Timing]] = {name: [] for name in ways}
        for turn in range(args.runs + WARM_UP):
            for name in sorted(ways, reverse=bool(turn % 2)):
                timing = ways[name](random.integers(0, vocabulary, args.prompt_tokens).tolist())
                if turn >= WARM_UP:
                    found[name].append(timing)
    pairs = list(zip(found["protocol"], found["http"], strict=True))
    first = {name: statistics.median(one.first_s for one in runs) * 1000 for name, runs in found.items()}
    rate = {name: args.new_tokens / statistics.median(one.whole_s for one in runs) for name, runs in found.items()}
    added = statistics.median((http.first_s - plain.first_s) * 1000 for plain, http in pairs)
    ratio = statistics.median(plain.whole_s / http.whole_s for plain, http in pairs)
    figures = {
        "model": loaded.model, "engine": loaded.engine, "precision": loaded.precision, "threads": loaded.threads,
        "first_token_ms": {name: round(value, 2) for name, value in first.items()} | {"added": round(added, 2)},
        "tok_s": {name: round(value, 1) for name, value in rate.items()} | {"ratio": round(ratio, 3)},
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
