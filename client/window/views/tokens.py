"""The last continuation as tokens, shaded by their probability; each with its alternatives."""

from __future__ import annotations

from imgui_bundle import ImVec2, ImVec4, imgui

from client.window import theme
from client.window.alternatives import Tokens, probability, unlikely
from client.window.events import Action, TakeToken
from client.window.state import AppState
from client.window.views import widgets
from protocol import messages as m

MAX_TOKENS = 1000
SHOWN, LONGEST = 10, 20
"""Alternatives that are listed, and characters of each."""
TEXT, BAR = 7.0, 4.0
WIDTH = TEXT + BAR + 3.2
"""Widths of the first two columns, the token and its bar, and with the percentages of all. In font sizes."""
NOTHING = (
    "The tokens of the continuation at the cursor are shown here: the redder, the less likely. Click one to replace it."
)
GONE = (
    "No other tokens are kept of this continuation: it is old or of an earlier session, was edited at its beginning, "
    "or was written by a search."
)


def draw(state: AppState) -> list[Action]:
    actions = list[Action]()
    cursor = state.page.document.cursor
    tokens = state.tokens_at(cursor)
    if tokens is None:
        imgui.text_wrapped(GONE if state.page.document.mark_at(cursor) else NOTHING)
        return actions
    written = tokens.written
    there = len(tokens.places) - 1
    chosen = written.tokens[: min(there, MAX_TOKENS)]
    right = imgui.get_cursor_screen_pos().x + imgui.get_content_region_avail().x
    padding = ImVec2(1, 2)
    imgui.push_style_var(imgui.StyleVar_.item_spacing, ImVec2(1, 3))
    imgui.push_style_var(imgui.StyleVar_.frame_padding, padding)
    for index, token in enumerate(chosen):
        text = widgets.visible(token.text)
        width = imgui.calc_text_size(text).x + 2 * padding.x
        if index and imgui.get_item_rect_max().x + width < right and "\n" not in chosen[index - 1].text:
            imgui.same_line()
        imgui.push_id(index)
        imgui.push_style_color(imgui.Col_.button, shade(token.logprob))
        if imgui.button(text):
            imgui.open_popup("alternatives")
        imgui.pop_style_color()
        if imgui.is_item_hovered():
            imgui.set_tooltip("\n".join(alternative(a.text, a.logprob) for a in token.top[:10]))
        if imgui.begin_popup("alternatives"):
            imgui.text_disabled("replace it and go on from there")
            actions += draw_list(tokens, index)
            imgui.end_popup()
        imgui.pop_id()
    imgui.pop_style_var(2)
    if there > MAX_TOKENS:
        imgui.text_disabled(f"and {there - MAX_TOKENS} more")
    return actions


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
        label = f"{widgets.visible(a.text[:LONGEST])}###{a.id}"
        if imgui.selectable(label, is_own, 0, ImVec2(size * WIDTH, 0))[0] and not is_own:
            actions.append(TakeToken(tokens.start, index, a.id))
        left, top = corner.x + size * TEXT, corner.y + imgui.get_text_line_height() * 0.3
        right = left + max(1.0, size * BAR * share)
        color = widgets.color("accent", 1.0 if is_own else 0.6)
        paint.add_rect_filled(
            (left, top), (right, top + imgui.get_text_line_height() * 0.4), imgui.get_color_u32(color)
        )
        percent = f"{share:.1%}"
        end = corner.x + size * WIDTH - imgui.calc_text_size(percent).x
        paint.add_text((end, corner.y), imgui.get_color_u32(imgui.Col_.text), percent)
    return actions


def alternative(text: str, logprob: float) -> str:
    return f"{probability(logprob):6.1%}  {widgets.visible(text)}"


def shade(logprob: float) -> ImVec4:
    """Return the shade of a token, as on the page."""
    return theme.mark("unlikely", unlikely(logprob))
