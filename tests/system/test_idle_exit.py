"""A daemon with --idle-exit ends when nobody has been connected for that long, and never under somebody."""

from __future__ import annotations

from pathlib import Path

from protocol import Client
from scripts.daemon import Daemon
from tests.conftest import wait_for

END_S = 20


def test_it_ends_where_nobody_ever_connects(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--idle-exit=0.1")
    assert daemon.process.wait(END_S) == 0
    assert "nobody has been connected for 0.1 s, so the daemon ends (--idle-exit)" in daemon.logged()
    assert daemon.logged().rstrip().endswith("stopped")


def test_it_goes_on_while_one_of_several_is_connected(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--idle-exit=2")
    with Client(daemon.endpoint) as last:
        with Client(daemon.endpoint) as first:
            first.ping()
        wait_for(lambda: last.ping().uptime_ms > 4000)
        assert daemon.process.poll() is None
    assert daemon.process.wait(END_S) == 0
