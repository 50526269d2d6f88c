"""Figures about texts and requests: decoders, texts at once, latency, serving, cost.

Each function takes rows, newest last, and returns a figure, or None where it has nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scripts.bench.figures import percentile
from scripts.investigation.harness import Row, interval
from scripts.report.drawing import (
    BLACK,
    BLUE,
    DASHES,
    ENGINE_COLOURS,
    GREY,
    MARKERS,
    RED,
    SIZES,
    SKY,
    Named,
    legend,
    line,
    named,
    panels,
    plain_numbers,
    put_names,
    spread,
)
from scripts.report.rows import DRAWN, SEARCHED, fine, sizes_of, weights_of


def decoder_time(rows: Sequence[Row]) -> Figure | None:
    """Time of each decoder, greedy decoding of the same model being 1."""
    found = fine(rows, "inference_ms")
    longest = max((int(r.key["new_tokens"]) for r in found), default=0)
    by = {(str(r.key["model"]), str(r.key["decoder"])): r for r in found if r.key["new_tokens"] == longest}
    sizes = [size for size in sizes_of(by.values()) if (size, "greedy") in by]
    names = [*dict.fromkeys(name for _, name in by)][::-1]
    if not sizes:
        return None
    made, (ax,) = panels(
        1, 1, 0.3 * len(names) + 0.6, f"Time of {longest} tokens, greedy decoding of the same model = 1"
    )
    for i, size in enumerate(sizes):
        one = by[size, "greedy"].median("inference_ms")
        colour, marker = SIZES.get(size, (BLACK, "o"))
        for y, name in enumerate(names):
            if row := by.get((size, name)):
                middle, error = spread(row.samples["inference_ms"], 1 / one)
                at = y + 0.16 * ((len(sizes) - 1) / 2 - i)
                ax.errorbar(
                    middle,
                    at,
                    xerr=error,
                    color=colour,
                    marker=marker,
                    linestyle="",
                    elinewidth=1,
                    capsize=2,
                    label=size if y == 0 else "",
                )
    plain_numbers(ax, "x")
    ax.axvline(1, color=GREY, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("times as long as greedy decoding")
    legend(made, named([ax]), len(sizes))
    return made


def looks(decoder: str) -> tuple[str, str]:
    """Return the colour and the marker of a decoder: drawing, searching, or always taking the likeliest token."""
    if decoder in DRAWN:
        return BLUE, "o"
    return (RED, "^") if decoder in SEARCHED else (BLACK, "s")


def decoder_text(rows: Sequence[Row]) -> Figure | None:
    """Time of decoders against the quality of their texts, where the weights are trained."""
    found = fine(rows, "inference_ms", "repetition", "perplexity")
    longest = max((int(r.key["new_tokens"]) for r in found), default=0)
    found = [r for r in found if r.key["new_tokens"] == longest]
    sizes = sizes_of(found)
    if not sizes:
        return None
    made, axes = panels(2 * len(sizes), 2, 3.7, f"What decoders take, and what they write ({longest} tokens)")
    everything: list[tuple[Axes, list[Named]]] = []
    for i, (size, (name, label)) in enumerate(
        product(
            sizes, (("repetition", "repeated 4-grams, %"), ("perplexity", "perplexity of the text under the model"))
        )
    ):
        ax = axes[i]
        points: list[Named] = []
        for row in {str(r.key["decoder"]): r for r in found if r.key["model"] == size}.values():
            decoder = str(row.key["decoder"])
            x, across = spread(row.samples["inference_ms"])
            y, up = spread(row.samples[name], 100 if name == "repetition" else 1)
            colour, marker = looks(decoder)
            ax.errorbar(
                x, y, xerr=across, yerr=up, color=colour, marker=marker, markersize=6, elinewidth=0.8, linestyle=""
            )
            points.append(
                Named(decoder, colour, x, y, *interval(row.samples["inference_ms"]), y - up[0][0], y + up[1][0])
            )
        plain_numbers(ax, "x")
        if name == "perplexity":
            plain_numbers(ax, "y")
        else:
            ax.set_ylim(-3)
        ax.margins(0.12)
        ax.set_title(weights_of(size, rows))
        ax.set_xlabel(f"ms for {longest} tokens")
        ax.set_ylabel(label)
        everything.append((ax, points))
    kinds = (
        ("always the likeliest", BLACK, "s"),
        ("draws at random", BLUE, "o"),
        ("searches among several texts", RED, "^"),
    )
    legend(made, [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, c, m in kinds], 3)
    made.draw_without_rendering()  # the axes are where they will be
    for ax, points in everything:
        put_names(ax, points)
    return made


def together(rows: Sequence[Row]) -> Figure | None:
    """Tokens/s of all texts against how many are written at once."""
    found = fine(rows, "tok_s")
    sizes = sizes_of(found)
    if not sizes:
        return None
    made, axes = panels(len(sizes), 2, 2.6, "Tokens/s of all texts together, with sampling")
    for ax, size in zip(axes, sizes, strict=True):
        variants = dict.fromkeys((str(r.key["engine"]), str(r.key["precision"])) for r in found)
        for engine, precision in variants:
            points = {
                float(r.key["outputs"]): r.samples["tok_s"]
                for r in found
                if (r.key["model"], r.key["engine"], r.key["precision"]) == (size, engine, precision)
            }
            line(
                ax,
                [*points.items()],
                ENGINE_COLOURS.get(engine, BLACK),
                label=f"{engine} {precision}",
                dashes=DASHES.get(precision, "-"),
                marker=MARKERS.get(engine, "o"),
            )
        plain_numbers(ax, "x", sorted({int(r.key["outputs"]) for r in found if r.key["model"] == size}))
        plain_numbers(ax, "y")
        ax.set_title(weights_of(size, rows))
        ax.set_xlabel("texts at once")
        ax.set_ylabel("tokens/s")
    legend(made, named(axes), 5)
    return made


def latency(rows: Sequence[Row]) -> Figure | None:
    """Spread of the times of single requests."""
    found = {(str(r.key["model"]), int(r.key["new_tokens"])): r for r in fine(rows, "inference_ms")}
    if not found:
        return None
    sizes = sizes_of(found.values())
    lengths = sorted({length for _, length in found})
    made, axes = panels(len(sizes) * len(lengths), len(sizes), 1.9, "One prompt, many seeds: how long a text takes")
    for ax, (length, size) in zip(axes, product(lengths, sizes), strict=True):
        row = found.get((size, length))
        if row is None:
            ax.set_axis_off()
            continue
        values = row.samples["inference_ms"]
        end = percentile(values, 0.99) * 1.05
        ax.hist([min(v, end) for v in values], bins=min(40, max(5, len(values) // 4)), color=SKY)
        for value, colour, dashes in ((row.median("inference_ms"), BLACK, "-"), (percentile(values, 0.95), RED, "--")):
            ax.axvline(value, color=colour, linestyle=dashes, linewidth=1.2)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_title(f"{size}, {length} tokens", fontsize=8.5)
        ax.set_xlabel("ms")
        ax.set_ylabel("requests" if size == sizes[0] else "")
        ax.grid(visible=False)
    lines = [
        Line2D([], [], color=BLACK, label="median"),
        Line2D([], [], color=RED, linestyle="--", label="95th percentile"),
    ]
    note = Patch(color=SKY, label="requests (the slowest 1 % are in the last bar)")
    legend(made, [*lines, note], 3)
    return made


def served(rows: Sequence[Row], sweep: str) -> Figure | None:
    """Throughput, and the time to the first token, against clients or against the rate of arrival."""
    found = fine([r for r in rows if r.key["sweep"] == sweep], "tok_s", "first_token_p50_ms", "first_token_p95_ms")
    by = "clients" if sweep == "clients" else "rate"
    title = (
        "Many clients, each with one request after the other"
        if sweep == "clients"
        else "Requests that arrive at random"
    )
    asked = "clients" if sweep == "clients" else "requests/s that arrive"
    if not found:
        return None
    made, (left, right) = panels(2, 2, 3.3, title)
    for size in sizes_of(found):
        colour, marker = SIZES.get(size, (BLACK, "o"))
        own = [r for r in found if r.key["model"] == size]
        line(left, [(float(r.key[by]), r.samples["tok_s"]) for r in own], colour, label=size, marker=marker)
        line(
            right,
            [(float(r.key[by]), r.samples["first_token_p50_ms"]) for r in own],
            colour,
            label=f"{size}, median",
            marker=marker,
        )
        line(
            right,
            [(float(r.key[by]), r.samples["first_token_p95_ms"]) for r in own],
            colour,
            label="95th percentile",
            marker=marker,
            dashes="--",
        )
    for ax, label in ((left, "tokens/s of all"), (right, "ms to the first token")):
        plain_numbers(ax, "x", sorted({int(r.key["clients"]) for r in found}) if sweep == "clients" else ())
        plain_numbers(ax, "y")
        ax.set_xlabel(asked)
        ax.set_title(label)
    dashes: dict[str, Literal["-", "--"]] = {"median": "-", "95th percentile": "--"}
    kinds = [Line2D([], [], color=BLACK, linestyle=dash, label=f"first token, {name}") for name, dash in dashes.items()]
    legend(made, [*named([left]), *kinds], 7)
    return made


def clients(rows: Sequence[Row]) -> Figure | None:
    return served(rows, "clients")


def rate(rows: Sequence[Row]) -> Figure | None:
    return served(rows, "rate")


def cost(rows: Sequence[Row]) -> Figure | None:
    """Growth of the cost of one request."""
    sweeps = (
        ("prompt", "prompt_tokens", "prefill_ms", "tokens of the prompt", "prefill, ms"),
        ("new", "new_tokens", "whole_ms", "new tokens", "whole time, ms"),
        ("batch", "outputs", "tok_s", "texts after one prompt", "tokens/s of all"),
    )
    shown = [sweep for sweep in sweeps if fine([r for r in rows if r.key["sweep"] == sweep[0]], sweep[2])]
    if not shown:
        return None
    made, axes = panels(len(shown), 3, 3.0, "What one request costs")
    for ax, (sweep, by, name, across, up) in zip(axes, shown, strict=True):
        own = fine([r for r in rows if r.key["sweep"] == sweep], name)
        for size in sizes_of(own):
            colour, marker = SIZES.get(size, (BLACK, "o"))
            line(
                ax,
                [(float(r.key[by]), r.samples[name]) for r in own if r.key["model"] == size],
                colour,
                label=size,
                marker=marker,
            )
        plain_numbers(ax, "x", sorted({int(r.key[by]) for r in own}))
        plain_numbers(ax, "y")
        ax.set_xlabel(across)
        ax.set_title(up)
    legend(made, named(axes), 6)
    return made
