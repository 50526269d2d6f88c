"""Memory that a crowd has left free goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import pytest

from server.gateway import memory
from server.gateway.memory import Memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps it, and has a call for it")
def test_it_is_given_back_once_connections_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EACH_S", 0.0)
    kept = Memory()
    trimmed: list[int] = []
    monkeypatch.setattr(kept, "_trim", trimmed.append)
    kept._least = 0
    kept.look(0)
    assert not trimmed, "nobody has left"
    kept.look(1)
    assert len(trimmed) == 1
    kept.look(1)
    assert len(trimmed) == 1, "nobody has left since"
    kept._least = 1 << 60
    kept.look(2)
    assert len(trimmed) == 1, "it is as small as it was"
    assert kept._least < 1 << 60
    ctypes.CDLL(None).malloc_trim(0)
