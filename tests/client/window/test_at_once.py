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
from client.window.loop import Window
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
window.close()
"""


@pytest.mark.usefixtures("home")
def test_letters_and_clicks_at_once(screen: str) -> None:
    """In the first window, and in those later ones that find the panels where they were left."""
    for start in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", CODE],
            env=os.environ | {"DISPLAY": screen, "GALLIUM_NOOP": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.splitlines() == ["Compare is shown", " Start tab panel"], (start, done.stdout, done.stderr)
