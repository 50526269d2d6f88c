"""300 connections that say nothing."""

from __future__ import annotations

from scripts.reliability.raw import connect, hung_up

WAITS = True


def attack(host: str, port: int) -> None:
    hung_up([connect(host, port) for _ in range(300)], 20)
