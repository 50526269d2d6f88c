"""Daemon that scripts and tests start."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import Client
from scripts.daemon import Daemon


def test_it_listens_and_ends_with_its_block(tmp_path: Path) -> None:
    with Daemon(tmp_path / "new") as daemon, Client(daemon.endpoint) as client:
        assert client.ping() and daemon.workers() == []
        assert daemon.endpoint in daemon.log.read_text() and daemon.log.parent == tmp_path / "new"
    assert daemon.process.returncode == 0 and "stopped" in daemon.logged()


def test_after_an_error_it_is_killed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Daemon(tmp_path) as daemon:
        raise KeyError
    assert daemon.process.returncode


def test_without_a_folder_it_has_the_folders_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with Daemon(None, f"--models-dir={tmp_path}") as daemon, Client(daemon.endpoint) as client:
        assert "mine" in [model.name for model in client.models()]
        assert not daemon.log.is_relative_to(tmp_path)


def test_a_daemon_that_does_not_start_raises_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"did not start: (.|\n)*--no-such-flag"):
        Daemon(tmp_path, "--no-such-flag")
