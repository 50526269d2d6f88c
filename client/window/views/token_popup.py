"""What else could stand where the mouse rests on the page: the alternatives of a token, of which a click takes one.

The list stays while the mouse is on the word or on the list. A click on the word itself is the page's.
"""

from __future__ import annotations

import math

from imgui_bundle import ImVec2, imgui

from client.window.alternatives import Tokens, probability
from client.window.events import Action, TakeToken
from client.window.state import AppState, Hovered
from client.window.views import widgets
from client.window.views.tokens import GONE, visible
from protocol import messages as m

NAME = "##alternatives"
REST_S = 0.25
"""Seconds for which the mouse rests on a word before the list opens."""
SHOWN = 10
TEXT, BAR = 9.0, 4.0
WIDTH = TEXT + BAR + 3.2
"""Widths of the first two columns, the token and its bar, and with the percentages of all. In font sizes."""
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


def draw_list(tokens: Tokens, index: int) -> list[Action]:
    """Draw what could stand there, the likeliest first, each with a bar and its probability."""
    actions = list[Action]()
    own, size = tokens.written.tokens[index], imgui.get_font_size()
    paint = imgui.get_window_draw_list()
    shown = own.top[:SHOWN]
    if all(a.id != tokens.written.ids[index] for a in shown):
        shown = [*shown, m.Alternative(id=tokens.written.ids[index], text=own.text, logprob=own.logprob)]
    for a in shown:
        is_own = a.id == tokens.written.ids[index]
        corner, share = imgui.get_cursor_screen_pos(), probability(a.logprob)
        label = f"{visible(a.text)}###{a.id}"
        if imgui.selectable(label, is_own, 0, ImVec2(size * WIDTH, 0))[0] and not is_own:
            actions.append(TakeToken(tokens.start, index, a.id))
        left, top = corner.x + size * TEXT, corner.y + imgui.get_text_line_height() * 0.3
        right = left + max(1.0, size * BAR * math.sqrt(share))
        color = widgets.color("accent", 1.0 if is_own else 0.6)
        paint.add_rect_filled(
            (left, top), (right, top + imgui.get_text_line_height() * 0.4), imgui.get_color_u32(color)
        )
        percent = f"{share:.1%}"
        end = corner.x + size * WIDTH - imgui.calc_text_size(percent).x
        paint.add_text((end, corner.y), imgui.get_color_u32(imgui.Col_.text), percent)
    return actions


def _within(mouse: ImVec2, box: tuple[float, float, float, float]) -> bool:
    return box[0] - 1 <= mouse.x <= box[2] + 1 and box[1] - 1 <= mouse.y <= box[3] + 1
