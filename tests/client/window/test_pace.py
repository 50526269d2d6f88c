"""When the window draws, by made-up clocks and costs."""

from __future__ import annotations

import math
import time
from contextlib import closing

import pytest
from msgspec.structs import replace

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import app as apps, loop
from client.window.events import Replied
from client.window.pace import FRAME_S, IDLE_S, MOVE_S, SETTLE, SHARE, SLOWEST_S, STREAM_S, TOGETHER_S, Pace
from client.window.update import notices
from tests.client.window.test_update import INFO, PONG, WORKER


def resting(cost: float = 0.001) -> Pace:
    """Return one that has nothing to draw, at time 10."""
    pace = Pace()
    for _ in range(SETTLE):
        assert pace.look(10.0)
        pace.drew(cost)
    return pace


def drawn(pace: Pace, seconds: float, cost: float, every: float = 0.0) -> tuple[int, float]:
    """Let text come in for a while, `every` so many seconds or all the time; return the number of frames, and the most
    seconds from a piece's arrival to the end of the frame that shows it.
    """
    frames, longest = 0, 0.0
    now = 10.0
    news = 10.0 + every
    while (due := pace.due(news)) < 10.0 + seconds:
        now = max(now + cost, due)
        pace.look(now)
        pace.drew(cost)
        frames, longest = frames + 1, max(longest, now + cost - news)
        while news <= now:
            news += every or now + cost - news
    return frames, longest


def test_at_rest_nothing_is_drawn() -> None:
    pace = resting()
    for second in range(1, 60):
        assert pace.due(None) == 10.0 + second * IDLE_S
        assert not pace.look(10.0 + second * IDLE_S)


@pytest.mark.parametrize(("cost", "fewest", "most"), [(0.002, 19, 21), (0.025, 9, 11), (0.03, 8, 9), (10.0, 1, 3)])
def test_a_stream_takes_a_quarter_of_a_core_at_most(cost: float, fewest: int, most: int) -> None:
    frames, _ = drawn(resting(cost), 1.0, cost)
    assert fewest <= frames <= most
    if cost < SLOWEST_S:
        assert frames * cost <= SHARE + cost


def test_pieces_that_follow_each_other_fast_are_shown_together_and_soon() -> None:
    cost = 0.003
    frames, longest = drawn(resting(cost), 1.0, cost, 0.02)
    assert 18 <= frames <= 20 and longest <= STREAM_S + cost


def test_pieces_that_come_as_often_as_they_are_asked_for_are_shown_at_once() -> None:
    for cost, interval_ms in ((0.003, 66), (0.03, 120), (10.0, 500)):
        pace = resting(cost)
        assert pace.interval_ms == interval_ms
        if cost < SLOWEST_S:
            frames, longest = drawn(pace, 1.0, cost, pace.interval_ms / 1000)
            assert frames <= 1000 / interval_ms and longest <= TOGETHER_S + cost + 1e-9


def test_a_piece_that_had_to_wait_makes_no_later_one_wait() -> None:
    pace, cost = resting(0.003), 0.003
    waited, now = list[float](), 10.01
    for number in range(12):
        news = 10.01 + number * pace.interval_ms / 1000
        now = max(now, pace.due(news))
        pace.look(now)
        pace.drew(cost)
        waited.append(now - news)
    assert 0.03 < waited[0] < STREAM_S and max(waited[-8:]) == pytest.approx(TOGETHER_S)


def test_what_the_server_has_sent_together_is_shown_by_one_frame() -> None:
    pace = resting(0.003)
    assert pace.due(12.0) == 12.0 + TOGETHER_S < 12.010


def test_news_wakes_the_loop_once_until_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = list[float | None]()
    window = loop.Window.__new__(loop.Window)
    monkeypatch.setattr("glfw.post_empty_event", lambda: woken.append(window._woken))
    window._woken = None
    for _ in range(3):
        window.wake()
    first = window._woken
    assert first is not None and woken == [first], "a piece of text takes a core from the decoder for its arrival alone"
    window._woken = None
    window.wake()
    assert len(woken) == 2


def test_one_dear_frame_says_nothing_of_the_next() -> None:
    pace = resting(0.004)
    assert pace.pause == STREAM_S
    pace.drew(0.5)
    assert pace.pause == STREAM_S


def test_a_key_is_drawn_at_once_and_settles() -> None:
    pace = resting(0.03)
    assert pace.due(10.0) == pytest.approx(10.12)
    pace.struck()
    assert pace.due(10.0) == 10.0 + FRAME_S, "amid a stream, too"
    assert [pace.look(10.02 + i * FRAME_S) for i in range(SETTLE + 1)] == [True] * SETTLE + [False]


def test_the_pointer_moves_at_the_streams_pace_and_is_looked_at_when_it_rests() -> None:
    pace = resting(0.025)
    pace.moved(10.01, drags=False)
    assert pace.due(None) == pytest.approx(10.1)
    assert pace.look(10.1)
    for at in (10.21, 10.41):
        assert pace.due(None) == pytest.approx(at)
        assert pace.look(at)
    assert pace.due(None) == 10.41 + IDLE_S
    pace.moved(10.5, drags=True)
    assert pace.due(10.0) == 10.41 + FRAME_S


def test_a_pointer_that_moves_amid_a_stream_is_followed_faster_than_the_stream() -> None:
    pace = resting(0.002)
    assert pace.due(10.0) == 10.0 + STREAM_S
    pace.moved(10.01, drags=False)
    assert pace.due(10.0) == 10.0 + MOVE_S < 10.0 + STREAM_S


def test_what_expires_is_looked_at_then() -> None:
    pace = resting()
    assert pace.due(None, 10.3) == 10.3
    assert pace.due(None, math.inf) == 11.0


@pytest.mark.usefixtures("home")
def test_a_notice_owes_one_frame_when_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(apps.App(lambda: None, "tcp://127.0.0.1:1")) as app, monkeypatch.context() as patched:
        patched.setattr(app.link, "events", list)
        patched.setattr(app.disk, "events", list)
        assert app.state.due == math.inf and not app.take_events()
        notices.inform(app.state, "saved", "saved")
        assert app.state.now < app.state.due < app.state.now + 60
        over = app.state.due
        patched.setattr(time, "monotonic", lambda: over)
        assert app.take_events() and not app.take_events()
        assert app.state.due == math.inf


def test_figures_alone_are_drawn_as_often_as_they_cost_little() -> None:
    for cost, seconds in ((0.001, 0.17), (0.025, 4.2)):
        pace = resting(cost)
        assert not pace.refreshes(10.0 + seconds * 0.95) and pace.refreshes(10.0 + seconds)


@pytest.mark.usefixtures("home")
def test_a_sign_of_life_that_tells_nothing_new_owes_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(apps.App(lambda: None, "tcp://127.0.0.1:1")) as app, monkeypatch.context() as patched:
        patched.setattr(app.disk, "events", list)
        app.state.link.status = "ready"
        app.state.link.info = INFO
        owed = list[tuple[bool, bool]]()
        for workers in ([], [], [WORKER], [replace(WORKER, moved_ms_ago=99.0)], []):
            pong = replace(PONG, workers=workers)
            patched.setattr(app.link, "events", lambda pong=pong: [Replied("look", pong, 1.0)])
            owed.append((app.take_events(), app.signs))
        assert owed == [(False, True), (False, True), (True, True), (False, True), (True, True)]
