"""The messages of the link between gateway and worker, on a socket of its own.

It carries Cancel, Progress, Tokens, results and Failure too, with the gateway's own request ids. No client sees any of it.
"""

from __future__ import annotations

from typing import TypeAlias

from protocol import messages as m


class Work(m.Request, frozen=True, tag="work"):
    """A request for the worker. `group` is the same for all work of one peer: rows are shared out fairly among groups."""

    group: int
    request: m.OfModel


class Sized(m.Reply, frozen=True, tag_field="type", tag="sized"):
    """The worker knows what it needs, now that it has its model's config.json: its reservation is changed, or it is ended."""

    memory_bytes: int


class Ready(m.Reply, frozen=True, tag_field="type", tag="ready"):
    """The worker has loaded its model."""

    digest: str
    context: int
    rows: int
    threads: int
    rss_bytes: int


class Beat(m.Reply, frozen=True, tag_field="type", tag="beat"):
    """The worker's loop moves: sent between its steps, at most a few times a second."""

    running: int
    waiting: int
    rss_bytes: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    busy_ms: float


ForWorker: TypeAlias = Work | m.Cancel
FromWorker: TypeAlias = m.AnyReply | Sized | Ready | Beat
