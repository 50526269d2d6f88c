"""Preferences as they are read from the config folder, whatever is in it; and the thread that does the work."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from client.window import disk, locks
from client.window.autosave import Autosaved
from client.window.disk import Disk, DiskEffect
from client.window.events import (
    DiskFailed,
    Event,
    Export,
    FontsListed,
    ForgetHistory,
    ForgetPage,
    KeepHistory,
    KeepPage,
    Listed,
    ListFolder,
    ListFonts,
    NotKept,
    OpenFile,
    SaveBranches,
    Saved,
    SaveFile,
    SavePreferences,
)
from client.window.marks import Passage
from client.window.preferences import Preferences
from client.window.results import Entry
from client.window.sidecar import Branches
from client.window.state import AppState
from client.window.textfile import TextFile
from client.window.update import files
from protocol import messages as m
from protocol.ledger import ledger
from tests.conftest import wait_for


@pytest.fixture
def kept(home: Path) -> Path:
    path = home / "config" / "gpt2d" / "client.json"
    path.parent.mkdir(parents=True)
    return path


def read(kept: Path, **fields: Any) -> Preferences:
    kept.write_text(json.dumps(fields), encoding="utf-8")
    return disk.read_preferences()


@pytest.mark.usefixtures("home")
def test_preferences_come_back() -> None:
    settings = {
        "temperature": 0.5,
        "seed": 2**63 - 1,
        "deterministic": True,
        "stop": ["\u4e2d\n", "#"],
        "strategy": "greedy",
        "logprobs": None,
    }
    preferences = Preferences(
        font="/a",
        font_size=20.0,
        theme="light",
        enter_generates=True,
        recent=["tcp://h:1"],
        sampling=settings | {"logit_bias": [(1, 2.0)]},
        presets={"a b #1": settings, "empty": {}},
        layout="[x]\n",
        closed=[],
        width=1000,
    )
    disk.save_preferences(preferences)
    assert disk.read_preferences() == preferences


@pytest.mark.parametrize(
    "content", ["", "[]", "nonsense", '{"a":' * 100_000, '{"font": "\\ud800"}', "\0", '{"scale": NaN}']
)
def test_a_file_that_is_no_preferences_is_passed_over(kept: Path, content: str) -> None:
    kept.write_text(content, encoding="utf-8")
    assert disk.read_preferences() == Preferences()


def test_what_is_damaged_gets_its_default(kept: Path) -> None:
    assert read(
        kept, theme="pink", font=None, recent=["a", ""], closed=[1], width="wide", scale=True, server="tcp://h:1"
    ) == Preferences(server="tcp://h:1")
    assert read(kept, scale=99, font_size=-1, width=1) == Preferences(scale=4.0, font_size=8.0, width=640)
    assert read(kept, sampling=[], presets="x") == Preferences()
    sampling: dict[str, Any] = {"a": {"b": 1}, "b": [[1]], "c": [None], "d": [["x", 1]], "e": [1, "x"]}
    assert read(kept, sampling=sampling | {"f": 1, "g": [[1, 2]]}).sampling == {"f": 1, "g": [(1, 2.0)]}
    presets: dict[str, Any] = {"": {}, "\0": {}, "a": 5, "b": {"c": {}, "d": 0.5}}
    assert read(kept, presets=presets).presets == {"b": {"d": 0.5}}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is text")
def test_names_that_are_no_text_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"caf\xe9.ttf", "caf\u00e9.ttf".encode(), b"b.txt"):
        (tmp_path / os.fsdecode(name)).touch()
    assert disk.carry_out(ListFolder(str(tmp_path))) == Listed(
        str(tmp_path), [("b.txt", False), ("caf\u00e9.ttf", False)]
    )
    monkeypatch.setitem(disk.FONT_FOLDERS, "linux", [str(tmp_path)])
    assert disk.system_fonts() == [("caf\u00e9", str(tmp_path / "caf\u00e9.ttf"))]


def answer(effect: DiskEffect, then: DiskEffect) -> list[Event]:
    """What comes of two effects, one after the other."""
    woken = threading.Event()
    helper = Disk(woken.set)
    found: list[Event] = []
    helper.do(effect)
    helper.do(then)
    while len(found) < 2:
        assert woken.wait(10), f"nothing came after {found}"
        woken.clear()
        found += helper.events()
    helper.close()
    return found


NOWHERE = "~nobody-has-this-name"


@pytest.mark.parametrize(
    "effect",
    [
        OpenFile(Path(NOWHERE, "a.txt")),
        SaveFile(Path(NOWHERE, "a.txt"), TextFile(b"x")),
        Export(Path(NOWHERE, "a.txt"), "x"),
        ListFolder(NOWHERE),
    ],
    ids=["open", "save", "export", "list"],
)
def test_the_home_of_nobody_is_said_and_the_next_file_is_saved(
    effect: DiskEffect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, saved = answer(effect, SaveFile(tmp_path / "b.txt", TextFile(b"kept")))
    assert isinstance(failed, DiskFailed) and f"the home folder of {NOWHERE} cannot be found" in failed.error
    assert saved == Saved(tmp_path / "b.txt", TextFile(b"kept")) and (tmp_path / "b.txt").read_bytes() == b"kept"


def test_fonts_are_listed_for_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ttf").touch()
    monkeypatch.setitem(disk.FONT_FOLDERS, "linux", [f"{NOWHERE}/fonts", str(tmp_path)])
    monkeypatch.setattr(sys, "platform", "linux")
    fonts, listed = answer(ListFonts(), ListFolder(str(tmp_path)))
    assert fonts == FontsListed([("a", str(tmp_path / "a.ttf"))]) and isinstance(listed, Listed)


def test_an_unexpected_error_costs_one_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every later autosave would be lost in silence."""
    do = disk.carry_out

    def carry_out(effect: DiskEffect) -> Event | None:
        if isinstance(effect, ListFonts):
            raise KeyError("a bug")
        return do(effect)

    monkeypatch.setattr(disk, "carry_out", carry_out)
    failed, listed = answer(ListFonts(), ListFolder(str(tmp_path)))
    assert failed == DiskFailed("KeyError: 'a bug'") and isinstance(listed, Listed)
    assert "ListFonts failed" in caplog.text


def told(helper: Disk, *effects: DiskEffect) -> list[Event]:
    """What is told of effects, up to a list that is asked for after them."""
    found: list[Event] = []
    for effect in (*effects, ListFolder(os.sep)):
        helper.do(effect)

    def listed() -> bool:
        found.extend(helper.events())
        return bool(found) and isinstance(found[-1], Listed)

    wait_for(listed, 10)
    return found[:-1]


def test_what_cannot_be_kept_unasked_is_said_once_and_ends_no_question(home: Path) -> None:
    """In a home that is full or read-only, for a while."""
    in_the_way = home / "data"
    in_the_way.touch()
    keep, helper = KeepPage(Autosaved("text")), Disk(lambda: None)
    state = AppState()
    (failed,) = told(helper, keep, keep)
    assert isinstance(failed, NotKept) and str(in_the_way) in failed.error
    state.page.document.edit(0, 0, "text", "typed")
    files.do(state, "quit")
    files.apply(state, failed)
    assert state.confirm == "quit" and state.files.error == "" and failed.error in state.said(failed.what)
    in_the_way.unlink()
    for event in told(helper, keep, keep):
        assert isinstance(event, NotKept)
        files.apply(state, event)
    assert not state.notices, "it is no longer so"
    helper.close()


@pytest.mark.usefixtures("home")
def test_branches_that_cannot_be_kept_are_said_of_each_file(tmp_path: Path) -> None:
    branches, helper = Branches("", [], [], Passage(""), [], []), Disk(lambda: None)
    ways = [tmp_path / name / "page.txt" for name in ("one", "other")]
    for way in ways:
        way.parent.touch()
    effects = [SaveBranches(way, branches) for way in ways]
    failures = [told(helper, effect, effect) for effect in effects]
    for (failed,), way in zip(failures, ways, strict=True):
        assert isinstance(failed, NotKept) and str(way) in failed.error
    ways[1].parent.unlink()
    what = disk.UNASKED[SaveBranches]
    assert told(helper, effects[0], effects[1], effects[1]) == [NotKept(what)]
    helper.close()


def test_of_pages_that_wait_for_the_disk_the_newest_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, stands = threading.Event(), threading.Event()

    def stand_still(effect: DiskEffect) -> None:
        stands.set()
        assert isinstance(effect, ListFonts) and goes_on.wait(60)

    monkeypatch.setattr(disk, "carry_out", stand_still)
    helper = Disk(lambda: None)
    helper.do(ListFonts())
    assert stands.wait(60)
    for number in range(100):
        helper.do(KeepPage(Autosaved(f"page {number}")))
        if number == 50:
            helper.do(ForgetPage())
    assert len(helper._effects) == 2
    goes_on.set()
    helper.close()
    (kept,) = (home / "data" / "gpt2d" / "autosave").glob("*.json")
    assert "page 99" in kept.read_text(encoding="utf-8")


def generations(prompts: str) -> list[Entry]:
    """Return a generation for each letter."""
    result = m.Generated(
        id=1,
        text="x",
        ids=[1],
        finish_reason="length",
        prompt_truncated=0,
        settings={},
        model="demo",
        engine="onnx",
        precision="int8",
        digest="",
        threads=1,
        ledger=ledger(),
    )
    return [Entry(1, 0.0, prompt, result, "") for prompt in prompts]


def test_a_history_that_could_not_be_kept_is_kept_with_the_next(home: Path) -> None:
    entries = generations("abc")
    (home / "data").touch()
    helper = Disk(lambda: None)
    (failed,) = told(helper, KeepHistory(entries[:1]), KeepHistory(entries[1:2]))
    (home / "data").unlink()
    assert isinstance(failed, NotKept) and told(helper, KeepHistory(entries[2:])) == [NotKept(failed.what)]
    assert [entry.prompt for entry in disk.read_history()] == ["a", "b", "c"]
    disk.history_file().unlink()
    disk.history_file().mkdir()
    told(helper, KeepHistory(entries[:1]), ForgetHistory())
    disk.history_file().rmdir()
    told(helper, KeepHistory(entries[1:2]))
    assert [entry.prompt for entry in disk.read_history()] == ["b"], "what was cleared is not kept later"
    helper.close()


@pytest.mark.usefixtures("home")
def test_a_history_that_a_full_disk_has_cut_takes_the_next_generation() -> None:
    entries = generations("abcd")
    disk.carry_out(KeepHistory(entries[:2]))
    file = disk.history_file()
    os.truncate(file, file.stat().st_size - 10)
    disk.carry_out(KeepHistory(entries[2:3]))
    disk.carry_out(KeepHistory(entries[3:]))
    assert [entry.prompt for entry in disk.read_history()] == ["a", "c", "d"]
    assert b"\n\n" not in file.read_bytes()


@pytest.mark.usefixtures("home")
def test_two_windows_lose_nothing_of_each_others_preferences() -> None:
    before = Preferences(presets={"old": {}, "bad": {}}, files=[("/a", 1), ("/b", 2)], recent=["h", "gone"])
    disk.save_preferences(before)
    one = replace(before, theme="light", presets={"old": {"top_k": 1}, "bad": {}, "one": {}}, recent=["h"])
    other = replace(before, width=900, presets={"old": {}, "other": {}}, files=[("/c", 3), ("/a", 9), ("/b", 2)])
    windows = Disk(lambda: None, before), Disk(lambda: None, before)
    told(windows[0], SavePreferences(replace(one, files=[("/d", 4), ("/a", 1), ("/b", 5)])))
    told(windows[1], SavePreferences(other))
    assert disk.read_preferences() == replace(
        other,
        theme="light",
        presets={"old": {"top_k": 1}, "other": {}, "one": {}},
        files=[("/c", 3), ("/a", 9), ("/b", 5), ("/d", 4)],
        recent=["h"],
    )
    for window in windows:
        window.close()


@pytest.mark.usefixtures("home")
def test_windows_that_end_at_once_keep_each_others_preferences(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a session ends, all of them save at the same moment."""
    save, take = disk.save_preferences, locks.take
    between, other = threading.Event(), threading.Event()

    def saved(preferences: Preferences) -> None:
        if not between.is_set():
            between.set()
            assert other.wait(10), "the other window has neither saved nor found the lock taken"
            save(preferences)
        else:
            save(preferences)
            other.set()

    def taken(file: Path) -> IO[bytes] | None:
        lock = take(file)
        if lock is None:
            other.set()
        return lock

    monkeypatch.setattr(disk, "save_preferences", saved)
    monkeypatch.setattr(locks, "take", taken)
    windows = Disk(lambda: None), Disk(lambda: None)
    windows[0].do(SavePreferences(Preferences(theme="light")))
    assert between.wait(10)
    windows[1].do(SavePreferences(Preferences(width=900)))
    for window in windows:
        window.close()
    assert disk.read_preferences() == Preferences(theme="light", width=900)


@pytest.mark.usefixtures("home")
def test_a_lock_that_is_never_let_go_of_holds_up_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that was stopped has it."""
    monkeypatch.setattr(locks, "HOLD_S", 0.0)
    disk.folder().mkdir(parents=True)
    lock, helper = locks.take(disk.folder() / "client.lock"), Disk(lambda: None)
    assert lock and told(helper, SavePreferences(Preferences(theme="light"))) == []
    assert disk.read_preferences() == Preferences(theme="light")
    lock.close()
    helper.close()


@pytest.mark.parametrize("content", [None, '{"presets": {"a"', "", '{"presets": 5, "width": "wide", "theme": "light"}'])
def test_preferences_outlast_their_file(kept: Path, content: str | None) -> None:
    """It is deleted, or half edited by hand, while a window is open."""
    before = Preferences(presets={"mine": {"top_k": 1}}, width=900, files=[("/a", 1)])
    disk.save_preferences(before)
    helper = Disk(lambda: None, before)
    if content is None:
        kept.unlink()
    else:
        kept.write_text(content, encoding="utf-8")
    changed = replace(before, zoom=2.0)
    assert told(helper, SavePreferences(changed)) == []
    theirs = content is not None and "light" in content
    assert disk.read_preferences() == replace(changed, theme="light" if theirs else "dark")
    helper.close()


def test_preferences_that_could_not_be_saved_are_saved_with_the_next(home: Path) -> None:
    (home / "config").touch()
    helper, changed = Disk(lambda: None), Preferences(theme="light")
    (failed,) = told(helper, SavePreferences(changed))
    (home / "config").unlink()
    assert isinstance(failed, NotKept) and told(helper, SavePreferences(changed)) == [NotKept(failed.what)]
    assert disk.read_preferences() == changed
    helper.close()
