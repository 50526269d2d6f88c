"""The real program as a person has it, on a desktop with a window manager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.window.program import Program, desktop, kept
from tests.conftest import WINDOW, wait_for

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window.opening import Area, first, on_screen


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    with desktop() as display:
        yield display


def test_panels_and_place_are_kept_from_start_to_start(display: str, home: Path) -> None:
    first = Program(display)
    before = first.page
    edge = before.x + before.width + 1
    to_edge = ("mousemove", "--window", first.id, str(edge), before.middle[1])
    first.insist("on an edge", "mousemove", "0", "0", *to_edge)
    first.xdotool("mousedown", "1")
    for step in (20, 60):
        first.xdotool("mousemove", "--window", first.id, str(edge - step), before.middle[1])
    wait_for(lambda: first.page.width == before.width - 60)
    first.xdotool("mouseup", "1", "windowmove", "--sync", first.id, "70", "50")
    places = [closed(first, home)]
    assert places[0][0] >= 70 and places[0][1] >= 50
    for _ in range(2):
        again = Program(display)
        wait_for(lambda: again.page == before._replace(width=before.width - 60))  # noqa: B023 - called at once
        places.append(closed(again, home))
    assert places[0] == places[1] == places[2]


def closed(program: Program, home: Path) -> tuple[int, int, int]:
    """Close the window as a person does; return its place and the version of its layout, which are kept."""
    program.xdotool("key", "alt+F4")
    assert "Traceback" not in program.ended()
    preferences = json.loads(kept(home).read_text(encoding="utf-8"))
    return preferences["x"], preferences["y"], preferences["layout_version"]


@pytest.mark.usefixtures("home")
def test_keys_go_by_their_letter_and_modifiers_never_stick(display: str) -> None:
    program = Program(display)
    try:
        program.keys("ctrl+z")
        program.expect("key ctrl z")
        # The window manager takes Alt+Space and shows its menu; the release of Alt goes to that.
        program.xdotool("keydown", "alt", "key", "space", "keyup", "alt")
        program.xdotool("key", "Escape")
        program.insist("key f6", "key", "F6")  # and not Alt+F6
        program.layout("fr")
        program.keys("ctrl+a", "ctrl+z", "ctrl+agrave", "ctrl+minus", "ctrl+m", "ctrl+semicolon")
        for key in ("a", "z", "0", "minus", "m", "semicolon"):
            seen = program.expect(f"key ctrl {key}")
            assert "do quit" not in seen
        program.layout("de")
        program.keys("ctrl+z", "ctrl+y", "ctrl+plus", "ctrl+minus", "ctrl+odiaeresis")
        for key in ("z", "y", "equal", "minus", "semicolon"):
            program.expect(f"key ctrl {key}")
        program.layout("ru")
        program.keys("ctrl+Cyrillic_ya", "ctrl+Cyrillic_es", "ctrl+KP_Add", "KP_Enter", "F7")
        for key in ("ctrl z", "ctrl c", "ctrl equal", "enter", "f7"):
            program.expect(f"key {key}")
        # Where the layout has no Latin letters keys go by their place.
        for layout, chords in {
            "gr": ("ctrl+Greek_zeta", "ctrl+Greek_psi", "ctrl+plus"),
            "ara": ("ctrl+Arabic_hamzaonyeh", "ctrl+Arabic_hamzaonwaw", "ctrl+plus"),
            "il": ("ctrl+hebrew_zain", "ctrl+hebrew_bet", "ctrl+plus"),
        }.items():
            program.layout(layout)
            program.keys(*chords)
            for key in ("z", "c", "shift equal"):
                program.expect(f"key ctrl {key}")
    finally:
        errors = program.kill()
        program.layout("us")
    assert "Traceback" not in errors


OTHER = "import glfw; glfw.init(); glfw.create_window(300, 200, 'other', None, None)\nwhile True: glfw.wait_events()"


@pytest.mark.usefixtures("home")
def test_a_modifier_that_is_held_on_the_way_to_another_window_and_back_neither_sticks_nor_is_missed(
    display: str,
) -> None:
    program = Program(display)
    with subprocess.Popen([sys.executable, "-c", OTHER], env=os.environ | {"DISPLAY": display}) as other:
        try:
            beside = program.xdotool("search", "--sync", "--onlyvisible", "--name", "^other$").split()[-1]
            program.xdotool("windowactivate", "--sync", program.id)
            for there in (beside, program.id):
                program.xdotool("keydown", "alt", "key", "Tab", "keyup", "alt")
                wait_for(lambda: program.xdotool("getactivewindow") == there)  # noqa: B023 - called at once
            program.insist("key f6", "key", "F6")  # and not Alt+F6
            program.xdotool("keydown", "ctrl", "windowactivate", "--sync", beside, "keyup", "ctrl")
            program.xdotool("windowactivate", "--sync", program.id)
            program.insist("key f7", "key", "F7")
            program.xdotool("windowactivate", "--sync", beside, "keydown", "ctrl")
            program.xdotool("windowactivate", "--sync", program.id)
            program.insist("key ctrl z", "key", "z")
            program.xdotool("keyup", "ctrl")
            program.insist("key f8", "key", "F8")
        finally:
            other.kill()
            errors = program.kill()
    assert "Traceback" not in errors


def test_the_first_window_fits_the_screen_and_later_ones_are_on_one() -> None:
    usual, large = Area(0, 0, 1360, 860), Area(0, 27, 3840, 2133)
    assert first(usual, 2.0, [large])[2:] == (2720, 1720)
    assert first(usual, 2.0, [Area(0, 0, 1920, 1053)])[2:] == (1920, 973), "its title needs room, too"
    assert first(usual, 1.0, [Area(0, 0, 600, 400)])[2:] == (640, 480)
    second = Area(3840, 0, 1920, 1080)
    window = Area(4000, 100, 1360, 860)
    assert on_screen(window, [large, second]) and not on_screen(window, [large])
    assert not on_screen(window._replace(y=-900), [second]) and not on_screen(window._replace(y=1075), [second])


@pytest.mark.usefixtures("home")
def test_a_minimised_window_is_not_drawn_and_asks_in_sight(display: str) -> None:
    program = Program(display)
    try:
        program.xdotool("mousemove", "--window", program.id, *program.page.middle, "click", "1")
        program.expect("page")
        assert os.sched_getscheduler(program.process.pid) == os.SCHED_BATCH, "it breaks into no step of the decoder"
        program.keys("x")
        program.expect("key x")
        wait_for(lambda: "*" in program.xdotool("getwindowname", program.id))
        program.xdotool("windowminimize", program.id)
        program.expect("look minimised")
        assert program.xdotool("getwindowname", program.id) == "Untitled * - gpt2d"
        assert program.id in program.xdotool("search", "--class", "^gpt2d$").split()
        assert not [line for line in program.expect("look minimised") if line.startswith("page")]
        program.close()
        program.expect("do quit")
        program.expect("page")
        assert program.xdotool("search", "--sync", "--onlyvisible", "--pid", str(program.process.pid))
        assert program.process.poll() is None
    finally:
        errors = program.kill()
    assert "Traceback" not in errors
