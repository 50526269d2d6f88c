"""What a person does at once is not lost: letters typed where nothing takes them, a click as the pointer arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

CODE = """
from imgui_bundle import imgui
from client.window.events import Do
from client.window.loop import Window
from client.window.update import notices
from client.window.writing import Generating
import glfw

window = Window("tcp://127.0.0.1:1")
backend, document = window.backend, window.app.state.page.document

def frames():
    for _ in range(8):
        window.frame()

def type(text):
    for letter in text:
        backend.char_callback(None, ord(letter))
    frames()

def click(x, y):
    # As fast as a tap on a screen, without a frame between.
    backend.mouse_callback(window.window, x, y)
    for action in (glfw.PRESS, glfw.RELEASE):
        backend.mouse_button_callback(window.window, glfw.MOUSE_BUTTON_LEFT, action, 0)
    frames()

frames()
type(" ")  # which would operate whatever else the keyboard had chosen
type("Start")
bar = imgui.internal.find_window_by_name("Inference").dock_node.tab_bar
compare = list(bar.tabs)[-1]
click(bar.bar_rect.min.x + compare.offset + 30, bar.bar_rect.min.y + 8)
print("Compare is shown" if not imgui.internal.find_window_by_name("Compare").hidden else "the click was lost")
type(" tab")
sampling = imgui.internal.find_window_by_name("Sampling")
click(sampling.pos.x + 4, sampling.pos.y + sampling.size.y / 2)  # beside what is in it
type(" panel")
print(document.text)

def strike(key, mods=0):
    for action in (glfw.PRESS, glfw.RELEASE):
        backend.keyboard_callback(window.window, key, glfw.get_key_scancode(key), action, mods)
    frames()

strike(glfw.KEY_TAB)
print(repr(document.text[-6:]), imgui.get_current_context().nav_window.name)
backend.keyboard_callback(window.window, glfw.KEY_LEFT_CONTROL, 37, glfw.PRESS, 0)
strike(glfw.KEY_TAB, glfw.MOD_CONTROL)
backend.keyboard_callback(window.window, glfw.KEY_LEFT_CONTROL, 37, glfw.RELEASE, glfw.MOD_CONTROL)
frames()
print(imgui.get_current_context().nav_window.name)
type(" menus")
for key in (glfw.KEY_F10, glfw.KEY_RIGHT, glfw.KEY_ENTER, glfw.KEY_ENTER):
    strike(key)
print(document.text.endswith("menus"), document.can_redo)
type(".")
print(repr(document.text[-2:]))

def on():
    return imgui.get_current_context().nav_window.name

for keys in ((glfw.KEY_F10, glfw.KEY_ESCAPE), (glfw.KEY_F10, glfw.KEY_RIGHT, glfw.KEY_ESCAPE)):
    for key in keys:
        strike(key)
    print(on())
window.app.tell(Do("save"))
frames()
saves = on()
window.app.tell(Do("close files"))
notices.warn(window.app.state, "file", "saved, as it were")
frames()
print(saves, on())
window.app.tell(Do("find"))
frames()
type("sought")
window.app.tell(Do("to the page"))
frames()
type("!")
print(window.app.state.page.find.text, repr(document.text[-2:]))
window.app.tell(Do("find"))
frames()
strike(glfw.KEY_ESCAPE)
going = window.app.state.page.generating = Generating(0, 0, "", 25, 0.0)
for key in (glfw.KEY_F1, glfw.KEY_F10, glfw.KEY_LEFT):
    strike(key)
    strike(glfw.KEY_ESCAPE)
    print(on(), going.stopping)
window.app.state.quitting = True  # what is on the page is not kept for the next window
window.close()
"""

NOTICE = """
import time
from imgui_bundle import imgui
from client.window import events
from client.window.loop import Window
from client.window.update import notices

window = Window("tcp://127.0.0.1:1")
app, backend, time_now = window.app, window.backend, time.monotonic() + 100
app.state.link.status = "off"  # while it connects, frames show for how long

def height():
    return imgui.internal.find_window_by_name("##toast a").size.y

for words in (3, 80):
    for _ in range(8):
        window.frame()
    backend.touched = backend.moved = False
    notices.warn(app.state, "a", "word " * words)
    happened = iter([True])
    app.take_events = lambda: next(happened, False)
    window.wake()
    for _ in range(20):  # the looks and frames of a third of a second, in which nothing else happens
        time_now += 1 / 60
        window._notice(time_now)
        if time_now >= window._due():
            window._look(time_now, 0.0)
    found = height()
    for _ in range(8):
        window.frame()
    print(found == height(), height() > 20 * (words // 20))

def shown():
    for _ in range(8):
        window.frame()
    drawer = ("Inference", "Tokens", "Tree", "History", "Compare")
    return [name for name in drawer if not imgui.internal.find_window_by_name(name).hidden]

imgui.set_window_focus("Tokens")
before = shown()
app.state.preferences.folded = ["drawer"]
shown()
app.state.preferences.folded = []
print(*before, *shown())
app.tell(events.Edit(0, 0, "Once", "typed"))
app.tell(events.Do("quit"))
for _ in range(5):
    backend.touched, happened = False, iter([True])
    window._look(time_now, 0.0)
print("it darkens" if 0 < imgui.get_current_context().dim_bg_ratio < 1 and backend.touched else "it stays as it is")
window.close()
"""

TOKENS = """
import time
from imgui_bundle import imgui
from client.window import events
from client.window.loop import Window

window = Window("tcp://127.0.0.1:1")
app, backend = window.app, window.backend
app.state.link.status = "off"
app.tell(events.Edit(0, 0, "Once upon a time", "typed"))
app.state.page.document.mark(4, 16)
now = time.monotonic() + 100

def take_events():
    expired = app.state.due <= now
    app.tell(events.Tick(now, 0.0))
    return expired

app.take_events = take_events
for _ in range(8):
    window.frame()
x, y = app.state.page.view.place(6)
window._look(now, 0.0)
imgui.get_io().add_mouse_pos_event(x + 1, y + 5)
for _ in range(3):
    window.frame()
backend.touched = backend.moved = False
for _ in range(60):  # a second in which nothing else happens
    now += 1 / 60
    window._notice(now)
    if now >= window._due():
        window._look(now, 0.0)
shown = imgui.internal.find_window_by_name("##alternatives")
size = shown.size.y if shown and shown.was_active and not shown.hidden else 0
for _ in range(8):
    window.frame()
print(size > 10, size == shown.size.y if shown else "it was never opened")
window.close()
"""


@pytest.mark.usefixtures("home")
def test_the_list_of_tokens_opens_where_the_mouse_rests(screen: str) -> None:
    assert run(screen, TOKENS) == ["True True"]


@pytest.mark.usefixtures("home")
def test_a_notice_and_a_dialog_are_drawn_to_their_end_and_a_drawer_opens_as_it_was(screen: str) -> None:
    assert run(screen, NOTICE) == ["True True", "True True", "Tokens Tokens", "it darkens"]


@pytest.mark.usefixtures("home")
def test_letters_and_clicks_at_once(screen: str) -> None:
    """In the first window, and in those later ones that find the panels where they were left."""
    for start in ("first", "second"):
        said = run(screen, CODE)
        assert said[:3] == ["Compare is shown", " Start tab panel", "'panel\\t' Page"], start
        assert said[3] != "Page", "Ctrl+Tab goes elsewhere"
        assert said[4:6] == ["False True", "'l.'"], "undone by the Edit menu, and the page has the keyboard again"
        assert said[6:8] == ["Page", "Page"], "Esc leaves the menus"
        assert said[8] == "Save as###Files Page", "what follows a dialog is not for the notice of its end"
        assert said[9] == "sought '.!'", "the search gives the keyboard back"
        assert said[10:] == ["Page False", "Page False", "Page True"], "Esc stops where it has nothing to close"


HELD = """
import glfw

glfw.init()
glfw.window_hint(glfw.VISIBLE, False)
glfw.window_hint(glfw.CLIENT_API, glfw.NO_API)
window = glfw.create_window(9, 9, "", None, None)
glfw.set_clipboard_string(window, "held")
print(flush=True)
while True:
    glfw.wait_events()
"""

PASTING = f"""
import subprocess, sys
from imgui_bundle import imgui
from client.window import selections
from client.window.loop import Window

window = Window("tcp://127.0.0.1:1")
selections.ANSWER_S = 30  # the other program may be slow on a busy machine
command = [sys.executable, "-P", "-c", {HELD!r}]
with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as holder:
    holder.stdout.readline()
    print(imgui.get_clipboard_text())
    holder.send_signal(19)  # SIGSTOP
    selections.ANSWER_S = 0.1
    print(imgui.get_clipboard_text(), window.app.state.said("clipboard"))
    holder.kill()
imgui.set_clipboard_text("own")
print(imgui.get_clipboard_text())
window.close()
"""


@pytest.mark.usefixtures("home")
def test_a_program_that_hangs_with_the_clipboard_does_not_hang_the_window(screen: str) -> None:
    said = run(screen, PASTING)
    assert said[::2] == ["held", "own"] and "does not answer" in said[1]


CLOSING = """
import glfw
from client.window.loop import Window

window = Window("tcp://127.0.0.1:1")
window.frame()
print(glfw.get_window_attrib(window.window, glfw.VISIBLE))
close = window.app.close

def slow():
    print(glfw.get_window_attrib(window.window, glfw.VISIBLE))
    close()

window.app.close = slow
window.close()
"""


@pytest.mark.usefixtures("home")
def test_a_window_that_closes_is_gone_at_once(screen: str) -> None:
    """Whatever its disk and its server take."""
    assert run(screen, CLOSING) == ["1", "0"]


def run(screen: str, code: str) -> list[str]:
    """Return the lines that a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"DISPLAY": screen, "GALLIUM_NOOP": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
