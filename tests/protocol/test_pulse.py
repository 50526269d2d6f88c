"""When a silent server is asked, and when it is given up: on a fast line within 5 s, on a slow one with patience."""

from __future__ import annotations

import pytest

from protocol import pulse as module
from protocol.pulse import Pulse
from protocol.sockets import HEARTBEAT_TIMEOUT_MS


class Clock:
    """A time that passes where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def met(clock: Clock, round_trip: float) -> Pulse:
    """Return the pulse of a server that has just answered a hello after that time."""
    pulse = Pulse()
    pulse.asked(ping=False)
    clock.now += round_trip
    pulse.heard()
    pulse.greeted()
    return pulse


def until_stuck(pulse: Pulse, clock: Clock) -> float:
    """Let nothing come any more; return the seconds until it is given up."""
    began = clock.now
    while (found := pulse.look(waiting=True)) != "stuck":
        if found == "ask":
            pulse.asked(ping=True)
        clock.now += 0.05
    return clock.now - began


@pytest.mark.parametrize(("round_trip", "least", "most"), [(0.001, 4.0, 4.5), (0.3, 5.5, 6.0), (1.0, 9.0, 9.5)])
def test_patience_grows_with_the_round_trip(clock: Clock, round_trip: float, least: float, most: float) -> None:
    """And it ends before the heartbeats give the connection up."""
    assert least < until_stuck(met(clock, round_trip), clock) < most < HEARTBEAT_TIMEOUT_MS / 1000


def test_a_server_is_asked_only_while_something_waits(clock: Clock) -> None:
    pulse = met(clock, 0.001)
    clock.now += 60
    assert pulse.look(waiting=False) == "well" and pulse.look(waiting=True) == "ask"
    pulse.heard()
    assert pulse.look(waiting=True) == "well"


def test_whatever_comes_is_a_sign_of_life(clock: Clock) -> None:
    """A pong that comes after it says nothing of the round trip: what is before it in line may be long."""
    pulse = met(clock, 0.001)
    clock.now += 2
    pulse.asked(ping=True)
    clock.now += 2.9
    pulse.heard()
    assert pulse.look(waiting=True) == "well"
    clock.now += 5
    pulse.answered()
    pulse.heard()
    assert until_stuck(pulse, clock) < 5


def test_a_broken_connection_is_waited_for_less_long_where_it_was_silent_before(clock: Clock) -> None:
    pulse = met(clock, 0.001)
    assert pulse.lost_until() - clock.now == pytest.approx(2.0, abs=0.01)
    clock.now += 3.5
    assert pulse.lost_until() - clock.now == pytest.approx(0.7, abs=0.01)
    assert met(clock, 1.0).lost_until() - clock.now == pytest.approx(10.0, abs=0.01), (
        "a slow line takes long to connect"
    )
