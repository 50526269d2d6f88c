"""Folder of authorised keys: strict at the start, and afterwards closed to every key that it does not hold."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import psutil
import pytest

from protocol.keys import CurveKeys, KeyFileError, Role, write_public
from server.gateway import auth, repeats
from server.gateway.auth import Keyring

A, B = CurveKeys.new().public, CurveKeys.new().public


def authorise(folder: Path, name: str, key: str, role: Role = "admin") -> Path:
    file = folder / f"{name}.pub"
    file.unlink(missing_ok=True)
    write_public(file, key, role)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "authorised"
    authorise(folder, "a", A)
    authorise(folder, "b", B, "generate")
    return folder


def test_roles_and_names(folder: Path) -> None:
    keyring = Keyring(folder)
    assert (keyring.role(A), keyring.role(B), keyring.role(CurveKeys.new().public), keyring.role("")) == (
        "admin",
        "generate",
        None,
        None,
    )
    assert keyring.name(A) == "a" and keyring.name("x").startswith("unknown key ") and keyring.lost() == set()


def test_it_is_read_again_when_it_changes(folder: Path) -> None:
    keyring = Keyring(folder)
    (folder / "a.pub").unlink()
    assert keyring.lost() == {A} and keyring.role(A) is None and keyring.role(B) == "generate"
    authorise(folder, "b", B, "admin")
    assert keyring.lost() == set() and keyring.role(B) == "admin"
    c = CurveKeys.new().public
    authorise(folder, "b", c)
    assert keyring.lost() == {B} and keyring.role(c) == "admin"


def test_what_is_damaged_later_authorises_nobody(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keyring = Keyring(folder)
    (folder / "a.pub").write_text("admin nonsense")
    assert keyring.lost() == {A} and keyring.role(B)
    assert "a.pub" in caplog.text and "nonsense" not in caplog.text
    folder.rename(folder.with_name("away"))
    assert keyring.lost() == {B} and keyring.lost() == set()
    folder.with_name("away").rename(folder)
    assert keyring.lost() == set() and keyring.role(B) == "generate", "it is taken up again"


def test_a_bad_folder_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        Keyring(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot be read"):
        Keyring(tmp_path / "file")
    authorise(folder, "twice", A)
    with pytest.raises(KeyFileError, match=r"same key as a\.pub"):
        Keyring(folder)
    authorise(folder, "twice", CurveKeys.new().public).write_text("owner x")
    with pytest.raises(KeyFileError, match="ROLE KEY"):
        Keyring(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_an_open_folder_is_refused(folder: Path) -> None:
    keyring = Keyring(folder)
    folder.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod 700"):
        Keyring(folder)
    assert keyring.lost() == {A, B}, "later, too"
    folder.chmod(0o700)
    (folder / "a.pub").chmod(0o666)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Keyring(folder)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_folder_is_refused(folder: Path) -> None:
    folder.chmod(0o000)
    with pytest.raises(KeyFileError, match="cannot be read"):
        Keyring(folder)
    folder.chmod(0o700)


def test_a_flood_of_refusals_is_logged_in_few_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "QUIET_S", 3600.0)
    refusals = auth.Refusals(keyed=True)
    for _ in range(1000):
        refusals.key("somebody")
    assert len(caplog.records) == 1
    monkeypatch.setattr(repeats, "QUIET_S", 0.0)
    refusals.key("somebody")
    assert "and 999 more" in caplog.records[-1].getMessage()


def test_more_keys_than_are_read_are_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_KEYS", 2)
    authorise(folder, "c", CurveKeys.new().public)
    keyring = Keyring(folder)
    keyring.lost()
    assert keyring.role(A) and keyring.role(B)
    (record,) = caplog.records
    assert "3 keys, more than 2: c.pub and what follows are not authorised" in record.getMessage()


def test_one_bad_name_costs_nobody_else(folder: Path) -> None:
    keyring = Keyring(folder)
    (folder / "x.pub").symlink_to("nowhere")
    (folder / ".#a.pub").symlink_to("somebody@host.1:2")
    (folder / "notes.txt").touch()
    (folder / "d.pub").mkdir()
    (folder / "odd.pub").write_text("admin " + "#" * 40)
    with (folder / "huge.pub").open("wb") as file:
        file.truncate(1 << 40)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.pub", 0o600)
    assert keyring.lost() == set() and keyring.role(A) == "admin" and keyring.role(B) == "generate"


@pytest.mark.skipif(sys.platform == "win32", reason="there a folder is not opened")
def test_a_folder_among_the_keys_costs_no_descriptor(folder: Path) -> None:
    """The keys are read again at each change, for months."""
    keyring = Keyring(folder)
    (folder / "d.pub").mkdir()
    before = psutil.Process().num_fds()
    for i in range(9):
        authorise(folder, f"n{i}", CurveKeys.new().public)
        keyring.lost()
    assert psutil.Process().num_fds() <= before


def test_the_last_key_can_go_and_come_back(folder: Path, tmp_path: Path) -> None:
    keyring = Keyring(folder)
    for file in folder.iterdir():
        file.unlink()
    assert keyring.lost() == {A, B} and keyring.role(A) is None and keyring.role("") is None
    authorise(folder, "a", A)
    assert keyring.lost() == set() and keyring.role(A) == "admin"
    (tmp_path / "empty").mkdir(mode=0o700)
    assert Keyring(tmp_path / "empty").role(A) is None


def test_a_demotion_is_reported(folder: Path) -> None:
    keyring = Keyring(folder)
    authorise(folder, "a", A, "generate")
    assert keyring.lost() == {A} and keyring.role(A) == "generate"


def test_a_shortage_of_the_machine_revokes_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = Keyring(folder)

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "scandir", no_more)
    assert keyring.lost() == set() and keyring.role(A) == "admin"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_authorises_nobody(folder: Path) -> None:
    keyring = Keyring(folder)
    os.chown(folder / "b.pub", 1234, -1)
    assert keyring.lost() == {B}
    os.chown(folder, 1234, -1)
    assert keyring.lost() == {A}
    with pytest.raises(KeyFileError, match="belongs to another user"):
        Keyring(folder)
