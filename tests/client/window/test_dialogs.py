"""Every dialog by keyboard alone: Enter confirms, Esc closes, and the first Tab is not at what loses something."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui

from client.window.autosave import Autosaved
from client.window.events import Do, Edit, OpenRecent
from tests.client.window.driver import SIZE, Driver, drive

pytestmark = pytest.mark.usefixtures("screen")
Key = imgui.Key
NOBODY = "tcp://127.0.0.1:1"


def asked(d: Driver, what: str) -> None:
    d.app.tell(Do("new"))
    d.ctx.yield_(4)
    assert d.state.confirm == "new", what


def test_questions_are_answered_by_keys(home: Path) -> None:
    def test(d: Driver) -> None:
        page = d.state.page
        d.ctx.yield_(5)
        d.app.tell(Edit(0, 0, "Once", "typed"))
        d.ctx.yield_(2)
        asked(d, "Esc")
        d.keys(Key.escape)
        assert d.state.confirm == "" and page.document.text == "Once" and page.view.keyboard
        for after in ((Key.tab, Key.enter), (Key.tab, Key.space)):
            asked(d, "Tab")
            for key in after:
                d.keys(key)
            assert page.document.text == "Once", "nothing is lost by Tab"
            d.keys(Key.escape)
            d.keys(Key.escape)
            assert not d.state.confirm and not d.state.files.purpose
        asked(d, "Enter")
        d.keys(Key.keypad_enter)
        assert d.state.files.purpose == "save"
        d.ctx.yield_(3)
        d.ctx.key_chars_replace(f"{home}/page.txt")
        d.keys(Key.keypad_enter)
        d.wait(lambda: page.document.text == "")
        assert (home / "page.txt").read_text(encoding="utf-8") == "Once" and page.path is None
        d.ctx.yield_(3)
        d.ctx.key_chars("Twice")
        d.ctx.yield_(2)
        assert page.document.text == "Twice", "the page has the keyboard again"

    drive(NOBODY, test)


@pytest.mark.usefixtures("home")
def test_a_page_that_was_left_behind_is_restored_by_enter_and_never_discarded_by_the_first_keys() -> None:
    def test(d: Driver) -> None:
        page = d.state.page
        d.ctx.yield_(3)
        left_behind(d, Key.escape)
        assert d.state.left_behind and page.document.text == ""
        left_behind(d, Key.enter)
        d.wait(lambda: page.document.text == "Once")
        d.ctx.yield_(4)
        d.ctx.key_chars("!")
        d.ctx.yield_(2)
        assert page.document.text == "Once!", "one goes on at its end"
        left_behind(d, Key.tab, Key.space)
        assert d.state.left_behind and d.state.confirm in {"", "recover"}

    drive(NOBODY, test)


def test_the_field_of_the_name_shows_the_one_that_is_free(home: Path) -> None:
    (home / "page.txt").write_text("another page", encoding="utf-8")

    def test(d: Driver) -> None:
        d.state.preferences.files = [(str(home / "gone.txt"), 0)]
        d.app.tell(Edit(0, 0, "Once", "typed"))
        d.app.tell(Do("save"))
        d.wait(lambda: d.state.files.name == "page 2.txt")
        d.ctx.yield_(4)
        d.keys(Key.end)
        d.ctx.key_chars("x")
        d.keys(Key.enter)
        d.wait(lambda: not d.state.page.dirty)
        assert sorted(file.name for file in home.glob("*.txt*")) == ["page 2.txtx", "page.txt"]

    drive(NOBODY, test)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is text")
def test_files_whose_names_are_no_text_or_endless_are_shown(home: Path) -> None:
    folder = home.joinpath(os.fsdecode(b"caf\xe9"), *["long" * 50] * 3)
    folder.mkdir(parents=True)
    name = os.fsdecode(b"\xe9.txt")
    (folder / name).write_text("Once", encoding="utf-8")

    def test(d: Driver) -> None:
        d.app.tell(OpenRecent(str(folder / name)))
        d.wait(lambda: d.state.page.document.text == "Once")
        d.app.tell(Do("save as"))
        d.wait(lambda: d.state.files.folder == str(folder) and d.state.files.name == "?.txt")
        d.ctx.yield_(4)
        assert imgui.internal.find_window_by_name("###Files").size.x < SIZE[0]
        d.app.tell(Do("close files"))
        d.app.tell(OpenRecent(str(folder / "gone")))
        d.wait(lambda: "No such file" in d.state.said("file"))
        d.ctx.yield_(4)

    drive(NOBODY, test)


def left_behind(d: Driver, *keys: imgui.Key) -> None:
    d.state.left_behind, d.state.recovering = {"one": Autosaved("Once")}, True
    d.ctx.yield_(4)
    for key in keys:
        d.keys(key)
    assert not d.state.recovering, keys
