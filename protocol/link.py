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


class Leave(m.Request, frozen=True, tag="leave"):
    """Another process serves in this one's place."""


class Started(m.Reply, frozen=True, tag_field="type", tag="started"):
    """A worker's process is there, on that machine. One that measures waits for its Measure."""

    node: str = ""


class Sized(m.Reply, frozen=True, tag_field="type", tag="sized"):
    """What the worker needs from here on: known when it has its model's config.json, and less once it has loaded.

    Its reservation is changed, or where there is no room it is ended.
    """

    memory_bytes: int


class Ready(m.Reply, frozen=True, tag_field="type", tag="ready"):
    """The worker has loaded its model."""

    digest: str
    quantised_share: float
    disk_bytes: int
    context: int
    rows: int
    threads: int
    rss_bytes: int


class Beat(m.Reply, frozen=True, tag_field="type", tag="beat"):
    """The worker's loop moves: sent between its steps, at most a few times a second."""

    rss_bytes: int
    running: int = 0
    waiting: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    busy_ms: float = 0.0


ForWorker: TypeAlias = Work | m.Cancel | m.Measure | Leave
FromWorker: TypeAlias = m.AnyReply | Started | Sized | Ready | Beat
