"""Bytes that are not ZMTP: a web browser, TLS, SSH, Redis, and noise."""

from __future__ import annotations

import random

from scripts.reliability.raw import connect, hung_up, sent

WAITS = True

noise = random.Random(1)
BROWSER = (
    b"GET / HTTP/1.1\r\nHost: localhost:5757\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n"
    b"Connection: keep-alive\r\nPriority: u=0, i\r\n\r\n"
)
"""Long enough to be a message of ZMTP 1.0, which has no greeting."""
SAID = [
    BROWSER,
    b"\x01\x00\x05\x00abcd",  # ZMTP 1.0
    b"\xff\0\0\0\0\0\0\0\1\x7f\x01\x05\0\0\0\4abcd",  # ZMTP 2.0
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n",
    b"POST /v1 HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"{" * 100_000,
    bytes.fromhex("160301020001000" + "1fc0303" + "ab" * 32 + "20" + "cd" * 32 + "003e130213031301c02c"),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\0" * 100_000,
    b"\xff" * 100_000,
    *(noise.randbytes(2000) for _ in range(20)),
]


def attack(host: str, port: int) -> None:
    peers = []
    for said in SAID:
        peers.append(connect(host, port))
        sent(peers[-1], said)
    hung_up(peers, 20)
