"""Clients in processes of their own, for scripts.bench.cluster: how fast the fake engine's texts come, and if right."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from protocol import Client, messages as m
from protocol.connection import Event
from scripts.reliability.asking import Asked, text

STREAM_S = 120.0
END_S = 90.0
KEYS = iter(range(0, 1 << 30, 613))
"""Numbers at which each client's texts begin."""


class Peer:
    """Connection with a number of streams open until `finish`: when one ends, another begins."""

    def __init__(self, endpoint: str, streams: int, tokens: int, key: int) -> None:
        self.client = Client(endpoint)
        self.tokens = 0
        """Number of tokens that have come so far; counted in the connection's thread."""
        self._length = tokens
        self._key = key
        self._over = False
        self._streams: list[Streamed] = []
        for _ in range(streams):
            self.begin()

    def begin(self) -> None:
        self._key += 1
        length = self._length * 3 // 4 + self._key * 37 % (self._length // 2)  # they do not all end at once
        one = Streamed(text(self._key, length), peer=self)
        self._streams.append(one)
        self.client.connection.submit(one.request, one.take, STREAM_S)

    def ended(self, event: Event) -> None:
        if isinstance(event, m.Generated) and not self._over:  # after an error there is no other: `finish` reports it
            self.begin()

    def finish(self) -> list[str]:
        """Return, for each stream, what was wrong with it; empty: nothing."""
        self._over = True
        found = []
        for one in self._streams:
            try:
                one.wait(END_S)
                one.is_right()
                found.append("")
            except AssertionError as e:
                found.append(str(e)[:300] or f"another text than that of {one.request}")
        self.client.close()
        return found


@dataclass
class Streamed(Asked):
    peer: Peer = field(kw_only=True)

    def take(self, event: Event) -> None:
        super().take(event)
        if isinstance(event, m.Tokens):
            self.peer.tokens += len(event.ids)
        elif self.last is not None:
            self.peer.ended(event)


def serve_peers(pipe: Pipe, endpoint: str, count: int, streams: int, tokens: int, key: int) -> None:
    """Run clients: answer `count` with the time and the tokens so far, `finish` with what `Peer.finish` returns."""
    peers = [Peer(endpoint, streams, tokens, key + 997 * i) for i in range(count)]
    while pipe.recv() == "count":
        pipe.send((time.monotonic(), sum(peer.tokens for peer in peers)))
    pipe.send([wrong for peer in peers for wrong in peer.finish()])


@dataclass
class Tally:
    texts: int = 0
    wrong: list[str] = field(default_factory=list)


class Peers:
    """Processes of clients. Each has `count` peers with `streams` streams each."""

    def __init__(self, endpoint: str, processes: int, count: int, streams: int, tokens: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = list[Pipe](), []
        for _ in range(processes):
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(
                target=serve_peers, args=(theirs, endpoint, count, streams, tokens, next(KEYS)), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self._ask("count")  # they are there

    def _ask(self, what: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(what)
        return [pipe.recv() for pipe in self._pipes]

    def rate(self, seconds: float) -> float:
        """Return the tokens a second that come in that time."""
        before = self._ask("count")
        time.sleep(seconds)
        rates = [
            (tokens - then) / (now - at) for (at, then), (now, tokens) in zip(before, self._ask("count"), strict=True)
        ]
        return float(sum(rates))

    def finish(self, tally: Tally) -> None:
        """Begin nothing more, wait for what is open, and compare all texts."""
        for found in self._ask("finish"):
            tally.texts += len(found)
            tally.wrong += filter(None, found)
        for process in self._processes:
            process.join(END_S)
