"""Parts that trials of one daemon share: the daemon, a limit on the time of slow ones, and the table of results."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self

from protocol import Client, Gpt2dError, messages as m
from scripts.bench.arguments import start_daemon
from scripts.investigation.harness import WARMUPS, Key, Results, Row, Trial, interval
from server.catalogue.catalogue import Model

LEAST = 3
"""Turns that every trial gets."""
LONG_S = 2.0
"""Time of a warm-up that is not done twice."""


class OneDaemon:
    """Context manager. The daemon starts, and loads a model, when the first trial wants it."""

    def __init__(self, args: argparse.Namespace, *more: str) -> None:
        """Take the arguments of a script; `more` are further flags of gpt2d-server."""
        self._args, self._more = args, more
        self._stack = ExitStack()
        self._loaded: dict[tuple[str, str, str], m.Loaded | Gpt2dError] = {}

    @cached_property
    def endpoint(self) -> str:
        return self._stack.enter_context(start_daemon(self._args, *self._more)).endpoint

    @cached_property
    def client(self) -> Client:
        return self.connect()

    def connect(self) -> Client:
        """Return a connection that is closed at the end."""
        return self._stack.enter_context(Client(self.endpoint))

    def load(self, model: Model, engine: str, precision: str) -> m.Loaded:
        """Load a model, once. Raises: Gpt2dError, the same again where it has failed before."""
        which = model.name, engine, precision
        if which not in self._loaded:
            try:
                self._loaded[which] = self.client.load(model.name, engine=engine, precision=precision)
            except Gpt2dError as e:
                self._loaded[which] = e
        found = self._loaded[which]
        if isinstance(found, Gpt2dError):
            raise found
        return found

    def rss_mb(self, model: Model, engine: str, precision: str) -> float:
        """Return the memory of the worker that holds a model, now; 0 where there is none."""
        which = model.name, engine, precision
        return sum(w.rss_bytes for w in self.client.stats().workers if (w.model, w.engine, w.precision) == which) / 1e6

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Limited:
    """Trial that is asked in as many turns as fit into its time, evenly spread over all, and in LEAST at least.

    So a slow one is still measured in turns with the fast ones. It has fewer samples then.
    """

    def __init__(self, trial: Trial, runs: int, seconds: float, *, warm: bool = False) -> None:
        """Limit a trial; `warm`: it needs no warm-up, since something else has warmed up what it asks."""
        self._trial, self._warm = trial, warm
        self._runs, self._seconds = runs, seconds
        self._took: list[float] = []
        self._turns = runs

    def run(self, seed: int) -> dict[str, float]:
        turn = seed - WARMUPS
        if turn < 0 and (self._warm or (self._took and self._took[0] > LONG_S)):
            return {}
        if turn == 1 or (turn == 0 and not self._warm):  # what it takes is known then
            self._turns = int(min(self._runs, max(LEAST, self._seconds / min(self._took))))
        if turn > 0 and turn * self._turns // self._runs == (turn - 1) * self._turns // self._runs:
            return {}
        began = time.perf_counter()
        measured = self._trial.run(seed)
        self._took.append(time.perf_counter() - began)
        return measured

    def facts(self) -> dict[str, Any]:
        return self._trial.facts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing: what it asks ends with the daemon."""


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        default=default,
        metavar="S",
        help="the time of each trial's runs: a slow one is asked in fewer of the turns, evenly spread, in "
        f"{LEAST} at least (default: %(default)s)",
    )


def medians(row: Row, name: str) -> str:
    """Return the median and its 95 % interval, as `12.3 [11.9, 12.8]`."""
    if not row.samples.get(name):
        return "-"
    return ranged(row.samples[name])


def ranged(values: Sequence[float], scale: float = 1.0) -> str:
    low, high = interval(values)
    return f"{figure(statistics.median(values) * scale)} [{figure(low * scale)}, {figure(high * scale)}]"


def figure(value: float) -> str:
    """Return three digits, as a person writes them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], object]]) -> str:
    """Return a table in Markdown; rows that could not be measured come after it, with the reason."""
    cells = [[str(cell(row)) for cell in columns.values()] for row in rows if not row.problem]
    problems = [f"{name_of(row.key)}: {row.problem}" for row in rows if row.problem]
    return "\n".join([*lines_of([*columns], cells), *problems]) + "\n"


def lines_of(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def name_of(key: Key) -> str:
    return " ".join(f"{name}={value}" for name, value in key.items())


def last_line(results: Results, rows: Sequence[Row]) -> str:
    """Return one JSON object: the results file, and the medians of each row."""

    def said_of(row: Row) -> dict[str, Any]:
        if row.problem:
            return row.key | {"problem": row.problem}
        return row.key | {"runs": most(row)} | {name: row.median(name) for name in row.samples}

    last = {"script": results.script, "file": str(results.file), "rows": list(map(said_of, rows))}
    return json.dumps(last, ensure_ascii=False)


def finish(results: Results, rows: Sequence[Row], text: str) -> None:
    """Print the tables and the last line; exit with 1 where nothing could be measured."""
    print(text)
    print(last_line(results, rows))
    if all(row.problem for row in rows):
        sys.exit(1)


def most(row: Row) -> int:
    """Return the number of runs of a row."""
    return max(map(len, row.samples.values()), default=0)
