"""What else could stand where the mouse rests on the page: the alternatives of a token, of which a click takes one.

The list stays while the mouse is on the word or on the list. A click on the word itself is the page's.
"""

from __future__ import annotations

import math

from imgui_bundle import ImVec2, imgui

from client.window.events import Action
from client.window.state import AppState
from client.window.views import widgets
from client.window.views.tokens import GONE, WIDTH, draw_list
from client.window.writing import REST_S, Hovered

NAME = "##alternatives"
FLAGS = (
    imgui.WindowFlags_.no_title_bar
    | imgui.WindowFlags_.no_move
    | imgui.WindowFlags_.no_resize
    | imgui.WindowFlags_.no_saved_settings
    | imgui.WindowFlags_.no_focus_on_appearing
    | imgui.WindowFlags_.no_nav
    | imgui.WindowFlags_.no_docking
    | imgui.WindowFlags_.always_auto_resize
)


def draw(state: AppState) -> list[Action]:
    """Draw the list for the character of the page that the mouse is on."""
    state.hovered = follow(state)
    hovered = state.hovered
    if hovered is None or not hovered.opened:
        return []
    tokens = state.tokens_at(hovered.offset)
    index = tokens.index_at(hovered.offset) if tokens else None
    view, room = imgui.get_main_viewport(), hovered.list[3] - hovered.list[1]
    below = hovered.word[3] + room <= view.work_pos.y + view.work_size.y
    corner = ImVec2(hovered.word[0], hovered.word[3] if below else hovered.word[1])
    imgui.set_next_window_pos(corner, 0, ImVec2(0.0, 0.0 if below else 1.0))
    imgui.push_style_color(imgui.Col_.window_bg, widgets.color("raised"))
    imgui.begin(NAME, None, FLAGS)
    imgui.pop_style_color()
    actions = draw_list(tokens, index) if tokens and index is not None else []
    if index is None:
        imgui.push_text_wrap_pos(imgui.get_font_size() * WIDTH)
        imgui.text_disabled(GONE)
        imgui.pop_text_wrap_pos()
    where, size = imgui.get_window_pos(), imgui.get_window_size()
    hovered.drawn += 1
    hovered.list = (where.x, where.y, where.x + size.x, where.y + size.y)
    imgui.end()
    if actions:
        state.hovered = None
    return actions


def follow(state: AppState) -> Hovered | None:
    """Return what the mouse rests on, and since when."""
    hovered, mouse = state.hovered, imgui.get_mouse_pos()
    document, offset = state.page.document, state.page.view.hovered
    popup = imgui.is_popup_open("", imgui.PopupFlags_.any_popup_id | imgui.PopupFlags_.any_popup_level)
    if state.page.busy or popup or imgui.get_io().mouse_wheel:
        return None
    if hovered and hovered.version != document.version:
        hovered = None
    if hovered and hovered.opened and _within(mouse, hovered.list):
        return hovered
    if offset is None or document.mark_at(offset) is None:
        return hovered if hovered and hovered.opened and _within(mouse, hovered.word) else None
    tokens = state.tokens_at(offset)
    index = tokens.index_at(offset) if tokens else None
    begin, end = (tokens.places[index], tokens.places[index + 1]) if tokens and index is not None else (offset, offset)
    if hovered is None or hovered.offset != begin:
        hovered = Hovered(begin, document.version, state.now, _box(state, begin, end))
    if imgui.is_mouse_down(imgui.MouseButton_.left):  # the word was meant: its list does not open under the hand
        hovered.since, hovered.opened = math.inf, False
    hovered.opened = hovered.opened or state.now >= hovered.since + REST_S
    return hovered


def _box(state: AppState, begin: int, end: int) -> tuple[float, float, float, float]:
    """Return where the characters are on the screen, as far as they are on the line that they begin in."""
    view = state.page.view
    corner, after = view.place(begin), view.place(end)
    right = after[0] if after[1] == corner[1] else corner[0] + view.line
    return corner[0], corner[1], max(right, corner[0] + 1), corner[1] + view.line


def _within(mouse: ImVec2, box: tuple[float, float, float, float]) -> bool:
    return box[0] - 1 <= mouse.x <= box[2] + 1 and box[1] - 1 <= mouse.y <= box[3] + 1
