"""The window's link under a flood: three threads at once, and no event that matters is lost."""

from __future__ import annotations

import errno
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import zmq

from client.window import link as link_module
from client.window.events import Broken, CloseLink, NotConnected, OpenLink, Replied, Send
from client.window.link import Link
from protocol import messages as m
from protocol.errors import ConnectionLost
from tests.client.window.test_update import RESULT

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
    link.do(Send("page", m.Generate(id=0, prompt="x"), 10))
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


class Quiet:
    """A connection that says what a test wants it to say. `made` has them in order."""

    made: ClassVar[queue.SimpleQueue[Quiet]]

    def __init__(self, _address: str, on_lost: Callable[[], None]) -> None:
        self.on_lost = on_lost
        self.closed = threading.Event()
        self.asked: queue.SimpleQueue[Callable[[object], None]] = queue.SimpleQueue()
        Quiet.made.put(self)

    def submit(self, _request: m.AnyRequest, on_event: Callable[[object], None], _timeout: float) -> int:
        self.asked.put(on_event)
        return 1

    def cancel(self, _request_id: int) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


PIECE = m.Tokens(id=1, text="x", ids=[1])
GENERATE = Send("page", m.Generate(id=0, prompt="x"), 10)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    Quiet.made = queue.SimpleQueue()
    monkeypatch.setattr(link_module, "Connection", Quiet)
    link = Link(lambda: None)
    yield link
    link.close()


def test_two_threads_may_drop_and_take_at_once(monkeypatch: pytest.MonkeyPatch, quiet: Link) -> None:
    """While the connection's thread drops what was too much, the window takes: neither meets an empty queue."""
    most = 300
    monkeypatch.setattr(link_module, "MAX_EVENTS", most)
    errors: list[Exception] = []

    def flood(on_event: Callable[[object], None]) -> None:
        try:
            for _ in range(most + 1):
                on_event(PIECE)
        except queue.Empty as e:
            errors.append(e)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            quiet.do(OpenLink("tcp://127.0.0.1:1", "", ""))
            quiet.do(GENERATE)
            connection = Quiet.made.get(timeout=10)
            sender = threading.Thread(target=flood, args=(connection.asked.get(timeout=10),))
            sender.start()
            assert connection.closed.wait(10), "the server that floods is left"
            found = quiet.events()
            while sender.is_alive():
                found += quiet.events()
            while some := quiet.events():
                found += some
            assert errors == [] and sum(isinstance(event, NotConnected) for event in found) == 1
    finally:
        sys.setswitchinterval(before)


def test_the_news_of_a_broken_connection_comes_after_any_number_of_pieces(
    monkeypatch: pytest.MonkeyPatch, quiet: Link
) -> None:
    monkeypatch.setattr(link_module, "MAX_EVENTS", 10)
    quiet.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    quiet.do(GENERATE)
    connection = Quiet.made.get(timeout=10)
    on_event = connection.asked.get(timeout=10)
    quiet.events()
    for _ in range(10):
        on_event(PIECE)
    connection.on_lost()
    assert [type(event) for event in quiet.events()] == [Replied] * 10 + [Broken]


def test_only_what_a_look_has_left_is_more(monkeypatch: pytest.MonkeyPatch, quiet: Link) -> None:
    """What comes after it wakes the window by itself, which may wait for more of it."""
    monkeypatch.setattr(link_module, "TAKE", 3)
    quiet.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    quiet.do(GENERATE)
    on_event = Quiet.made.get(timeout=10).asked.get(timeout=10)
    quiet.events()
    for _ in range(4):
        on_event(PIECE)
    assert not quiet.more
    assert len(quiet.events()) == 3 and quiet.more
    assert len(quiet.events()) == 1 and not quiet.more


@pytest.mark.parametrize("leave", [OpenLink("tcp://127.0.0.1:2", "", ""), CloseLink()], ids=["another", "none"])
def test_what_an_earlier_connection_says_is_dropped(quiet: Link, leave: OpenLink | CloseLink) -> None:
    """Its answer to hello, say, would be taken for that of the next server."""
    quiet.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    quiet.do(GENERATE)
    connection = Quiet.made.get(timeout=10)
    on_event = connection.asked.get(timeout=10)
    on_event(PIECE)
    quiet.do(leave)
    quiet.do(Send("look", m.Ping(), 10))
    if isinstance(leave, OpenLink):
        Quiet.made.get(timeout=10).asked.get(timeout=10)
    else:
        quiet.do(OpenLink("tcp://127.0.0.1:3", "", ""))
        Quiet.made.get(timeout=10)
    on_event(PIECE)
    connection.on_lost()
    said = [event for event in quiet.events() if isinstance(event, Replied | Broken | NotConnected)]
    assert said == []


def test_an_unexpected_error_costs_one_try(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Else no later try would ever connect: too many files are open, say, which is not a ValueError."""

    def fail(_address: str, **_: object) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(link_module, "Connection", fail)
    woken = threading.Event()
    link = Link(woken.set)
    link.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    found: list[NotConnected] = []
    while not found:
        assert woken.wait(10), "the error was not shown"
        woken.clear()
        found = [event for event in link.events() if isinstance(event, NotConnected)]
    assert found == [NotConnected("ZMQError: Too many open files")] and "OpenLink failed" in caplog.text
    Quiet.made = queue.SimpleQueue()
    monkeypatch.setattr(link_module, "Connection", Quiet)
    link.do(OpenLink("tcp://127.0.0.1:2", "", ""))
    assert Quiet.made.get(timeout=10)
    link.close()


def test_a_request_without_a_connection_is_answered() -> None:
    woken = threading.Event()
    link = Link(woken.set)
    link.do(GENERATE)
    found: list[Replied] = []
    while not found:
        assert woken.wait(10)
        woken.clear()
        found = [event for event in link.events() if isinstance(event, Replied)]
    assert found[0].tag == "page" and isinstance(found[0].event, ConnectionLost)
    link.close()


def test_a_stopped_generation_is_heard_to_its_end_where_the_next_takes_its_place(quiet: Link) -> None:
    """The result of a generation that was stopped comes, however late; its pieces do not."""
    quiet.do(OpenLink("tcp://127.0.0.1:1", "", ""))
    asked = [Send("page", m.Generate(id=0, prompt="x"), 10, number) for number in (1, 2, 0)]
    ends, connection = list[Callable[[object], None]](), None
    for send in asked:
        quiet.do(send)
        connection = connection or Quiet.made.get(timeout=10)
        ends.append(connection.asked.get(timeout=10))
    for end in ends:
        end(PIECE)
        end(RESULT)
        end(RESULT)  # a connection says one end: a second is nobody's
    heard = [(event.of, type(event.event)) for event in quiet.events() if isinstance(event, Replied)]
    assert heard == [(1, m.Generated), (0, m.Tokens), (0, m.Generated)], "2 was replaced by one without a number"
