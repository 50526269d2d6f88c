"""Lines of the log that peers can cause."""

from __future__ import annotations

import logging
from collections import defaultdict
from types import SimpleNamespace

import pytest

from server.gateway import repeats
from server.gateway.repeats import MOST_LINES_S, Ration


def test_a_flood_of_requests_leaves_room_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left out in silence."""
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr(repeats, "time", SimpleNamespace(monotonic=lambda: now))
    ration = Ration(defaultdict(str, key="alice").__getitem__)
    for number in range(1000):
        ration.info("key", f"request {number}")
    assert caplog.messages == [f"request {number}, for alice" for number in range(MOST_LINES_S)]
    now += 1.5 / MOST_LINES_S
    caplog.clear()
    for number in range(2):
        ration.info("", f"later {number}")
    assert caplog.messages == ["900 lines about requests were left out before this one", "later 0"]
