"""Fonts, sizes, scale, theme: applied at once and saved."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.events import Action, Enter, Prefer
from client.window.fonts import BUILT_IN
from client.window.state import AppState
from client.window.views import widgets

MAX_SHOWN = 200
OWN = {"font_size", "scale"}
"""Sizes of these sliders themselves: applied when they are let go, or they would run away under the mouse."""


def draw(state: AppState) -> list[Action]:
    preferences, actions = state.preferences, list[Action]()
    if imgui.is_window_appearing():  # it may have been closed under a drag
        actions.append(Enter("drafts", "sizes", {}))
    imgui.text_disabled("Colours")
    for theme in ("dark", "light"):
        if imgui.radio_button(theme, preferences.theme == theme):
            actions.append(Prefer("theme", theme))
        imgui.same_line()
    imgui.new_line()
    imgui.separator()
    actions += widgets.field("##find font", "find a font", "drafts", "font", state.drafts.font)
    for label, name in (("Font", "font"), ("Page font", "page_font")):
        actions += draw_font(state, label, name)
    for label, name, low, high in (
        ("Size", "font_size", 8.0, 60.0),
        ("Page size", "page_font_size", 8.0, 60.0),
        ("Scale", "scale", 0.5, 4.0),
    ):
        value = state.drafts.sizes.get(name, getattr(preferences, name))
        widgets.name_and_value(label, f"{value:g}", "dim")
        changed, value = widgets.thin_slider(
            f"##{label}", value, low, high, whole=False, flags=imgui.SliderFlags_.always_clamp
        )
        value = round(value * 2) / 2 if high > 10 else round(value, 1)
        if changed:
            actions.append(Enter("drafts", "sizes", {name: value}) if name in OWN else Prefer(name, value))
        if imgui.is_item_deactivated() and name in state.drafts.sizes:
            actions += [Prefer(name, value), Enter("drafts", "sizes", {})]
    widgets.tip("Makes everything larger or smaller, on top of the screen's own scale.")
    changed, value = imgui.checkbox("Enter generates", preferences.enter_generates)
    widgets.tip("Enter generates and Ctrl+Enter makes a new line, instead of the other way round.")
    if changed:
        actions.append(Prefer("enter_generates", value))
    return actions


def draw_font(state: AppState, label: str, name: str) -> list[Action]:
    actions, path = list[Action](), getattr(state.preferences, name)
    now = BUILT_IN.get(path) or next((font for font, where in state.fonts if where == path), path)
    if imgui.begin_combo(label, now):
        for own, title in BUILT_IN.items():
            if imgui.selectable(title, own == path)[0]:
                actions.append(Prefer(name, own))
        found = [font for font in state.fonts if state.drafts.font.casefold() in font[0].casefold()]
        for font, where in found[:MAX_SHOWN]:
            if imgui.selectable(widgets.item(font), where == path)[0]:
                actions.append(Prefer(name, where))
        if len(found) > MAX_SHOWN:
            imgui.text_disabled(f"and {len(found) - MAX_SHOWN} more; find them above")
        imgui.end_combo()
    return actions
