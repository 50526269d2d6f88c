"""What a model, its engine and its precision are called; and the processes that hold one, taken together, as the window
and the terminal show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sized
from typing import Protocol, TypeAlias, TypeVar

from client.amounts import counted
from protocol import messages as m

Way: TypeAlias = tuple[str, str, str]
"""A model, an engine and a precision."""
Worker = TypeVar("Worker", m.WorkerHealth, m.WorkerStats)
MAX_NODE = 60
"""Most characters of a machine's name that are shown."""


class Chosen(Protocol):
    """Whatever says which model, engine and precision it is of: a result, a worker, a request."""

    @property
    def model(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def precision(self) -> str: ...


def way(of: Chosen) -> Way:
    return of.model, of.engine, of.precision


def name(of: Chosen | Way) -> str:
    """Return a way in one word, model/engine/precision."""
    return "/".join(of if isinstance(of, tuple) else way(of))


def by_way(workers: Iterable[Worker]) -> dict[Way, list[Worker]]:
    """Return the workers of each model, engine and precision, sorted by their numbers."""
    found: dict[Way, list[Worker]] = {}
    for worker in workers:
        found.setdefault(way(worker), []).append(worker)
    for group in found.values():
        group.sort(key=lambda w: w.replica)
    return found


def place(worker: m.WorkerHealth | m.WorkerStats, group: Sized, host: str) -> str:
    """Return the machine it runs on, where that is of interest: it is one of several, or not on the server's own."""
    return f"on {worker.node[:MAX_NODE]}" if worker.node and (len(group) > 1 or worker.node != host) else ""


def summary(group: list[m.WorkerHealth], host: str) -> str:
    """Return how many replicas a model has, and where; empty for a single one on the server's own machine."""
    if len(group) < 2:
        return "".join(place(worker, group, host) for worker in group)
    nodes = Counter(worker.node[:MAX_NODE] for worker in group if worker.node)
    places = ", ".join(f"{number} on {node}" for node, number in nodes.items())
    return f"in {counted(len(group), 'replica')}" + (f": {places}" if set(nodes) - {host} else "")
