"""Part of update.apply for how the page is seen: the search, the focus mode, the size of its letters; and what menus
ask of it, which is done in its next frame.
"""

from __future__ import annotations

from typing import assert_never

from client.window import events as e
from client.window.chords import keys_of
from client.window.preferences import LEAST_ZOOM, MOST_ZOOM
from client.window.state import AppState
from client.window.update import notices

ZOOM_STEP = 1.1
FOCUS = "focus mode"
"""The notice that says how to leave it."""
HINT_S = 5.0


def do(state: AppState, what: e.ViewWord) -> None:
    """Search the page, or see it otherwise."""
    page, preferences = state.page, state.preferences
    match what:
        case "find" | "find and replace":
            _find(state, replacing=what == "find and replace")
        case "focus mode":
            state.focus_mode = not state.focus_mode
            page.view.reveal = True
            notices.drop(state, FOCUS)
            if state.focus_mode:
                notices.inform(state, FOCUS, f"page alone: {keys_of(e.Do(what))} leaves it", until=state.now + HINT_S)
        case "zoom in" | "zoom out":
            zoom = preferences.zoom * (ZOOM_STEP if what == "zoom in" else 1 / ZOOM_STEP)
            preferences.zoom = max(LEAST_ZOOM, min(MOST_ZOOM, 1.0 if abs(zoom - 1) < ZOOM_STEP / 20 else zoom))
        case "zoom 1":
            preferences.zoom = 1.0
        case "cut" | "copy" | "paste" | "select all":
            page.view.wish = what
        case _:
            assert_never(what)


def _find(state: AppState, *, replacing: bool) -> None:
    """Open the search, with what is selected if that is within a line."""
    find, document = state.page.find, state.page.document
    start, end = document.selection
    chosen = document.text[start:end]
    if chosen and "\n" not in chosen:
        find.text = chosen
    find.open = find.entered = True
    find.replacing = replacing
    state.page.view.lent = True
    state.focus_page = max(state.focus_page, 1)


def closed_find(state: AppState) -> bool:
    """Close the search if it has the keyboard; return True if it had."""
    page = state.page
    had = page.find.open and page.view.lent
    if had:
        page.find.open = page.view.lent = False
    return had
