"""What else could stand where the mouse rests on the page: the alternatives of a token, of which a click takes one.

The list stays while the mouse is on the word or on the list. A click on the word itself is the page's.
"""

from __future__ import annotations

from imgui_bundle import ImVec2, imgui

from client.window.events import Action
from client.window.state import AppState, Hovered
from client.window.views.tokens import GONE, WIDTH, draw_list

NAME = "##alternatives"
REST_S = 0.25
"""Seconds for which the mouse rests on a word before the list opens."""
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


def draw(state: AppState, offset: int | None, low: ImVec2, high: ImVec2) -> list[Action]:
    """Draw the list for the character at `offset`, which the mouse is on; `low` and `high` are its line's corners
    around it.
    """
    follow(state, offset, low, high)
    hovered = state.hovered
    if hovered is None or not hovered.opened:
        return []
    tokens = state.tokens_at(hovered.offset)
    index = tokens.index_at(hovered.offset) if tokens else None
    imgui.set_next_window_pos(ImVec2(hovered.word[0], hovered.word[3]))
    imgui.begin(NAME, None, FLAGS)
    actions = draw_list(tokens, index) if tokens and index is not None else []
    if index is None:
        imgui.push_text_wrap_pos(imgui.get_font_size() * WIDTH)
        imgui.text_disabled(GONE)
        imgui.pop_text_wrap_pos()
    where, size = imgui.get_window_pos(), imgui.get_window_size()
    hovered.list = (where.x, where.y, where.x + size.x, where.y + size.y)
    imgui.end()
    if actions:
        state.hovered = None
    return actions


def follow(state: AppState, offset: int | None, low: ImVec2, high: ImVec2) -> None:
    """Note what the mouse rests on, and when; it is the one thing of the state that this view changes."""
    hovered, mouse = state.hovered, imgui.get_mouse_pos()
    if state.page.busy or imgui.is_mouse_dragging(imgui.MouseButton_.left):
        state.hovered = None
        return
    if hovered and hovered.opened and any(_within(mouse, box) for box in (hovered.word, hovered.list)):
        return
    if offset is None or state.page.document.mark_at(offset) is None:
        state.hovered = None
        return
    tokens = state.tokens_at(offset)
    index = tokens.index_at(offset) if tokens else None
    begin = tokens.places[index] if tokens and index is not None else offset
    if hovered is None or hovered.opened or hovered.offset != begin:
        state.hovered = Hovered(begin, state.now, (low.x, low.y, high.x, high.y))
    elif state.now >= hovered.since + REST_S:
        hovered.opened = True


def _within(mouse: ImVec2, box: tuple[float, float, float, float]) -> bool:
    return box[0] - 1 <= mouse.x <= box[2] + 1 and box[1] - 1 <= mouse.y <= box[3] + 1
