"""Times of the last generation, as the server measured them: three figures, a bar, the rest under Details; plots of the
session's speed.
"""

from __future__ import annotations

import math

import numpy as np
from imgui_bundle import ImVec2, imgui, implot
from numpy.typing import NDArray

from client import replicas, threads
from client.window.events import Action
from client.window.results import Ledgers
from client.window.speed import tokens_per_second
from client.window.state import AppState
from client.window.views import live, widgets
from protocol import messages as m
from protocol.ledger import Ledger

PLOT_HEIGHT = 11.0
"""Height of a plot, in font sizes."""
FIGURE = 1.9
"""Size of a large figure, in font sizes."""


def draw(state: AppState) -> list[Action]:
    ledgers, result = state.ledgers, state.ledgers.last
    if state.page.generating:
        draw_figures(
            [
                (f"{state.page.generating.tokens:,}", f"of {state.page.generating.asked:,} tokens"),
                (f"{state.page.generating.rate:,.0f}", "tokens/s so far"),
            ]
        )
        live.line(live.share(state))
        if state.page.generating.stopping or not state.page.generating.tokens:
            imgui.text_disabled(live.words(state.page.generating))
        return []
    if result is None:
        imgui.text_wrapped("After a generation the inference time that the server measured is shown here.")
        return []
    ledger, many = result.ledger, 1 + len(result.others)
    draw_figures(
        [
            (f"{ledger.inference_ms:,.0f} ms", "inference, measured by the server"),
            (f"{tokens_per_second(result):,.0f}", f"tokens/s of {many} texts" if many > 1 else "tokens/s"),
            (f"{ledger.first_token_ms:,.1f} ms", "to the first token"),
        ]
    )
    draw_bar(ledger)
    if fewer := threads.fewer(result):
        widgets.wrapped(f"{fewer}: another program is at work", "warn")
        widgets.tip("The engine takes as many threads as are fastest beside what else the server's machine has to do.")
    if widgets.section("Details"):
        draw_details(ledgers, result)
    # [3, generations] each, copied so that a row is contiguous
    curves = {name: np.array(points).T.copy() for name, points in ledgers.series.items() if len(points) > 1}
    if curves:
        for title, index in (("tokens/s", 1), ("first token, ms", 2)):
            draw_plot(curves, title, index)
    return []


def draw_figures(figures: list[tuple[str, str]]) -> None:
    """Draw large figures with what they are, side by side where there is room, else below each other."""
    size = imgui.get_font_size()
    columns = max(1, min(len(figures), int(imgui.get_content_region_avail().x / (size * 8))))
    if not imgui.begin_table("figures", columns, imgui.TableFlags_.sizing_stretch_same):
        return
    for value, caption in figures:
        imgui.table_next_column()
        widgets.large(value, FIGURE)
        imgui.push_text_wrap_pos(0)
        imgui.text_disabled(caption)
        imgui.pop_text_wrap_pos()
    imgui.end_table()


def draw_bar(ledger: Ledger) -> None:
    """Draw prefill and decode as parts of one bar, with their times where they fit in."""
    parts = (
        ("prefill", ledger.prefill_ms, "chosen_active", "text"),
        ("decode", ledger.decode_ms, "accent", "on_accent"),
    )
    known = [(name, took, back, ink) for name, took, back, ink in parts if math.isfinite(took) and took > 0]
    whole = sum(took for _, took, _, _ in known)
    if not whole:
        return
    at, width = imgui.get_cursor_screen_pos(), imgui.get_content_region_avail().x
    height, paint = imgui.get_frame_height(), imgui.get_window_draw_list()
    x, gap = at.x, imgui.get_style().font_scale_dpi
    for name, took, back, ink in known:
        right = x + max(2 * gap, width * took / whole)
        text = f"{name} {took:,.0f} ms"
        paint.add_rect_filled(
            (x, at.y),
            (min(right - gap, at.x + width), at.y + height),
            imgui.get_color_u32(widgets.color(back)),
            3 * gap,
        )
        if imgui.calc_text_size(text).x < right - x - 4 * gap:
            place = (x + 4 * gap, at.y + imgui.get_style().frame_padding.y)
            paint.add_text(place, imgui.get_color_u32(widgets.color(ink)), text)
        x = right
    imgui.dummy((width, height))
    widgets.tip("\n".join(f"{name} {took:,.1f} ms, {took / whole:.0%}" for name, took, _, _ in known))


def draw_details(ledgers: Ledgers, result: m.Generated) -> None:
    ledger = result.ledger
    widgets.row("model", replicas.name(result))
    of_one = f", {ledger.tokens_per_second:,.1f} of the first text" if result.others else ""
    widgets.row("speed", f"{tokens_per_second(result):,.1f} tokens/s{of_one}")
    widgets.row(
        "prefill",
        f"{ledger.prefill_ms:,.1f} ms for {ledger.prompt_tokens} tokens, {ledger.reused_tokens} of them reused",
    )
    widgets.row("decode", f"{ledger.decode_ms:,.1f} ms for {ledger.new_tokens} tokens")
    if result.cache:
        widgets.row("KV cache", result.cache)
    if result.instruction_set:
        widgets.row("instructions", result.instruction_set)
    if result.threads_used > 0:
        widgets.row("threads", f"{result.threads_used:.1f} on average, of {result.threads}")
    widgets.row("tokenise", f"{ledger.tokenise_ms:,.1f} ms")
    widgets.row("queue", f"{ledger.queue_ms:,.1f} ms")
    widgets.row("batch", f"{ledger.mean_batch:.1f} sequences on average")
    if ledger.guessed_tokens > 0:
        widgets.row("guessed", f"{ledger.accepted_tokens} of {ledger.guessed_tokens} tokens guessed ahead were right")
    network = max(0.0, ledgers.whole_ms - ledger.queue_ms - ledger.tokenise_ms - ledger.inference_ms)
    widgets.row("network", f"{network:,.1f} ms of {ledgers.whole_ms:,.0f} ms in all")
    widgets.row("ended by", f"{result.finish_reason}, seed {result.settings.get('seed')}")
    if result.prompt_truncated:
        widgets.row("cut", f"{result.prompt_truncated} tokens from the beginning")


def draw_plot(curves: dict[str, NDArray[np.float64]], title: str, index: int) -> None:
    """Draw one figure of the session's generations: whole numbers from left to right, from 0 upwards."""
    if implot.begin_plot(
        f"{title}##plot", ImVec2(-1, imgui.get_font_size() * PLOT_HEIGHT), implot.Flags_.no_mouse_text
    ):
        first = min(values[0][0] for values in curves.values())
        last = max(values[0][-1] for values in curves.values())
        finite = [values[index][np.isfinite(values[index])] for values in curves.values()]
        high = max((float(some.max()) for some in finite if len(some)), default=1.0)
        implot.setup_axes("generation", "", 0, implot.AxisFlags_.none)
        implot.setup_axis_limits(implot.ImAxis_.x1, first - 0.5, last + 0.5, implot.Cond_.always)
        implot.setup_axis_limits(implot.ImAxis_.y1, 0, high * 1.1 or 1.0, implot.Cond_.always)
        implot.setup_axis_format(implot.ImAxis_.x1, "%.0f")
        implot.setup_axis_ticks(implot.ImAxis_.x1, ticks(first, last))
        implot.setup_axis_format(implot.ImAxis_.y1, "%.0f" if high >= 10 else "%.1f")
        implot.setup_legend(implot.Location_.south, implot.LegendFlags_.outside)
        dots = implot.Spec()
        dots.marker = implot.Marker_.circle
        for name, values in curves.items():
            implot.plot_line(name, values[0], values[index], dots)
        implot.end_plot()


def ticks(first: float, last: float, most: int = 6) -> list[float]:
    """Return whole numbers from the first to the last, `most` or fewer."""
    step = max(1, math.ceil((last - first + 1) / most))
    return [float(number) for number in range(int(first), int(last) + 1, step)]
