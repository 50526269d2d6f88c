"""Fonts, theme and scale of the window: applies the preferences to Dear ImGui."""

from __future__ import annotations

from pathlib import Path

import imgui_bundle
from imgui_bundle import hello_imgui, imgui

from client.window.state import Preferences

OWN = Path(imgui_bundle.__file__).parent / "assets" / "fonts" / "DroidSans.ttf"
FALLBACKS = (
    "DejaVuSans",
    "DroidSansFallbackFull",
    "NotoSansCJK-Regular",
    "Symbola_hint",
    "Symbola",
    "NotoEmoji-Regular",
    "seguiemj",
    "msyh",
    "Arial Unicode",
)
"""Fonts from which glyphs are taken that the chosen one does not have, as far as they are installed."""


def load(preferences: Preferences, fonts: list[tuple[str, str]], before: list[imgui.ImFont]) -> list[imgui.ImFont]:
    """Load the panels' and the page's font to replace those before. `fonts`: (name, path) of the system's."""
    io = imgui.get_io()
    known = dict(fonts)
    fallbacks = [known[name] for name in FALLBACKS if name in known]
    loaded = [_load(path, fallbacks) for path in (preferences.font, preferences.page_font)]
    io.font_default = loaded[0]
    for font in before:
        io.fonts.remove_font(font)
    return loaded


def set_style(preferences: Preferences, screen: float) -> None:
    """Set theme, scale and size. `screen`: the screen's own scale."""
    style = imgui.get_style()
    fresh = imgui.Style()
    hello_imgui.apply_theme(
        hello_imgui.ImGuiTheme_.light_rounded
        if preferences.theme == "light"
        else hello_imgui.ImGuiTheme_.darcula_darker
    )
    for name in ("window_padding", "frame_padding", "item_spacing", "item_inner_spacing"):
        setattr(style, name, getattr(fresh, name))
    style.window_rounding = style.frame_rounding = style.tab_rounding = style.scrollbar_rounding = 4.0
    style.scrollbar_size = fresh.scrollbar_size
    style.scale_all_sizes(preferences.scale * screen)
    style.font_scale_dpi = preferences.scale * screen
    style.font_size_base = preferences.font_size


def _load(path: str, fallbacks: list[str]) -> imgui.ImFont:
    atlas = imgui.get_io().fonts
    chosen = path if path and Path(path).is_file() else str(OWN)
    font = atlas.add_font_from_file_ttf(chosen, 0.0)
    merged = imgui.ImFontConfig()
    merged.merge_mode = True
    for fallback in fallbacks:
        if fallback != chosen:
            atlas.add_font_from_file_ttf(fallback, 0.0, merged)
    return font
