"""Figures about methods: speed, memory, threads, and the operators of ONNX graphs.

Each function takes rows, newest last, and returns a figure, or None where it has nothing to show.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scripts.investigation.harness import Row, interval
from scripts.investigation.one_daemon import figure as digits
from scripts.report.drawing import (
    BLACK,
    BLUE,
    ENGINE_COLOURS,
    GREEN,
    MARKERS,
    ON_WHITE,
    ORANGE,
    PRECISION_COLOURS,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    legend,
    line,
    named,
    panels,
    plain_numbers,
    spread,
)
from scripts.report.rows import fine, is_plain, limits, precision_of, sizes_of, weights_of

Plot = Callable[[Sequence[Row]], Figure | None]
OPERATORS = 8
"""Operators that get a colour of their own."""


def speed(rows: Sequence[Row], read_gb_s: float, title: str, columns: int = 2) -> Figure | None:
    """Tokens/s of each method, a panel for each size: the fastest above, and what the memory's bandwidth allows."""
    there = {(str(r.key["model"]), str(r.key["method"])): r for r in rows if is_plain(str(r.key["method"]))}
    measured = {key: row for key, row in there.items() if fine([row], "tok_s")}
    sizes = sizes_of(measured.values())
    if not sizes:
        return None
    best = {size: max(row.median("tok_s") for (model, _), row in measured.items() if model == size) for size in sizes}

    def rank(method: str) -> float:
        return statistics.mean(
            math.log(row.median("tok_s") / best[size]) for (size, name), row in measured.items() if name == method
        )

    names = sorted(dict.fromkeys(name for _, name in measured), key=rank)
    made, axes = panels(len(sizes), columns, 0.21 * len(names) + 0.75, title, sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        for y, name in enumerate(names):
            row = measured.get((size, name))
            if row is None:
                ax.text(0, y, " not measured", va="center", fontsize=7, color="#707070", bbox=ON_WHITE)
                continue
            middle, error = spread(row.samples["tok_s"])
            ax.barh(
                y,
                middle,
                0.72,
                xerr=error,
                color=PRECISION_COLOURS[precision_of(name)],
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": BLACK},
            )
            ax.annotate(
                digits(middle),
                (middle + error[1][0], y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                bbox=ON_WHITE,
            )
        ax.set_xlim(
            0, 1.13 * max(interval(row.samples["tok_s"])[1] for (model, _), row in measured.items() if model == size)
        )
        for precision, most in limits(size, read_gb_s).items():
            if any(precision_of(name) == precision for name in names) and most < ax.get_xlim()[1] * 1.6:
                ax.set_xlim(0, max(ax.get_xlim()[1], most * 1.06))
                ax.axvline(most, color=PRECISION_COLOURS[precision], linestyle=(0, (4, 2)), linewidth=1.4)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.set_title(weights_of(size, rows))
        ax.set_xlabel("tokens/s of decoding")
        ax.grid(visible=False, axis="y")
    colours = [
        Patch(color=colour, label=name)
        for name, colour in PRECISION_COLOURS.items()
        if any(precision_of(n) == name for n in names)
    ]
    limit = Line2D(
        [],
        [],
        color=BLACK,
        linestyle=(0, (4, 2)),
        linewidth=1.4,
        label="read bandwidth / bytes of the weights at this precision",
    )
    shown = [limit] if any(limits(size, read_gb_s) for size in sizes) else []
    legend(made, [*colours, *shown], 6)
    return made


def memory(rows: Sequence[Row]) -> Figure | None:
    """Tokens/s against resident memory: above and to the left is better."""
    plain = fine([r for r in rows if is_plain(str(r.key["method"])) and r.facts.get("rss_mb")], "tok_s")
    sizes = sizes_of(plain)
    if not sizes:
        return None
    made, axes = panels(len(sizes), 2, 2.5, "Speed against memory: above and to the left is better")
    engines: dict[str, None] = {}
    for ax, size in zip(axes, sizes, strict=True):
        for row in {str(r.key["method"]): r for r in plain if r.key["model"] == size}.values():
            name = str(row.key["method"])
            engines[engine := name.split("-", maxsplit=1)[0]] = None
            middle, error = spread(row.samples["tok_s"])
            ax.errorbar(
                row.facts["rss_mb"],
                middle,
                yerr=error,
                color=PRECISION_COLOURS[precision_of(name)],
                marker=MARKERS[engine],
                markersize=11 if engine == "native" else 7,
                markeredgecolor="white",
                markeredgewidth=0.6,
                elinewidth=0.9,
                linestyle="",
            )
        for which in ("x", "y"):
            plain_numbers(ax, which)
        ax.set_title(weights_of(size, rows))
        ax.set_xlabel("resident memory, MB")
        ax.set_ylabel("tokens/s")
    marks = [
        Line2D(
            [], [], color=BLACK, marker=MARKERS[name], linestyle="", markersize=9 if name == "native" else 6, label=name
        )
        for name in engines
    ]
    legend(made, [*marks, *(Patch(color=c, label=p) for p, c in PRECISION_COLOURS.items())], 9)
    return made


def threads(rows: Sequence[Row]) -> Figure | None:
    """Tokens/s against threads, of the methods that were measured with several."""
    several = {str(r.key["method"]).split("-threads-")[0] for r in fine(rows) if "-threads-" in str(r.key["method"])}
    found = fine([r for r in rows if str(r.key["method"]).split("-threads-")[0] in several], "tok_s")
    sizes = [size for size in sizes_of(found) if len({r.key["threads"] for r in found if r.key["model"] == size}) > 1]
    if not sizes:
        return None
    made, axes = panels(len(sizes), 4, 2.4, "Threads")
    for ax, size in zip(axes, sizes, strict=True):
        for name in sorted(several):
            own = [r for r in found if r.key["model"] == size and str(r.key["method"]).split("-threads-")[0] == name]
            points = {float(r.key["threads"]): r.samples["tok_s"] for r in own}
            line(ax, [*points.items()], ENGINE_COLOURS.get(name.split("-")[0], BLACK), label=name)
        ax.set_xscale("log", base=2)
        plain_numbers(ax, "x", sorted({int(r.key["threads"]) for r in found if r.key["model"] == size}))
        ax.set_ylim(0)
        ax.set_title(size)
        ax.set_xlabel("threads")
    axes[0].set_ylabel("tokens/s")
    legend(made, named(axes), 4)
    return made


def operators(rows: Sequence[Row]) -> Figure | None:
    """Share of the decode steps' time by operator type."""
    found = {
        (str(r.key["model"]), str(r.key["method"])): r.facts["profile"] for r in fine(rows) if r.facts.get("profile")
    }
    if not found:
        return None
    sums: dict[str, float] = {}
    for profile in found.values():
        for name, share in profile.items():
            sums[name] = sums.get(name, 0) + share
    kept = sorted(sums, key=lambda name: -sums[name])[:OPERATORS]
    colours = dict(zip(kept, (BLUE, ORANGE, GREEN, SKY, RED, PURPLE, YELLOW, BLACK), strict=False))
    sizes = sizes_of(r for r in rows if (r.key["model"], r.key["method"]) in found)
    names = [*dict.fromkeys(name for _, name in found)][::-1]
    made, axes = panels(len(sizes), 2, 0.28 * len(names) + 0.7, "Where ONNX Runtime spends a decode step", sharey=True)
    for ax, size in zip(axes, sizes, strict=True):
        for y, method in enumerate(names):
            if (size, method) not in found:
                ax.text(0, y, " not measured", va="center", fontsize=7, color="#707070")
            for name, start, share in stacked(found.get((size, method), {}), kept):
                colour = colours.get(name, "#CFCFCF")
                ax.barh(y, share, 0.74, left=start, color=colour, edgecolor="white", linewidth=0.6)
                if share >= 9:
                    ink = "white" if colour in {BLUE, BLACK, RED, GREEN} else BLACK
                    ax.text(start + share / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=7, color=ink)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlim(0, 100)
        ax.set_title(size)
        ax.set_xlabel("% of the time of all operators")
        ax.grid(visible=False)
    legend(made, [*(Patch(color=c, label=n) for n, c in colours.items()), Patch(color="#CFCFCF", label="other")], 5)
    return made


def stacked(profile: dict[str, float], kept: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Yield (operator, where it begins, its share) in per cent; everything that is not kept comes last as one."""
    start = 0.0
    for name in kept:
        if name in profile:
            yield name, start, 100 * profile[name]
            start += 100 * profile[name]
    if profile and start < 99.95:
        yield "other", start, 100 - start
