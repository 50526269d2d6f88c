"""Every setting that the server describes, with its range and default; presets."""

from __future__ import annotations

from typing import assert_never

from imgui_bundle import imgui

from client.window.events import Action, Do, Enter, Prefer, Preset, SetSetting
from client.window.state import AppState
from client.window.views import widgets
from protocol import messages as m

DRAWS, BEAMS = ("temperature", "top_k", "top_p", "min_p"), ("num_beams", "length_penalty", "early_stopping")
OF_STRATEGY = {
    "greedy": (),
    "mirostat": ("temperature", "mirostat_tau", "mirostat_eta"),
    "beam": BEAMS,
    "beam_sample": (*BEAMS, *DRAWS),
    "diverse_beam": (*BEAMS, "num_beam_groups", "diversity_penalty"),
    "contrastive": ("num_candidates", "penalty_alpha"),
}
"""Settings that matter for a strategy, which come first; for one that is not listed, those for drawing at random."""
HIDDEN = {"n", "truncate", "logprobs", "logprobs_of"}
"""The window sets these itself."""
MAX_DIGITS = 19
"""Digits of a seed: 64 bits have no more."""


def draw(state: AppState) -> list[Action]:
    actions = list[Action]()
    parameters = state.parameters
    if not parameters:
        imgui.text_wrapped("Connect to a server to see its settings.")
        return actions
    actions += draw_presets(state)
    imgui.separator()
    first = (
        "strategy",
        "max_new_tokens",
        *OF_STRATEGY.get(state.setting("strategy"), DRAWS),
        "repetition_penalty",
        "stop",
        "seed",
    )
    for name in first:
        if name in parameters:
            actions += draw_setting(state, parameters[name])
    changed, spared = imgui.checkbox("spare trailing spaces", state.preferences.spare_spaces)
    widgets.tip(
        "Spaces at the end of a prompt are not sent where they would break the next word, whose token begins with its\n"
        "space. They stay on the page."
    )
    if changed:
        actions.append(Prefer("spare_spaces", spared))
    if imgui.collapsing_header("More"):
        for name, parameter in parameters.items():
            if name not in first and name not in HIDDEN:
                actions += draw_setting(state, parameter)
    return actions


def draw_presets(state: AppState) -> list[Action]:
    actions = list[Action]()
    imgui.set_next_item_width(imgui.get_font_size() * 8)
    if chosen := widgets.combo("##Presets", "presets", list(state.preferences.presets)):
        actions.append(Preset("load", chosen))
    imgui.same_line()
    if imgui.button("Save as preset"):
        imgui.open_popup("Preset")
    imgui.same_line()
    if imgui.button("Reset"):
        actions.append(Do("reset settings"))
    widgets.tip("Set every setting back to the server's default.")
    if imgui.begin_popup("Preset"):
        changed, name = imgui.input_text("name", state.drafts.preset)
        if changed:
            actions.append(Enter("drafts", "preset", name))
        if imgui.button("Save") and name.strip():
            actions.append(Preset("save", name))
            imgui.close_current_popup()
        if name in state.preferences.presets:
            imgui.same_line()
            if imgui.button("Delete"):
                actions.append(Preset("delete", name))
                imgui.close_current_popup()
        imgui.end_popup()
    return actions


def draw_setting(state: AppState, parameter: m.Parameter) -> list[Action]:
    """Draw one setting; where it differs from the default, a button beside it brings that back."""
    actions = list[Action]()
    name, value = parameter.name, state.settings.get(parameter.name, parameter.default)
    imgui.push_id(name)
    changed, new = False, value
    imgui.set_next_item_width(imgui.get_content_region_avail().x * 0.5)
    low, high = parameter.minimum, parameter.maximum
    label = name.replace("_", " ")
    match parameter.type:
        case "choice":
            offered = state.engine.strategies if name == "strategy" and state.engine else []
            choices = [choice for choice in parameter.choices if choice in (offered or parameter.choices)]
            chosen = widgets.combo(label, str(value), choices)
            changed, new = chosen is not None, chosen
        case "bool":
            changed, new = imgui.checkbox(label, bool(value))
        case "float":
            changed, new = imgui.input_float(label, float(value or 0.0), 0.05, 0.5, "%.3g")
            new = min(max(new, low if low is not None else new), high if high is not None else new)
        case "int" if parameter.default is None:
            fixed = value is not None
            toggled, fixed = imgui.checkbox("##fixed", fixed)
            widgets.tip("Use this one, instead of a new one for each generation.")
            imgui.same_line()
            imgui.begin_disabled(not fixed)
            imgui.set_next_item_width(imgui.get_content_region_avail().x * 0.6)
            typed, text = imgui.input_text(
                label, "new each time" if value is None else str(value), imgui.InputTextFlags_.chars_decimal
            )
            imgui.end_disabled()
            if toggled:
                changed, new = True, (1 if fixed else None)
            elif typed and text.isdigit():
                number = int(text[:MAX_DIGITS])
                changed, new = True, min(number, int(high) if high is not None else number)
        case "int":
            changed, new = imgui.input_int(label, int(value or 0))
            new = int(min(max(new, low if low is not None else new), high if high is not None else new))
        case "strings":
            shown = " | ".join(str(v).replace("\n", "\\n") for v in value or [])
            changed, text = imgui.input_text(label, shown)
            new = [part.replace("\\n", "\n") for part in text.split(" | ") if part]
        case "biases":
            shown = ", ".join(f"{token}:{bias:g}" for token, bias in value or [])
            changed, text = imgui.input_text(label, shown)
            new = read_biases(text)
            changed = changed and new is not None
        case _:
            assert_never(parameter.type)
    widgets.tip(explain(parameter))
    if name in state.settings:
        imgui.same_line()
        if imgui.small_button("x"):
            actions.append(SetSetting(name, None))
        widgets.tip(f"Back to the default, {widgets.value_text(parameter.default)}.")
    imgui.pop_id()
    if changed and new != value:
        actions.append(SetSetting(name, None if new == parameter.default else new))
    return actions


def explain(parameter: m.Parameter) -> str:
    text = parameter.description
    if parameter.minimum is not None or parameter.maximum is not None:
        text += f"\n{widgets.value_text(parameter.minimum)} to {widgets.value_text(parameter.maximum)}"
    if parameter.type == "strings":
        text += "\nSeparate several with ' | '; \\n is a new line."
    if parameter.type == "biases":
        text += "\nFor example 50256:-5, 198:2.5"
    return f"{text}\ndefault: {widgets.value_text(parameter.default)}"


def read_biases(text: str) -> list[tuple[int, float]] | None:
    """Return the pairs of a token and its bias; None while they are being typed."""
    pairs = (pair.split(":") for pair in text.split(",") if pair.strip())
    try:
        return [(int(token), float(bias)) for token, bias in pairs]
    except ValueError:
        return None
