"""The window's link under a flood: three threads at once, and no event that matters is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from client.window import link as link_module
from client.window.events import Broken, NotConnected, OpenLink, Replied, Send
from client.window.link import Link
from protocol import messages as m

FLOODS = 4


class Flood:
    """A connection whose server sends without end, until it is closed; then it says that it is lost."""

    made: list[Flood]

    def __init__(self, _address: str, on_lost: Callable[[], None]) -> None:
        self.closed = threading.Event()
        self._on_lost = on_lost
        Flood.made.append(self)

    def submit(self, _request: m.AnyRequest, on_event: Callable[[object], None], _timeout: float) -> int:
        def send() -> None:
            while not self.closed.is_set():
                on_event(m.Tokens(id=1, text="x", ids=[1]))
            self._on_lost()

        for _ in range(FLOODS):
            threading.Thread(target=send, daemon=True).start()
        return 1

    def cancel(self, _request_id: int) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("_round", range(3))
def test_a_flood_ends_in_one_piece_of_news(_round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "Connection", Flood)
    monkeypatch.setattr(link_module, "MAX_EVENTS", 50)
    Flood.made = []
    news = threading.Event()
    link = Link(news.set)
    link.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    link.do(Send("a", m.Generate(id=0, prompt="x"), 10))
    seen: list[object] = []
    while not any(isinstance(event, NotConnected) for event in seen):
        assert news.wait(20), "the window was not told that the server was left"
        news.clear()
        seen += link.events()
    assert Flood.made[0].closed.wait(20)
    link.close()
    left = [event for event in link.events() if not isinstance(event, Broken)]
    assert all(isinstance(event, Replied | NotConnected) for event in left)
    assert len(left) <= 50
