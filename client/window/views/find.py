"""The bar that finds and replaces in the page."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.editor import find
from client.window.events import Action, Edit, ReplaceAll, Select
from client.window.state import AppState
from client.window.views import widgets

FIELD, BUTTON = 16.0, 6.0
"""Widths of a field and of the count, in font sizes."""


def draw(state: AppState) -> list[Action]:
    """Draw the bar where it is open. Enter goes to the next place, Shift+Enter to the one before, Esc closes."""
    sought, view = state.page.find, state.page.view
    if not sought.open:
        return []
    actions, document = list[Action](), state.page.document
    places, selected = sought.places(document.text), (document.anchor, document.cursor)
    back, on = _field(state, places)
    imgui.same_line()
    imgui.begin_disabled(not places)
    back |= imgui.arrow_button("##previous", imgui.Dir.up)
    widgets.tip("The place before (Shift+Enter)")
    imgui.same_line(0, 2)
    on |= imgui.arrow_button("##next", imgui.Dir.down)
    widgets.tip("The next place (Enter)")
    imgui.end_disabled()
    imgui.same_line()
    _, sought.case = imgui.checkbox("Match case", sought.case)
    imgui.same_line()
    if imgui.button("Close##find"):
        sought.open = view.lent = False
    place = find.preceding(places, selected) if back else None
    if on:
        place = find.following(places, selected)
    if sought.replacing:
        actions += _replace(state, places, selected)
    if place:
        actions.append(Select(*place))
        view.reveal = True
    return actions


def _field(state: AppState, places: list[tuple[int, int]]) -> tuple[bool, bool]:
    """Draw the field of what is sought, and how many places there are; return back, on."""
    sought, document = state.page.find, state.page.document
    if sought.entered:
        imgui.set_keyboard_focus_here()
        sought.entered = False
    imgui.set_next_item_width(imgui.get_font_size() * FIELD)
    flags = imgui.InputTextFlags_.enter_returns_true | imgui.InputTextFlags_.auto_select_all
    entered, sought.text = imgui.input_text_with_hint("##sought", "Find", sought.text, flags)
    if entered:
        imgui.set_keyboard_focus_here(-1)
    _lend(state)
    imgui.same_line()
    at = find.number(places, (document.anchor, document.cursor))
    count = f"{len(places):,}{'+' if len(places) == find.MOST else ''}"
    told = f"{at:,} of {count}" if at else f"{count} found"
    if sought.text:
        imgui.text_disabled(told if places else "not found")
    else:
        imgui.dummy((0, 0))
    back = entered and imgui.get_io().key_shift
    return back, entered and not back


def _replace(state: AppState, places: list[tuple[int, int]], selected: tuple[int, int]) -> list[Action]:
    sought, text = state.page.find, state.page.document.text
    imgui.set_next_item_width(imgui.get_font_size() * FIELD)
    flags = imgui.InputTextFlags_.enter_returns_true
    entered, sought.put = imgui.input_text_with_hint("##put", "Replace by", sought.put, flags)
    if entered:
        imgui.set_keyboard_focus_here(-1)
    _lend(state)
    imgui.same_line()
    imgui.begin_disabled(not places)
    one = imgui.button("Replace") or entered
    imgui.same_line()
    imgui.begin_disabled(state.page.generating is not None)
    every = imgui.button("Replace all")
    imgui.end_disabled()
    imgui.end_disabled()
    if every and places:
        return [ReplaceAll(tuple(find.replaced(text, sought)))]
    if not one or not places:
        return []
    state.page.view.reveal = True
    if not find.number(places, selected):
        return [Select(*(find.following(places, selected) or places[0]))]
    start, end = min(selected), max(selected)
    return [Edit(start, end, sought.put, "replaced"), *_then(places, start, len(sought.put) - (end - start))]


def _then(places: list[tuple[int, int]], start: int, moved: int) -> list[Action]:
    """Select the place after the one that was replaced, where there is one."""
    after = [place for place in places if place[0] > start]
    if after:
        return [Select(after[0][0] + moved, after[0][1] + moved)]
    return [Select(*places[0])] if places[0][0] < start else []


def _lend(state: AppState) -> None:
    """Let the field above have the keyboard until the page is clicked or the bar is closed."""
    if imgui.is_item_active():
        state.page.view.lent = True
