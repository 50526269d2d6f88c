"""The last continuation as tokens, shaded by their probability; each with its alternatives."""

from __future__ import annotations

import math

from imgui_bundle import ImVec2, ImVec4, imgui

from client.window.alternatives import probability
from client.window.events import Action, TakeToken
from client.window.state import AppState
from client.window.views import widgets
from protocol import messages as m

MAX_TOKENS = 1000
NOTHING = (
    "The tokens of the continuation at the cursor are shown here: the paler, the less likely. Click one to replace it."
)
GONE = "No other tokens are kept of this continuation: it is old, was edited at its beginning, or written by a search."


def draw(state: AppState) -> list[Action]:
    actions = list[Action]()
    cursor = state.page.document.cursor
    tokens = state.tokens_at(cursor)
    if tokens is None:
        imgui.text_wrapped(GONE if state.page.document.mark_at(cursor) else NOTHING)
        return actions
    written = tokens.written
    chosen = written.tokens[:MAX_TOKENS]
    right = imgui.get_cursor_screen_pos().x + imgui.get_content_region_avail().x
    padding = ImVec2(1, 2)
    imgui.push_style_var(imgui.StyleVar_.item_spacing, ImVec2(1, 3))
    imgui.push_style_var(imgui.StyleVar_.frame_padding, padding)
    for index, token in enumerate(chosen):
        text = visible(token.text)
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
            actions += draw_alternatives(tokens.start, index, token, written.ids[index])
            imgui.end_popup()
        imgui.pop_id()
    imgui.pop_style_var(2)
    if len(written.tokens) > MAX_TOKENS:
        imgui.text_disabled(f"and {len(written.tokens) - MAX_TOKENS} more")
    return actions


def draw_alternatives(start: int, index: int, token: m.TokenLogprobs, own: int) -> list[Action]:
    """Draw what can be taken instead of a token of the continuation that begins at `start`."""
    actions = list[Action]()
    imgui.text_disabled("replace it and go on from there")
    for a in token.top[:10]:
        label = f"{alternative(a.text, a.logprob)}###{a.id}"
        if imgui.selectable(label, a.id == own)[0] and a.id != own:
            actions.append(TakeToken(start, index, a.id))
    return actions


def visible(text: str) -> str:
    """Return a token as a label shows it."""
    shown = widgets.item(text[:80]).replace("\n", "\u00b6").replace("\t", "\u2192")
    return shown if text else "\u00b7"


def alternative(text: str, logprob: float) -> str:
    return f"{probability(logprob):6.1%}  {visible(text)}"


def shade(logprob: float) -> ImVec4:
    """Return the shade of a token: strong where it was certain, none where it was unlikely."""
    return widgets.color("accent", 0.08 + 0.62 * math.sqrt(probability(logprob)))
