"""Common parts of the figures: colours, grids of axes, intervals, legends, names beside points."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from scripts.investigation.harness import interval
from scripts.report.rows import ENGINES, PRECISIONS

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

# Okabe and Ito's colours, which people with any colour vision can distinguish, and two greys.
BLUE = "#0072B2"
SKY = "#56B4E9"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
GREY = "#8C8C8C"
BLACK = "#222222"

PRECISION_COLOURS = dict(zip(PRECISIONS, (BLUE, SKY, ORANGE, GREEN), strict=True))
MARKERS = dict(zip(ENGINES, "os^^DD*", strict=True))
ENGINE_COLOURS = {"transformers": GREY, "torch": PURPLE, "optimum": RED, "onnx": BLUE, "native": GREEN}
DASHES = {"fp32": ":", "bf16": "-.", "int8": "-", "int4": "--"}
SIZES = {
    "demo": (GREY, "o"),
    "distilgpt2": (SKY, "P"),
    "gpt2": (BLUE, "s"),
    "gpt2-medium": (ORANGE, "^"),
    "gpt2-large": (GREEN, "D"),
    "gpt2-xl": (PURPLE, "v"),
}
"""Colour and marker of each model, smallest first."""
WIDTH = 9.0
"""Inches: at 900 pixels a point is 1.4 pixels."""
FOOT = 205
"""Number of characters in a line under a figure."""
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""Background of a word that a line may cross."""
STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "svg.hashsalt": "gpt2d",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
plt.rcParams.update(STYLE)  # type: ignore[arg-type]


def save(made: Figure, file: Path, foot: str) -> None:
    """Write FILE.svg and FILE.png, with `foot` below in small print."""
    lines = [part for line in foot.splitlines() for part in textwrap.wrap(line, FOOT)]
    width, height = made.get_size_inches()
    made.text(0.008, 0, "\n".join(lines), fontsize=6.3, color="#666666", va="top", linespacing=1.25, in_layout=False)
    whole = Bbox.from_extents(0, -0.12 * len(lines) - 0.08, width, height)
    file.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(file.with_suffix(".svg"), bbox_inches=whole, metadata={"Date": None})
    made.savefig(file.with_suffix(".png"), bbox_inches=whole, dpi=200, metadata={"Software": None})
    plt.close(made)


def panels(count: int, columns: int, height: float, title: str, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of `count` axes; each row of the grid is `height` inches high."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    made, axes = plt.subplots(
        lines, columns, figsize=(WIDTH, lines * height + 0.75), layout="constrained", squeeze=False, sharey=sharey
    )
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    made.suptitle(title, x=0.008, ha="left")
    return made, list(axes.flat[:count])


def plain_numbers(ax: Axes, which: str, ticks: Sequence[float] = ()) -> None:
    """Make an axis logarithmic, with its numbers as people write them."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    getattr(ax, f"set_{which}scale")("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    if ticks:
        axis.set_ticks(ticks)
        return
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    steps = (1, 2, 5) if high / low < 300 else (1,)
    marks = [step * 10.0**power for power in range(-3, 7) for step in steps]
    axis.set_ticks([mark for mark in marks if low <= mark <= high])


def spread(values: Sequence[float], scale: float = 1.0) -> tuple[float, list[list[float]]]:
    """Return the median, and how far its 95 % interval goes to both sides, as `errorbar` wants it."""
    middle = statistics.median(values)
    low, high = interval(values)
    return middle * scale, [[max(0.0, (middle - low) * scale)], [max(0.0, (high - middle) * scale)]]


def line(
    ax: Axes,
    points: Sequence[tuple[float, Sequence[float]]],
    colour: str,
    *,
    label: str,
    dashes: str = "-",
    marker: str = "o",
) -> None:
    """Draw a line through medians, with their intervals."""
    if not points:
        return
    ordered = sorted(points, key=lambda point: point[0])
    found = [spread(values) for _, values in ordered]
    errors = np.array([error for _, error in found])[:, :, 0].T
    ax.errorbar(
        [x for x, _ in ordered],
        [y for y, _ in found],
        yerr=errors,
        color=colour,
        linestyle=dashes,
        marker=marker,
        label=label,
        elinewidth=0.9,
        capsize=2,
        markeredgecolor="white",
        markeredgewidth=0.4,
    )


def legend(made: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Put a legend below the axes, which leave it room. It keeps its place when the page grows."""
    taken = (0.19 * math.ceil(len(handles) / columns) + 0.12) / made.get_size_inches()[1]
    engine = made.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, taken, 1, 1 - taken))  # type: ignore[call-arg]
    made.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        fontsize=8,
        bbox_to_anchor=(0, 0, 1, 1),
        bbox_transform=made.transFigure,
    ).set_in_layout(False)


def named(axes: Iterable[Axes]) -> list[Artist]:
    """Return what has a name in any of the axes, each name once."""
    found: dict[str, Artist] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return [*found.values()]


@dataclass(frozen=True)
class Named:
    """Point with its name, and how far its intervals go."""

    name: str
    colour: str
    x: float
    y: float
    left: float
    right: float
    low: float
    high: float


def put_names(ax: Axes, points: Sequence[Named]) -> None:
    """Put names beside points, each at the nearest place that is free."""
    inches = ax.figure.dpi / 72
    taken: list[Bbox] = []
    for point in points:
        at = ax.transData.transform([(point.x, point.y), (point.left, point.low), (point.right, point.high)])
        px, py = at[0]
        left, low = at[1]
        right, high = at[2]
        for x0, y0, x1, y1, wide in ((px, py, px, py, 4), (left, py, right, py, 1), (px, low, px, high, 1)):
            taken.append(
                Bbox.from_extents(x0 - wide * inches, y0 - wide * inches, x1 + wide * inches, y1 + wide * inches)
            )
    frame = ax.get_window_extent()
    for point in sorted(points, key=lambda point: -point.y):
        px, py = ax.transData.transform((point.x, point.y))
        width, height = 4.3 * len(point.name) * inches, 9 * inches
        for reach, (dx, dy) in product(
            (7, 14, 24, 36, 50, 66, 84), ((1, 0), (1, 0.7), (1, -0.7), (-1, 0), (0, 1), (0, -1), (-1, 0.7), (-1, -0.7))
        ):
            left = px + dx * reach * inches - width * (1 - np.sign(dx)) / 2
            box = Bbox.from_bounds(left, py + dy * reach * inches - height / 2, width, height)
            inside = box.x0 > frame.x0 and box.x1 < frame.x1 + 10 * inches and box.y0 > frame.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.5, "shrinkB": 3} if reach > 14 else None
        offset = (box.x0 - px) / inches, (box.y0 + height / 2 - py) / inches
        said = ax.annotate(
            point.name,
            (point.x, point.y),
            offset,
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=point.colour,
            arrowprops=arrow,
            in_layout=False,
        )
        said.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
