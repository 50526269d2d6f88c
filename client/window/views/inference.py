"""Times of the last generation, as the server measured them; plots of the session's speed."""

from __future__ import annotations

import numpy as np
from imgui_bundle import ImVec2, imgui, implot
from numpy.typing import NDArray

from client.window.events import Action
from client.window.state import AppState
from client.window.views import widgets

PLOT_HEIGHT = 11.0
"""Height of a plot, in font sizes."""


def draw(state: AppState) -> list[Action]:
    ledgers, result = state.ledgers, state.ledgers.last
    if result is None:
        imgui.text_wrapped("After a generation the inference time that the server measured is shown here.")
        return []
    ledger = result.ledger
    imgui.push_font(None, imgui.get_font_size() * 2.2)
    imgui.text(f"{ledger.inference_ms:,.0f} ms")
    imgui.pop_font()
    imgui.text_disabled("inference, measured by the server")
    widgets.row("model", f"{result.model}/{result.engine}/{result.precision}")
    widgets.row("speed", f"{ledger.tokens_per_second:,.1f} tokens/s")
    widgets.row("first token", f"{ledger.first_token_ms:,.1f} ms")
    widgets.row(
        "prefill",
        f"{ledger.prefill_ms:,.1f} ms for {ledger.prompt_tokens} tokens, {ledger.reused_tokens} of them reused",
    )
    widgets.row("decode", f"{ledger.decode_ms:,.1f} ms for {ledger.new_tokens} tokens")
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
    # [3, generations] each, copied so that a row is contiguous
    curves = {name: np.array(points).T.copy() for name, points in ledgers.series.items()}
    for title, index in (("tokens/s", 1), ("first token, ms", 2)):
        draw_plot(curves, title, index)
    return []


def draw_plot(curves: dict[str, NDArray[np.float64]], title: str, index: int) -> None:
    if implot.begin_plot(
        f"{title}##plot", ImVec2(-1, imgui.get_font_size() * PLOT_HEIGHT), implot.Flags_.no_mouse_text
    ):
        implot.setup_axes("generation", "", implot.AxisFlags_.auto_fit, implot.AxisFlags_.auto_fit)
        implot.setup_legend(implot.Location_.south, implot.LegendFlags_.outside)
        dots = implot.Spec()
        dots.marker = implot.Marker_.circle
        for name, values in curves.items():
            implot.plot_line(name, values[0], values[index], dots)
        implot.end_plot()
