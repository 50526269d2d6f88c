"""A worker without an engine that writes as fast as the gateway takes it, and a daemon that starts workers like it.

    python -m scripts.reliability.flood daemon 1 ARGUMENTS OF gpt2d-server      one token in each message

The tokens are those of the fake engine (scripts.reliability.fakes.FakeEngine), so that a text that lost one, or got
another's, is another text.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from protocol import messages as m
from protocol.ledger import ledger
from scripts.daemon import Daemon
from scripts.reliability.asking import VOCABULARY
from server.launch.spec import Spec
from server.link import Beat, ForWorker, Ready, Started, Work
from server.worker.connection import GatewayConnection
from server.worker.loop import BEAT_S

CONTEXT, ROWS = 1024, 64


class FloodDaemon(Daemon):
    """A daemon whose workers put `piece` tokens into each message."""

    def __init__(self, folder: Path, piece: int, *arguments: str) -> None:
        self.program = ("scripts.reliability.flood", "daemon", str(piece))
        super().__init__(folder, *arguments)


@dataclass
class Text:
    """A text that is being written. The next token follows from `total`, the sum of all its tokens."""

    id: int
    request: m.Generate
    total: int
    ids: list[int] = field(default_factory=list)

    def write(self, count: int) -> list[int]:
        """Write the next tokens and return them."""
        first = len(self.ids)
        for _ in range(min(count, self.request.max_new_tokens - first)):
            self.ids.append(1 + self.total % (VOCABULARY - 1))
            self.total += self.ids[-1]
        return self.ids[first:]


class Flood:
    def __init__(self, spec: Spec, piece: int) -> None:
        self._spec, self._piece = spec, piece
        self._connection = GatewayConnection(spec)
        self._texts: dict[int, Text] = {}
        self._beat_at = 0.0

    def run(self) -> None:
        """Send a message of each text in turn, for ever."""
        rss = psutil.Process().memory_info().rss
        self._connection.send(Started(id=None, node=self._spec.node))
        self._connection.send(
            Ready(
                id=None,
                digest="flood",
                quantised_share=0.0,
                disk_bytes=0,
                context=CONTEXT,
                rows=ROWS,
                threads=1,
                rss_bytes=rss,
            )
        )
        while True:
            for message in self._connection.receive(0 if self._texts else int(BEAT_S * 1000)):
                self._take(message)
            for text in list(self._texts.values()):
                ids = text.write(self._piece)
                self._connection.send(m.Tokens(id=text.id, text=" word" * len(ids), ids=ids))
                if len(text.ids) == text.request.max_new_tokens:
                    self._end(text, "length")
            if time.monotonic() > self._beat_at + BEAT_S:
                self._beat_at = time.monotonic()
                self._connection.send(Beat(id=None, running=len(self._texts), rss_bytes=rss))

    def _take(self, message: ForWorker) -> None:
        if isinstance(message, Work) and isinstance(message.request, m.Generate):
            self._texts[message.id] = Text(message.id, message.request, sum(message.request.prompt_ids or ()))
        elif isinstance(message, m.Cancel) and message.target in self._texts:
            self._end(self._texts[message.target], "cancelled")

    def _end(self, text: Text, reason: m.FinishReason) -> None:
        del self._texts[text.id]
        spec = self._spec
        self._connection.send(
            m.Generated(
                id=text.id,
                text=" word" * len(text.ids),
                ids=text.ids,
                finish_reason=reason,
                prompt_truncated=0,
                settings={},
                model=spec.model,
                engine=spec.engine,
                precision=spec.precision,
                digest="flood",
                threads=1,
                ledger=ledger(new_tokens=len(text.ids)),
            )
        )


def end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def main() -> None:
    if sys.argv[1] == "worker":
        spec = Spec.from_line(sys.stdin.buffer.readline())
        threading.Thread(target=end_with_stdin, daemon=True).start()
        Flood(spec, int(sys.argv[2])).run()
        return
    from server import __main__ as server
    from server.launch import local

    local.PROGRAM = ("scripts.reliability.flood", "worker", sys.argv[2])
    del sys.argv[1:3]
    server.main()


if __name__ == "__main__":
    main()
