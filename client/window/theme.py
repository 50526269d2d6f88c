"""Two themes of the window's own: surfaces, inks, one accent colour; and how much room things have.

Surfaces are opaque, so that what lies below a menu or a dialog does not shine through, and each ink can be read on each
surface that it stands on: tests/client/window/test_theme.py computes the contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from imgui_bundle import ImVec2, ImVec4, imgui, implot

Name: TypeAlias = Literal["dark", "light"]


@dataclass(frozen=True)
class Palette:
    """Colours as #rrggbb."""

    # Surfaces, from the back to the front
    base: str
    page: str
    raised: str
    """Menus, dialogs, toasts."""
    field: str
    field_hovered: str
    field_active: str
    button: str
    button_hovered: str
    button_active: str
    chosen: str
    """The row of a list that is chosen; also a menu's open entry."""
    chosen_hovered: str
    chosen_active: str
    selection: str
    """Selected text."""
    accent_hovered: str
    accent_active: str
    # Lines
    border: str
    line: str
    """Separates parts of one panel; weaker than a border."""
    grab: str
    # Inks
    text: str
    dim: str
    model: str
    """What a model wrote."""
    accent: str
    """The one colour: ink of links and marks, surface of the one button that matters most."""
    on_accent: str
    good: str
    warn: str
    bad: str


DARK = Palette(
    base="#16181d",
    page="#1b1d23",
    raised="#22252c",
    field="#262a32",
    field_hovered="#2c313a",
    field_active="#313641",
    button="#2b2f38",
    button_hovered="#363b47",
    button_active="#414756",
    chosen="#2b3450",
    chosen_hovered="#333d5c",
    chosen_active="#3a4568",
    selection="#34447a",
    accent_hovered="#a5bdff",
    accent_active="#7896f0",
    border="#4b5261",
    line="#2c3039",
    grab="#515866",
    text="#e7e9ee",
    dim="#a6aebb",
    model="#b7c7ff",
    accent="#8fabff",
    on_accent="#0e1424",
    good="#74d296",
    warn="#f0b860",
    bad="#ff958c",
)
LIGHT = Palette(
    base="#f2f3f6",
    page="#fdfdfc",
    raised="#ffffff",
    field="#ffffff",
    field_hovered="#f6f7fb",
    field_active="#eef1fa",
    button="#e4e7ed",
    button_hovered="#d9dde6",
    button_active="#ced3de",
    chosen="#dde4fb",
    chosen_hovered="#d2dbf9",
    chosen_active="#c6d1f6",
    selection="#c9d5fb",
    accent_hovered="#2c46b8",
    accent_active="#253b9e",
    border="#b4bbc8",
    line="#dadee5",
    grab="#a9b0bd",
    text="#1a1d23",
    dim="#4f5664",
    model="#2a44b0",
    accent="#3350c9",
    on_accent="#ffffff",
    good="#176030",
    warn="#744a00",
    bad="#a51d17",
)
MARKS = {"found": ("warn", 0.16), "found now": ("warn", 0.3), "differs": ("warn", 0.3), "unlikely": ("bad", 0.3)}
"""What is laid behind words of a text -> its colour and opacity, with which they can still be read."""
PALETTES: dict[Name, Palette] = {"dark": DARK, "light": LIGHT}


def palette() -> Palette:
    """Return the colours of the theme that Dear ImGui shows now."""
    return LIGHT if imgui.get_style().color_(imgui.Col_.window_bg).x > 0.5 else DARK


@lru_cache(maxsize=512)
def rgba(colour: str, alpha: float = 1.0) -> ImVec4:
    """Return a colour as Dear ImGui takes it; a frame asks for some forty."""
    part = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return ImVec4(part[0], part[1], part[2], alpha)


def mark(name: str, share: float = 1.0) -> ImVec4:
    """Return the colour of one of MARKS, paler where the share is less than 1."""
    colour, alpha = MARKS[name]
    return rgba(getattr(palette(), colour), alpha * share)


def apply(name: Name, scale: float, font_size: float) -> None:
    """Give Dear ImGui the colours of a theme, and sizes at this scale."""
    shown, c = PALETTES[name], imgui.Col_
    clear = rgba(shown.base, 0.0)
    surfaces = {
        c.window_bg: shown.base, c.child_bg: None, c.popup_bg: shown.raised, c.menu_bar_bg: shown.base,
        c.title_bg: shown.base, c.title_bg_active: shown.base, c.title_bg_collapsed: shown.base,
        c.frame_bg: shown.field, c.frame_bg_hovered: shown.field_hovered, c.frame_bg_active: shown.field_active,
        c.button: shown.button, c.button_hovered: shown.button_hovered, c.button_active: shown.button_active,
        c.header: shown.chosen, c.header_hovered: shown.chosen_hovered, c.header_active: shown.chosen_active,
        c.tab: shown.base, c.tab_hovered: shown.button_hovered, c.tab_selected: shown.button,
        c.tab_dimmed: shown.base, c.tab_dimmed_selected: shown.button, c.docking_empty_bg: shown.base,
        c.table_header_bg: shown.button, c.table_row_bg: None, c.table_row_bg_alt: None,
        c.text_selected_bg: shown.selection, c.scrollbar_bg: None, c.checkbox_selected_bg: shown.field,
        c.drag_drop_target_bg: None,
    }  # fmt: skip
    lines = {
        c.border: shown.border, c.border_shadow: None, c.separator: shown.line, c.separator_hovered: shown.accent,
        c.separator_active: shown.accent, c.table_border_strong: shown.border, c.table_border_light: shown.line,
        c.tree_lines: shown.line, c.tab_selected_overline: shown.accent, c.tab_dimmed_selected_overline: shown.grab,
        c.scrollbar_grab: shown.grab, c.scrollbar_grab_hovered: shown.dim, c.scrollbar_grab_active: shown.accent,
        c.slider_grab: shown.accent, c.slider_grab_active: shown.accent_active, c.resize_grip: None,
        c.resize_grip_hovered: shown.accent, c.resize_grip_active: shown.accent, c.check_mark: shown.accent,
        c.docking_preview: shown.accent, c.drag_drop_target: shown.accent, c.nav_cursor: shown.accent,
        c.nav_windowing_highlight: shown.accent, c.plot_lines: shown.accent, c.plot_lines_hovered: shown.accent_hovered,
        c.plot_histogram: shown.accent, c.plot_histogram_hovered: shown.accent_hovered,
    }  # fmt: skip
    inks = {
        c.text: shown.text, c.text_disabled: shown.dim, c.text_link: shown.accent, c.input_text_cursor: shown.text,
        c.unsaved_marker: shown.text,
    }  # fmt: skip
    style = imgui.get_style()
    for which, colour in (surfaces | lines | inks).items():
        style.set_color_(which, clear if colour is None else rgba(colour))
    for which in (c.modal_window_dim_bg, c.nav_windowing_dim_bg):
        style.set_color_(which, ImVec4(0, 0, 0, 0.55))
    style.set_color_(c.docking_preview, rgba(shown.accent, 0.4))
    plots, p = implot.get_style(), implot.Col_
    plots.set_color_(p.frame_bg, clear)
    plots.set_color_(p.plot_bg, clear)
    plots.set_color_(p.plot_border, rgba(shown.border))
    plots.set_color_(p.legend_bg, rgba(shown.raised))
    plots.set_color_(p.legend_border, rgba(shown.border))
    for kind in (p.axis_text, p.legend_text, p.title_text, p.inlay_text):
        plots.set_color_(kind, rgba(shown.text if kind == p.title_text else shown.dim))
    plots.set_color_(p.axis_grid, rgba(shown.line))
    _sizes(style)
    style.scale_all_sizes(scale)
    style.font_scale_dpi = scale
    style.font_size_base = font_size


def _sizes(style: imgui.Style) -> None:
    """Set every size to what it is at scale 1."""
    fresh = imgui.Style()
    for name in dir(fresh):
        value = getattr(fresh, name)
        if isinstance(value, float | ImVec2) and not name.startswith(("_", "font_")):
            setattr(style, name, value)
    style.window_padding, style.frame_padding = ImVec2(12, 10), ImVec2(9, 5)
    style.cell_padding = ImVec2(6, 4)
    style.item_spacing, style.item_inner_spacing = ImVec2(8, 7), ImVec2(6, 5)
    style.window_rounding = style.popup_rounding = 8.0
    style.child_rounding = style.frame_rounding = style.tab_rounding = 6.0
    style.scrollbar_rounding = style.grab_rounding = 6.0
    style.scrollbar_size = style.grab_min_size = 12.0
    style.indent_spacing = 18.0
    style.window_border_size = style.popup_border_size = style.frame_border_size = 1.0
    style.tab_bar_border_size = style.docking_separator_size = 1.0
    style.tab_border_size = 0.0
    style.tab_bar_overline_size = 2.0
    style.disabled_alpha = 0.66
    style.window_menu_button_position = imgui.Dir.none
    style.docking_node_has_close_button = False
