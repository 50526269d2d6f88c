"""Messages of very many empty parts on new connections, again and again without a pause.

Each connection is cut; dozens of others would be under way by then, each of which takes megabytes, and milliseconds.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import MORE, frame

AT_ONCE, TIMES = 2, 60
PING_S = 1.0  # on a busy machine; without a bound it is ten seconds
MESSAGE = frame(b"", MORE) * 50_000 + frame(b"")


def attack(host: str, port: int) -> None:
    def once(_: int) -> None:
        with contextlib.suppress(OSError), shaken(host, port) as peer:  # it may be hung up on in its handshake
            sent(peer, MESSAGE)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(once, range(AT_ONCE * TIMES)))
