"""Messages of very many empty parts on several connections at once, none so large that it is cut before it is complete.

ZeroMQ gives nobody else's message before the last part of one that it has begun to give.
"""

from __future__ import annotations

from contextlib import ExitStack

from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import MORE, frame

CONNECTIONS = 2
MESSAGE = frame(b"", MORE) * 60_000 + frame(b"")


def attack(host: str, port: int) -> None:
    with ExitStack() as stack:
        for peer in [stack.enter_context(shaken(host, port)) for _ in range(CONNECTIONS)]:
            sent(peer, MESSAGE)
