#!/usr/bin/env python3
"""Measure how the daemon serves many at once, and how the cost of a request grows, on each size.

    python -m scripts.investigation.serving_methods              all; started again, it measures what is missing
    python -m scripts.investigation.serving_methods --quick      seconds: to see that everything works
    python -m scripts.investigation.serving_methods --sizes gpt2 --only clients rate

The loops are those of scripts.bench.serving. One daemon a size, at its default engine and precision, greedily and
without guessing ahead, prompts of random tokens. The sweeps:

    clients   1, 2, 4 ... 64 clients, each streaming one request after the other (a closed loop); to 32 on gpt2-medium,
              to 16 on gpt2-large
    rate      requests arrive at random (a Poisson process) at twice the rate each time, until the 95th percentile of
              the time to the first token is ten times that of the lowest rate (an open loop: a request that waits for
              one of 64 clients counts from when it fell due); then one rate between the last two
    prompt    one request, with a prompt of 16 to 900 tokens
    new       one request, with 8 to 512 new tokens
    batch     one request for 1 to 16 texts after one prompt

Each run of `clients` and `rate` measures the tokens a second of all and, over its requests, the percentiles of the time
to the first token and of the time a token; of the others what the server and the client measure of one request. The
clients run on the same machine as the daemon.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from protocol import Client
from scripts.bench.figures import percentile
from scripts.bench.serving import Request, serve
from scripts.investigation.harness import Key, Plan, Results, Row, measure, model_of, parse, parser, runs_of
from scripts.investigation.one_daemon import Limited, OneDaemon, add_seconds, finish, medians, most, table
from scripts.investigation.texts import PROMPT_TOKENS, is_trained, random_prompt
from server.catalogue.catalogue import Model
from server.catalogue.engines import choose_engine

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
FEWER_CLIENTS = {"gpt2-medium": 32, "gpt2-large": 16, "gpt2-xl": 16}
"""Most clients of sizes where more would only wait longer: more than 16 do not run together."""
REQUESTS = 2
"""Requests of each client in a run of the closed loop."""
PROMPTS = (16, 64, 256, 512, 900)
NEW = (8, 32, 128, 512)
BATCH = (1, 2, 4, 8, 16)
NEW_TOKENS = 25
FEW_TOKENS = 8
"""New tokens after prompts of different lengths: enough to measure the time a token."""
BURST_S, QUICK_BURST_S = 5.0, 0.5
BURSTS = 2
"""Number of runs of each rate."""
FEWEST = 4
"""Fewest requests of a burst, however long it takes them to arrive."""
MOST_CLIENTS = 64
LAST_RATE = 4096.0
EXPLODED, AT_LEAST_MS = 10, 200.0
"""Limits of the time to the first token, which end the rising rates: times the lowest rate's, and milliseconds."""
SWEEPS = ("clients", "rate", "prompt", "new", "batch")


class Server:
    """Daemon of a size with its model, and as many connections as are wanted."""

    def __init__(self, daemon: OneDaemon, model: Model) -> None:
        self.daemon, self.model = daemon, model
        self.engine, self.precision = choose_engine(None, None)
        self._clients: list[Client] = []

    def start(self) -> None:
        """Load the model, and warm it up where that has not been done."""
        if not self._clients:
            self.daemon.load(self.model, self.engine, self.precision)
            self.clients(1)
            self.one(PROMPT_TOKENS, NEW_TOKENS, 1, seed=0)

    def clients(self, count: int) -> list[Client]:
        while len(self._clients) < count:
            self._clients.append(self.daemon.connect())
            self._clients[-1].hello()
        return self._clients[:count]

    def one(self, prompt_tokens: int, new_tokens: int, outputs: int, seed: int) -> dict[str, float]:
        prompt = random_prompt(self.model, (prompt_tokens, new_tokens, outputs, seed), prompt_tokens)
        began = time.perf_counter()
        done = self.clients(1)[0].generate(
            prompt_ids=prompt, max_new_tokens=new_tokens, n=outputs, strategy="greedy", ignore_eos=True, speculate=0
        )
        whole_s = time.perf_counter() - began
        ledger = done.ledger
        return {
            "whole_ms": whole_s * 1000,
            "prefill_ms": ledger.prefill_ms,
            "inference_ms": ledger.inference_ms,
            "token_ms": ledger.decode_ms / (new_tokens - 1),
            "tok_s": outputs * new_tokens / whole_s,
            "mean_batch": ledger.mean_batch,
        }

    def facts(self) -> dict[str, Any]:
        return {"model": self.model.name, "rss_mb": self.daemon.rss_mb(self.model, self.engine, self.precision)}


class One:
    """Trial of a request by itself."""

    def __init__(self, server: Server, prompt_tokens: int, new_tokens: int, outputs: int) -> None:
        self._server, self._shape = server, (prompt_tokens, new_tokens, outputs)
        server.start()

    def run(self, seed: int) -> dict[str, float]:
        return self._server.one(*self._shape, seed)

    def facts(self) -> dict[str, Any]:
        return self._server.facts()


class Closed:
    """Trial of a number of clients, each with one request after the other."""

    def __init__(self, server: Server, clients: int) -> None:
        self._server, self._count = server, clients
        server.start()

    def run(self, seed: int) -> dict[str, float]:
        prompts = [
            [random_prompt(self._server.model, (seed, self._count, i, turn)) for turn in range(REQUESTS)]
            for i in range(self._count)
        ]
        return seen(*serve(self._server.clients(self._count), prompts, NEW_TOKENS, self._server.precision))

    def facts(self) -> dict[str, Any]:
        return self._server.facts()


class Open:
    """Trial of requests that arrive at a rate, whether those before them are answered or not."""

    def __init__(self, server: Server, rate: float, burst_s: float) -> None:
        self._server, self._rate = server, rate
        self._burst_s = burst_s
        self._first_ms: list[float] = []
        server.start()

    def run(self, seed: int) -> dict[str, float]:
        count = max(FEWEST, round(self._rate * self._burst_s))
        due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / self._rate, count)).tolist()
        prompts = [random_prompt(self._server.model, (seed, round(1000 * self._rate), i)) for i in range(count)]
        clients = self._server.clients(min(MOST_CLIENTS, count))
        turns = range(len(clients))
        requests, took_s = serve(
            clients,
            [prompts[i :: len(clients)] for i in turns],
            NEW_TOKENS,
            self._server.precision,
            [due_s[i :: len(clients)] for i in turns],
        )
        self._first_ms += [round(r.first_s * 1000, 2) for own in requests for r in own]
        return seen(requests, took_s) | {"arrived_per_s": count / due_s[-1]}

    def facts(self) -> dict[str, Any]:
        return self._server.facts() | {"first_token_ms": self._first_ms}


def seen(of_clients: Sequence[Sequence[Request]], took_s: float) -> dict[str, float]:
    """Return what the clients saw in one run."""
    requests = [request for own in of_clients for request in own]
    first = [r.first_s * 1000 for r in requests]
    token = [(r.whole_s - r.first_s) * 1000 / max(1, r.tokens - 1) for r in requests]
    return {
        "tok_s": sum(r.tokens for r in requests) / took_s,
        "requests_per_s": len(requests) / took_s,
        **{f"first_token_p{share:.0f}_ms": percentile(first, share / 100) for share in (50, 95, 99)},
        "token_p50_ms": percentile(token, 0.5),
        "token_p95_ms": percentile(token, 0.95),
    }


class Series:
    """Sweeps on one size."""

    def __init__(self, args: argparse.Namespace, results: Results, server: Server, size: str) -> None:
        self._args, self._results = args, results
        self._server, self._size = server, size
        self._runs = runs_of(size, quick=args.quick)
        self._one_client: Row | None = None

    def plan(self, sweep: str, trial: type[One | Closed | Open], *shape: Any, **named: str | float) -> Plan:
        """Return the plan of a trial made with `shape`; `named` is what its key says of that."""
        server = self._server
        key: Key = {
            "model": self._size,
            "trained": is_trained(server.model),
            "engine": server.engine,
            "precision": server.precision,
            "sweep": sweep,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "outputs": 1,
            "clients": 1,
            "rate": 0.0,
            "rows": self._args.rows,
            "threads": self._args.threads,
        }
        runs, seconds = (BURSTS, math.inf) if trial is Open else (self._runs, self._args.seconds)

        def make() -> AbstractContextManager[Limited]:
            return Limited(trial(server, *shape), runs, seconds, warm=True)

        return Plan(key | named, make)

    def rows(self, sweep: str) -> list[Row]:
        most_clients = 4 if self._args.quick else FEWER_CLIENTS.get(self._size, MOST_CLIENTS)
        if sweep == "rate":
            return list(self._rising())
        if sweep == "clients":
            plans = [self.plan(sweep, Closed, n, clients=n) for n in CLIENTS if n <= most_clients]
        elif sweep == "prompt":
            plans = [self.plan(sweep, One, n, FEW_TOKENS, 1, prompt_tokens=n, new_tokens=FEW_TOKENS) for n in PROMPTS]
        elif sweep == "new":
            plans = [self.plan(sweep, One, PROMPT_TOKENS, n, 1, new_tokens=n) for n in NEW]
        else:
            plans = [
                self.plan(sweep, One, PROMPT_TOKENS, NEW_TOKENS, n, outputs=n) for n in BATCH if n <= self._args.rows
            ]
        rows = measure(self._results, plans, self._runs, f"{self._size}, {sweep}")
        if sweep == "clients":
            self._one_client = rows[0]
        return rows

    def _rising(self) -> Iterator[Row]:
        """Measure rates of arrival, each twice the one before, until the first token is too late; and one in between.

        The lowest is what one client alone gets answered, down to a power of two, so that a second start finds the
        same.
        """
        one = self._one_client
        if one is None:
            (one,) = measure(
                self._results, [self.plan("clients", Closed, 1, clients=1)], self._runs, f"{self._size}, one client"
            )
            yield one
        if one.problem:
            return
        rate, limit_ms = 2.0 ** (math.floor(math.log2(one.median("requests_per_s")))), math.inf
        while rate <= LAST_RATE:
            row = self._at(rate)
            yield row
            if row.problem:
                return
            late_ms = row.median("first_token_p95_ms")
            if late_ms > limit_ms:
                yield self._at(rate / 2**0.5)
                return
            limit_ms = min(limit_ms, max(AT_LEAST_MS, EXPLODED * late_ms))
            rate *= 4 if self._args.quick else 2

    def _at(self, rate: float) -> Row:
        rate = float(f"{rate:.3g}")
        plan = self.plan(
            "rate", Open, rate, QUICK_BURST_S if self._args.quick else BURST_S, rate=rate, clients=MOST_CLIENTS
        )
        (row,) = measure(self._results, [plan], BURSTS, f"{self._size}, {rate:g} requests/s")
        return row


def measured(args: argparse.Namespace, results: Results) -> list[Row]:
    rows: list[Row] = []
    for size in args.sizes:
        model = model_of(size, args.models_dir)
        with OneDaemon(args, f"--rows={args.rows}") as daemon:
            series = Series(args, results, Server(daemon, model), size)
            for sweep in args.only:
                rows += series.rows(sweep)
    return rows


def tables(rows: list[Row]) -> str:
    many = {
        "model": lambda r: r.key["model"],
        "clients": lambda r: r.key["clients"] if r.key["sweep"] == "clients" else "-",
        "requests/s asked": lambda r: r.key["rate"] or "-",
        "runs": most,
        "tok/s of all": lambda r: medians(r, "tok_s"),
        "first token ms, p50": lambda r: medians(r, "first_token_p50_ms"),
        "first token ms, p95": lambda r: medians(r, "first_token_p95_ms"),
        "ms a token, p50": lambda r: medians(r, "token_p50_ms"),
    }
    alone = {
        "model": lambda r: r.key["model"],
        "prompt": lambda r: r.key["prompt_tokens"],
        "new": lambda r: r.key["new_tokens"],
        "texts": lambda r: r.key["outputs"],
        "runs": most,
        "prefill ms": lambda r: medians(r, "prefill_ms"),
        "ms a token": lambda r: medians(r, "token_ms"),
        "whole ms": lambda r: medians(r, "whole_ms"),
        "tok/s of all": lambda r: medians(r, "tok_s"),
    }
    loops = ("clients", "rate")
    ordered = sorted(
        (r for r in rows if r.key["sweep"] in loops),
        key=lambda r: SWEEPS.index(r.key["sweep"]) * 1e6 + float(r.key["rate"]),
    )
    return "\n".join([table(ordered, many), table([r for r in rows if r.key["sweep"] not in loops], alone)])


def main() -> None:
    made = parser(__doc__, "serving_methods")
    made.add_argument(
        "--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="SWEEP", help=f"of {', '.join(SWEEPS)}"
    )
    made.add_argument("--rows", type=int, default=16, help="sequences that run together (default: %(default)s)")
    add_seconds(made, 3.0)
    args, results = parse(made, "serving_methods")
    rows = measured(args, results)
    finish(results, rows, tables(rows))


if __name__ == "__main__":
    main()
