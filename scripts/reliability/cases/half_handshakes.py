"""A greeting, and the handshake after it, cut at each place where something new begins, and held open."""

from __future__ import annotations

from scripts.reliability.raw import connect, hung_up
from scripts.reliability.zmtp import GREETING, ready

WAITS = True

WHOLE = GREETING + ready()
CUTS = [0, 1, 2, 9, 10, 11, 12, 13, 16, 31, 32, 33, 63, 64, 65, 66, 67, 72, 73, len(WHOLE) - 1, len(WHOLE)]
"""Ends around the signature, version, mechanism, role and filler, the command's flags, length, name and end."""


def attack(host: str, port: int) -> None:
    peers = []
    for cut in CUTS:
        peers.append(connect(host, port))
        peers[-1].sendall(WHOLE[:cut])
    hung_up(peers, 20)  # the last one for not answering the server's heartbeats
