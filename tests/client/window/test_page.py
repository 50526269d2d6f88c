"""The page under a person's hands: keyboard, mouse, searching, and what it does while the model writes into it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import ImVec2, imgui

from client.window.editor import hands
from client.window.editor.editing import Edit
from client.window.events import Connect
from protocol import messages as m
from protocol.testing import Answer
from tests.client.fake import ReplicaServer
from tests.client.window.driver import Driver, drive

pytestmark = pytest.mark.usefixtures("screen", "home")
Key = imgui.Key
NOBODY = "tcp://127.0.0.1:1"
POEM = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate."


def selected(d: Driver) -> str:
    document = d.state.page.document
    start, end = sorted((document.anchor, document.cursor))
    return document.text[start:end]


def clicks(d: Driver, times: int) -> None:
    """Click several times fast, however long a frame takes."""
    io = imgui.get_io()
    usual = io.mouse_single_click_delay, io.mouse_double_click_time
    io.mouse_single_click_delay, io.mouse_double_click_time = 31.0, 30.0
    d.ctx.mouse_click_multi(0, times)
    d.ctx.yield_(2)
    io.mouse_single_click_delay, io.mouse_double_click_time = usual


def test_keyboard_and_mouse() -> None:
    def test(d: Driver) -> None:
        d.ctx.yield_(5)
        d.shot("empty page")
        d.ctx.key_chars("Shall I")  # at the start the caret is in the page
        d.ctx.yield_(3)
        assert d.state.page.document.text == "Shall I"
        d.app.tell(Edit(0, 7, POEM, "pasted"))
        d.ctx.yield_(2)
        writes_with_keys(d)
        generates_by_enter(d)
        selects_with_the_mouse(d)
        scrolls_under_a_drag(d)

    drive(NOBODY, test)


def test_clipboard_search_and_view() -> None:
    def test(d: Driver) -> None:
        d.ctx.yield_(2)
        d.app.tell(Edit(0, 0, POEM, "pasted"))
        d.ctx.yield_(2)
        copies_and_pastes(d)
        searches(d)
        is_seen_otherwise(d)

    drive(NOBODY, test)


def writes_with_keys(d: Driver) -> None:
    document = d.state.page.document
    d.keys(Key.mod_ctrl, Key.home)
    d.keys(Key.end)
    assert document.cursor == 39
    d.keys(Key.down_arrow)
    d.keys(Key.end)
    assert document.cursor == len(POEM)
    d.keys(Key.mod_ctrl, Key.left_arrow)
    d.keys(Key.mod_ctrl, Key.backspace)
    assert document.text.endswith("lovely and temperate.")
    d.ctx.key_chars("more \u00e9\U0001f600")
    d.keys(Key.backspace)
    d.keys(Key.backspace)
    d.keys(Key.tab)
    d.keys(Key.enter)
    assert document.text.endswith("and more \t\ntemperate.")
    while document.text != POEM:
        assert document.can_undo
        d.keys(Key.mod_ctrl, Key.z)
    assert d.state.page.view.keyboard


def generates_by_enter(d: Driver) -> None:
    d.state.preferences.enter_generates = True
    d.keys(Key.mod_ctrl, Key.end)
    d.keys(Key.mod_ctrl, Key.enter)
    d.keys(Key.mod_shift, Key.enter)
    assert d.state.page.document.text == POEM + "\n\n" and not d.state.page.busy, "these begin a line"
    d.state.notices.clear()
    d.keys(Key.enter)
    asked = d.state.page.busy or d.state.said("link")  # it waits for the server, or that has been given up meanwhile
    assert asked and d.state.page.document.text == POEM + "\n\n"
    d.keys(Key.escape)
    d.state.preferences.enter_generates = False
    while d.state.page.document.text != POEM:
        d.keys(Key.mod_ctrl, Key.z)


def selects_with_the_mouse(d: Driver) -> None:
    document = d.state.page.document
    d.mouse_to(6)
    d.ctx.mouse_click(0)
    d.ctx.yield_(2)
    assert (document.anchor, document.cursor) == (6, 6)
    d.keys(Key.mod_shift, Key.right_arrow)
    assert selected(d) == "I"
    d.mouse_to(10)
    clicks(d, 2)
    assert selected(d) == "compare"
    clicks(d, 3)
    assert selected(d) == POEM[:40]
    d.mouse_to(45)
    d.ctx.mouse_down(0)
    d.mouse_to(56)
    d.ctx.mouse_up(0)
    d.ctx.yield_(2)
    assert selected(d) == POEM[45:56]
    d.mouse_to(0)
    d.ctx.key_down(Key.mod_shift)
    d.ctx.mouse_click(0)
    d.ctx.key_up(Key.mod_shift)
    d.ctx.yield_(2)
    assert selected(d) == POEM[:45]


def scrolls_under_a_drag(d: Driver) -> None:
    document, view = d.state.page.document, d.state.page.view
    d.app.tell(Edit(len(POEM), len(POEM), "\nmore" * 100, "pasted"))
    d.keys(Key.mod_ctrl, Key.home)
    d.mouse_to(2)
    d.ctx.mouse_down(0)
    d.ctx.mouse_move_to_pos(ImVec2(view.origin[0], view.origin[1] + view.height + 60))
    d.wait(lambda: view.scroll > 10 * view.line)
    assert view.moving and document.anchor == 2 and document.cursor > 200
    d.ctx.mouse_up(0)
    d.ctx.yield_(2)
    d.keys(Key.mod_ctrl, Key.z)
    d.keys(Key.mod_ctrl, Key.home)
    assert document.text == POEM and not view.moving


def copies_and_pastes(d: Driver) -> None:
    document = d.state.page.document
    d.mouse_to(10)
    clicks(d, 2)
    assert selected(d) == "compare"
    d.keys(Key.mod_ctrl, Key.x)
    assert document.text.startswith("Shall I  thee") and imgui.get_clipboard_text() == "compare"
    d.keys(Key.mod_ctrl, Key.v)
    assert document.text == POEM
    d.ctx.mouse_click(1)
    d.ctx.yield_(2)
    d.shot("page menu")
    d.click("//$FOCUSED/Select all")
    d.ctx.yield_(3)
    assert selected(d) == POEM and d.state.page.view.keyboard, "the page has the keyboard again"
    hands.PRIMARY.read = lambda: "fair "
    d.mouse_to(24)
    d.ctx.mouse_click(2)
    d.ctx.yield_(3)
    assert document.text == POEM[:24] + "fair " + POEM[24:]
    d.keys(Key.mod_ctrl, Key.z)
    assert document.text == POEM


def searches(d: Driver) -> None:
    document = d.state.page.document
    d.keys(Key.mod_ctrl, Key.home)
    d.keys(Key.mod_ctrl, Key.h)
    d.ctx.yield_(2)
    d.ctx.key_chars("MORE")
    d.ctx.yield_(2)
    d.keys(Key.enter)
    assert (document.anchor, document.cursor) == (49, 53)
    d.keys(Key.enter)
    assert (document.anchor, document.cursor) == (65, 69)
    d.shot("search")
    d.ctx.item_input_value("//Page/##put", "less")
    d.click("//Page/Replace all")
    d.ctx.yield_(2)
    assert document.text == POEM.replace("more", "less")
    d.keys(Key.mod_ctrl, Key.f)
    d.keys(Key.escape)
    d.ctx.yield_(2)
    assert not d.state.page.find.open and d.state.page.view.keyboard
    d.keys(Key.mod_ctrl, Key.z)
    d.keys(Key.mod_ctrl, Key.z)
    assert document.text == POEM, "Enter in the field had replaced one, the button the other"


def is_seen_otherwise(d: Driver) -> None:
    line = d.state.page.view.line
    d.keys(Key.mod_ctrl, Key.equal)
    assert d.state.page.view.line > line
    d.keys(Key.mod_ctrl, Key._0)
    assert d.state.page.view.line == line
    width = d.state.page.view.layout.width if d.state.page.view.layout else 0
    d.keys(Key.f11)
    d.ctx.yield_(3)
    d.shot("focus mode")
    d.ctx.key_chars("!")
    d.ctx.yield_(2)
    assert "!" in d.state.page.document.text
    d.keys(Key.f11)
    d.ctx.yield_(3)
    assert d.state.page.view.layout and d.state.page.view.layout.width == width
    d.panel("Inference")
    assert not d.state.page.view.keyboard
    d.ctx.key_chars("?")
    d.ctx.yield_(2)
    assert "!?" in d.state.page.document.text, "no field took it"
    d.shot("back from focus mode")


class Writer(ReplicaServer):
    """Writes a line whenever the test lets it."""

    def __init__(self) -> None:
        self.lines: list[threading.Event] = [threading.Event() for _ in range(60)]
        super().__init__()
        usual = self.answer

        def answer(request: m.AnyRequest) -> Answer:
            return self._written() if isinstance(request, m.Generate) else usual(request)

        self.answer = answer

    def _written(self) -> Iterator[Any]:
        for number, event in enumerate(self.lines):
            yield event
            yield f"\nline {number}"

    def write(self, d: Driver, up_to: int) -> None:
        for event in self.lines[:up_to]:
            event.set()
        d.wait(lambda: f"line {up_to - 1}" in d.state.page.document.text)
        d.ctx.yield_(3)


def test_hands_and_view_are_left_alone_while_the_model_writes() -> None:
    def test(d: Driver) -> None:
        with Writer() as server:  # here, in the window's process: the test holds its words back
            d.state.link.server = server.endpoint
            d.app.tell(Connect())
            writes_beside_the_model(d, server)

    drive(NOBODY, test)


def writes_beside_the_model(d: Driver, server: Writer) -> None:
    document, view = d.state.page.document, d.state.page.view
    d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
    d.type("Once ")
    d.keys(Key.mod_ctrl, Key.enter)
    d.wait(lambda: d.state.page.generating is not None)
    server.write(d, 30)
    assert view.layout and view.shows(view.layout.count - 1), "what is written stays in sight"
    d.keys(Key.mod_ctrl, Key.home)
    d.ctx.key_chars("Listen: ")
    d.ctx.yield_(2)
    server.write(d, 32)
    assert document.text.startswith("Listen: Once \nline 0") and document.cursor == 8
    assert view.scroll == 0, "the view stays where one writes"
    d.keys(Key.mod_shift, Key.end)
    server.write(d, 34)
    assert selected(d) == "Once "
    d.keys(Key.mod_ctrl, Key.end)
    server.write(d, 36)
    assert document.cursor == len(document.text), "the caret at the end goes on with the text"
    assert view.shows(view.layout.count - 1)
    d.mouse_to(len(document.text) - 3)
    d.ctx.mouse_wheel_y(5)
    d.ctx.yield_(5)
    seen = view.scroll
    server.write(d, 45)
    assert view.scroll == seen and not view.shows(view.layout.count - 1)
    assert document.text.count("line") == 45
    d.ctx.key_chars("END")
    d.wait(lambda: d.state.page.generating is None)
    assert document.text.endswith("line 44END"), "typing where it writes stops it, and nothing is lost"
    assert view.shows(view.layout.count - 1)


def test_files_fast_keys_and_the_primary_selection_come_from_the_system(screen: str, tmp_path: Path) -> None:
    """In the program itself. No tool drags between programs: GLFW's callback is what a drag ends in. And keys that are
    struck faster than frames are drawn have the modifiers with which they were struck.
    """
    file = tmp_path / os.fsdecode(b"po\xe9sie.txt")
    file.write_text(POEM, encoding="utf-8")
    code = """
import ctypes, os, sys, time
from client.window.loop import Window
from client.window.editor.hands import PRIMARY
import glfw
window = Window("tcp://127.0.0.1:1")
window.drop(window.window, 2, (ctypes.c_char_p * 2)(os.fsencode(sys.argv[1]), b"another"))
page, over = window.app.state.page, time.monotonic() + 30
while not page.document.text and time.monotonic() < over:
    glfw.wait_events_timeout(0.05)
    window.app.take_events()
def strike(*events):
    for key, action, mods in events:
        window.backend.keyboard_callback(window.window, key, glfw.get_key_scancode(key), action, mods)
CTRL, SHIFT, HOME, RIGHT = glfw.KEY_LEFT_CONTROL, glfw.KEY_LEFT_SHIFT, glfw.KEY_HOME, glfw.KEY_RIGHT
for _ in range(5):
    window.frame()
strike((CTRL, 1, 0), (HOME, 1, 2))
window.frame()
strike((CTRL, 0, 2), (HOME, 0, 0), (SHIFT, 1, 0), (CTRL, 1, 1), (RIGHT, 1, 3))
strike((SHIFT, 0, 3), (CTRL, 0, 2), (RIGHT, 0, 0))
for _ in range(12):
    window.frame()
print(page.document.text[slice(*page.document.selection)], end="|")
PRIMARY.write("a word \\u4e2d")
print(page.path, len(page.document.text), window.app.state.said("dropped"), PRIMARY.read() == "a word \\u4e2d", sep="|")
window.close()
"""
    environment = os.environ | {"DISPLAY": screen, "GALLIUM_NOOP": "1", "PYTHONIOENCODING": "utf-8:surrogateescape"}
    command = [sys.executable, "-P", "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    said = f"2 files were dropped; the page is for one: {file}"
    assert os.fsdecode(done.stdout).strip().split("|") == ["Shall", str(file), str(len(POEM)), said, "True"]
