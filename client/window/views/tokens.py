"""The last continuation as tokens, shaded by their probability; each with its alternatives."""

from __future__ import annotations

import math

from imgui_bundle import ImVec2, ImVec4, imgui

from client.window.events import Action, TakeToken
from client.window.state import KEPT_LOGPROBS, AppState
from client.window.views import widgets
from protocol import messages as m

MAX_TOKENS = 1000


def draw(state: AppState) -> list[Action]:
    actions, shown = list[Action](), state.shown
    if shown is None or not shown.result.logprobs:
        if shown is None or not shown.result.ids:
            why = "After a generation its tokens are shown here: the paler, the less likely. Click one to replace it."
        elif str(shown.result.settings.get("strategy")) in m.SEARCHES:
            why = "A search compares whole texts: its tokens have no probabilities of their own."
        else:
            why = f"The tokens' probabilities are kept for the newest {KEPT_LOGPROBS} generations only."
        imgui.text_wrapped(why)
        return actions
    chosen = shown.result.logprobs[:MAX_TOKENS]
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
            actions += draw_alternatives(index, token, shown.result.ids)
            imgui.end_popup()
        imgui.pop_id()
    imgui.pop_style_var(2)
    if len(shown.result.logprobs) > MAX_TOKENS:
        imgui.text_disabled(f"and {len(shown.result.logprobs) - MAX_TOKENS} more")
    return actions


def draw_alternatives(index: int, token: m.TokenLogprobs, ids: list[int]) -> list[Action]:
    actions = list[Action]()
    imgui.text_disabled("replace it and go on from there")
    for a in token.top[:10]:
        is_own = index < len(ids) and ids[index] == a.id
        if imgui.selectable(f"{alternative(a.text, a.logprob)}###{a.id}", is_own)[0] and not is_own:
            actions.append(TakeToken(index, a.id))
    return actions


def visible(text: str) -> str:
    """Return a token as a label shows it."""
    shown = widgets.item(text[:80]).replace("\n", "\u00b6").replace("\t", "\u2192")
    return shown if text else "\u00b7"


def alternative(text: str, logprob: float) -> str:
    return f"{math.exp(min(0.0, logprob)):6.1%}  {visible(text)}"


def shade(logprob: float) -> ImVec4:
    """Return the shade of a token: strong where it was certain, none where it was unlikely."""
    probability = math.exp(min(0.0, logprob)) if math.isfinite(logprob) else 0.0
    return widgets.color("accent", 0.08 + 0.62 * math.sqrt(probability))
