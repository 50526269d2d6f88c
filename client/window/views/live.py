"""What a generation does while it streams: how far it is, how fast, and a thin line of progress."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.state import Generating
from client.window.views import widgets

LINE = 2.0
"""Thickness of the line, at scale 1."""


def words(going: Generating) -> str:
    """Return how far a generation is, in words."""
    if going.stopping:
        return "stopping"
    if going.place:
        return f"waiting, place {going.place}"
    if not going.tokens:
        return "reading the text"
    rate = f" · {going.rate:,.0f} tokens/s" if going.rate else ""
    return f"{going.tokens:,} of {going.asked:,}{rate}"


def line(going: Generating | None) -> None:
    """Draw the line over the whole width, from where the cursor is."""
    at, width = imgui.get_cursor_screen_pos(), imgui.get_content_region_avail().x
    height = LINE * imgui.get_style().font_scale_dpi
    imgui.dummy((width, height))
    if going is None:
        return
    paint, share = imgui.get_window_draw_list(), min(1.0, going.tokens / max(1, going.asked))
    paint.add_rect_filled(at, (at.x + width, at.y + height), imgui.get_color_u32(widgets.color("line")))
    paint.add_rect_filled(at, (at.x + width * share, at.y + height), imgui.get_color_u32(widgets.color("accent")))
