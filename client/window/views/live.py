"""What a generation does while it streams: how far it is, how fast, and a thin line of progress."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.state import AppState
from client.window.views import widgets
from client.window.writing import Generating

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


def share(state: AppState) -> float | None:
    """Return how much is done of what the page waits for; None: nothing is under way."""
    going, doing = state.page.generating, state.models.loading
    if going:
        return going.tokens / max(1, going.asked)
    if state.page.wanted and doing:
        return doing.done / doing.total if doing.total > 1 else 0.0
    return None


def height() -> float:
    """Return the room that the line takes."""
    return LINE * imgui.get_style().font_scale_dpi + imgui.get_style().item_spacing.y


def line(done: float | None) -> None:
    """Draw the line over the whole width, from where the cursor is; None: only its room."""
    at, width = imgui.get_cursor_screen_pos(), imgui.get_content_region_avail().x
    thick = LINE * imgui.get_style().font_scale_dpi
    imgui.dummy((width, thick))
    if done is None:
        return
    paint = imgui.get_window_draw_list()
    paint.add_rect_filled(at, (at.x + width, at.y + thick), imgui.get_color_u32(widgets.color("line")))
    paint.add_rect_filled(
        at, (at.x + width * min(1.0, done), at.y + thick), imgui.get_color_u32(widgets.color("accent"))
    )
