"""Every setting that the server describes, with its range and default; presets."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window import distribution
from client.window.alternatives import probability
from client.window.events import Action, Do, Enter, Prefer, Preset, SetSetting
from client.window.parameters import OF_THE_WINDOW
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
SLIDERS = {
    "max_new_tokens": (1, 1000),
    "temperature": (0.0, 2.0),
    "top_k": (0, 200),
    "top_p": (0.01, 1.0),
    "min_p": (0.0, 0.5),
    "typical_p": (0.01, 1.0),
    "repetition_penalty": (1.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "mirostat_tau": (0.0, 10.0),
    "mirostat_eta": (0.0, 1.0),
    "num_beams": (1, 16),
    "num_candidates": (1, 16),
    "penalty_alpha": (0.0, 1.0),
}
"""Settings that are drawn as sliders, with the ends of these; what lies beyond them can be typed (Ctrl+click)."""
LOGARITHMIC = {"max_new_tokens", "top_k"}
CURVE_HEIGHT = 4.0
"""In font sizes."""
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
        if name == DRAWS[-1]:
            draw_curve(state)
    changed, spared = imgui.checkbox("spare trailing spaces", state.preferences.spare_spaces)
    widgets.tip(
        "Spaces at the end of a prompt are not sent where they would break the next word, whose token begins with its\n"
        "space. They stay on the page."
    )
    if changed:
        actions.append(Prefer("spare_spaces", spared))
    if widgets.section("More"):
        for name, parameter in parameters.items():
            if name not in first and name not in OF_THE_WINDOW:
                actions += draw_setting(state, parameter)
    return actions


def draw_presets(state: AppState) -> list[Action]:
    actions = list[Action]()
    imgui.set_next_item_width(imgui.get_font_size() * 8)
    if chosen := widgets.combo("##Presets", "presets", list(state.preferences.presets)):
        actions.append(Preset("load", chosen))
    widgets.beside("Save as preset")
    if imgui.button("Save as preset"):
        imgui.open_popup("Preset")
    widgets.beside("Reset")
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
        case "float" | "int" if slides(parameter):
            actions += draw_name(state, parameter, label, value)
            changed, new = draw_slider(parameter, f"##{label}", value)
            if imgui.is_item_hovered() and imgui.get_mouse_clicked_count(imgui.MouseButton_.left) > 1:
                imgui.internal.clear_active_id()
                changed, new = True, parameter.default
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
    widgets.tip(explain(parameter))
    if name in state.settings and not slides(parameter):
        imgui.same_line()
        if imgui.small_button("x"):
            actions.append(SetSetting(name, None))
        widgets.tip(f"Back to the default, {widgets.value_text(parameter.default)}.")
    imgui.pop_id()
    if changed and new != value:
        actions.append(SetSetting(name, None if new == parameter.default else new))
    return actions


def slides(parameter: m.Parameter) -> bool:
    return parameter.name in SLIDERS and parameter.type in {"float", "int"} and parameter.default is not None


def draw_name(state: AppState, parameter: m.Parameter, label: str, value: float) -> list[Action]:
    """Draw a slider's name and value, and what brings its default back."""
    actions = list[Action]()
    text = f"{value:,}" if parameter.type == "int" else f"{value:.2f}"
    changed = parameter.name in state.settings
    widgets.name_and_value(label, text, "accent" if changed else "dim", imgui.get_font_size())
    if changed:
        imgui.same_line()
        back = f"Back to the default, {widgets.value_text(parameter.default)}."
        if widgets.icon_button("reset", "reset", back, small=True):
            actions.append(SetSetting(parameter.name, None))
    return actions


def draw_slider(parameter: m.Parameter, label: str, value: float) -> tuple[bool, float]:
    """Draw a number's slider; return whether it changed, and the number, which is within the parameter's range."""
    low, high = SLIDERS[parameter.name]
    least, most = parameter.minimum, parameter.maximum
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    flags = imgui.SliderFlags_.logarithmic if parameter.name in LOGARITHMIC else 0
    whole = parameter.type == "int"
    changed, new = widgets.thin_slider(label, value, low, max(low, high), whole=whole, flags=flags)
    new = new if least is None else max(new, type(new)(least))
    return changed, new if most is None else min(new, type(new)(most))


def draw_curve(state: AppState) -> None:
    """Draw what the settings leave of the last distribution that is known: the likeliest tokens where the text ends."""
    known = state.tokens_at(state.page.document.cursor)
    if known is None or not known.written.tokens or state.setting("strategy") != "sample":
        return
    top = known.written.tokens[-1].top
    if not top:
        return
    left = distribution.left(
        [a.logprob for a in top], *(state.setting(name) for name in ("temperature", "top_k", "top_p", "min_p"))
    )
    at, width = imgui.get_cursor_screen_pos(), imgui.get_content_region_avail().x
    height, paint = imgui.get_font_size() * CURVE_HEIGHT, imgui.get_window_draw_list()
    step, scale = width / len(top), imgui.get_style().font_scale_dpi
    before = [probability(a.logprob) for a in top]
    highest = max(*before, *left, 1e-9)
    outline, full = imgui.get_color_u32(widgets.color("dim")), imgui.get_color_u32(widgets.color("accent"))
    for index, (was, now) in enumerate(zip(before, left, strict=True)):
        x, end = at.x + index * step, at.x + (index + 1) * step - 3 * scale
        bottom = at.y + height
        paint.add_rect_filled((x, bottom - height * now / highest), (end, bottom), full, 2 * scale)
        paint.add_rect((x, bottom - height * was / highest), (end, bottom), outline, 2 * scale)
    imgui.invisible_button("##curve", (width, height))
    if imgui.is_item_hovered():
        index = min(len(top) - 1, max(0, int((imgui.get_mouse_pos().x - at.x) / step)))
        name = widgets.visible(top[index].text)
        imgui.set_tooltip(f"{name}\n{before[index]:.1%} by the model, {left[index]:.1%} as it is drawn")
    imgui.text_disabled(f"{sum(1 for p in left if p)} of the {len(left)} likeliest words are left")


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
