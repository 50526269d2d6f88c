"""The card in the Model panel that compares the chosen precision with full precision."""

from __future__ import annotations

from imgui_bundle import imgui

from client.amounts import duration
from client.window.events import Action, Do
from client.window.views import widgets
from protocol import messages as m

SMALL_PCT, LARGE_PCT = 0.5, 5.0
"""A change of perplexity below the first is not noticeable, above the second it is."""


def draw(way: m.Precision, *, may: bool) -> list[Action]:
    """Draw the card and its button. `may`: the model is on the server's disk, and this client may use its memory."""
    actions = list[Action]()
    if way.fidelity:
        draw_card(way.fidelity)
    imgui.begin_disabled(not may)
    label = "Measure again" if way.fidelity else f"Measure what {way.precision} costs"
    if imgui.button(f"{label}###Measure", (-1, 0)):
        actions.append(Do("measure"))
    imgui.end_disabled()
    widgets.tip(
        "Compares it with full precision, on the server, on a text that the embedded model was not trained on.\n"
        "It takes some time."
    )
    return actions


def draw_calibration(seconds: int, *, may: bool) -> list[Action]:
    """Draw the button that calibrates the model, with about how long that takes."""
    imgui.begin_disabled(not may)
    clicked = imgui.button(f"Calibrate (about {duration(seconds)})###Calibrate", (-1, 0))
    imgui.end_disabled()
    widgets.tip(
        "Makes it nearly as good as int8, as small and as fast as before: its weights are rounded so that their\n"
        "errors cancel each other out, for texts that the model writes itself. All loads that follow use it."
    )
    return [Do("calibrate")] if clicked else []


def judge(change_pct: float) -> str:
    """Return the color of a change of perplexity."""
    change = abs(change_pct)
    if change < SMALL_PCT:
        return "good"
    return "warn" if change < LARGE_PCT else "bad"


def draw_card(f: m.Fidelity) -> None:
    imgui.begin_group()
    imgui.text_disabled("this precision against full precision")
    lines = (
        ("perplexity", f"{f.perplexity_change_pct:+.2f} %", judge(f.perplexity_change_pct)),
        ("likeliest token", f"the same at {f.top1_agreement:.1%} of places", ""),
        ("divergence", f"{f.kl_mean:.2g} nats, 99 % below {f.kl_p99:.2g}", ""),
        ("greedy text", f"{f.greedy_tokens:.0f} of {f.greedy_limit} tokens the same", ""),
        ("speed", f"{f.tok_s:,.0f} tokens/s", ""),
        ("size", f"{widgets.megabytes(f.disk_bytes)} on disk, {widgets.megabytes(f.memory_bytes)} of memory", ""),
        ("quantised", f"{f.quantised_share:.0%} of the weights{', calibrated' if f.calibrated else ''}", ""),
    )
    for name, value, colour in lines:
        widgets.row(name, value, colour)
    imgui.end_group()
    text = "works held out from the embedded model's training" if f.held_out else "a given text"
    widgets.tip(
        f"Measured over {f.tokens:,} tokens of {text}, with {f.threads} threads; perplexity {f.perplexity:.2f}."
    )
