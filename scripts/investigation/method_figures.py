"""Figures of what optimisation_methods and onnx_methods have measured: times, ratios, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from scripts.investigation.harness import Row, interval


def measured(row: Row, length: int) -> list[float]:
    """Return the milliseconds of the texts of this length; longer ones may have been written in some runs only."""
    return row.samples.get(f"whole_{length}_ms", [])


def derived(row: Row, length: int) -> list[float]:
    """Return the same of every run, from its prefill and its decode rate."""
    prefills, rates = row.samples.get("prefill_ms", []), row.samples["tok_s"]
    return [prefill + 1e3 * (length - 1) / rate for prefill, rate in zip(prefills, rates, strict=False)]


def times(row: Row, length: int) -> list[float]:
    """Return the milliseconds of every run: measured, or else derived."""
    return found if len(found := measured(row, length)) == runs_in(row) else derived(row, length)


def speedups(row: Row, against: Row, length: int) -> list[float]:
    """Return, for each run, how many times as fast it was as the other in the same turn."""
    ours, theirs = times(row, length), times(against, length)
    if ours and theirs:
        return [b / a for a, b in zip(ours, theirs, strict=False)]
    return [a / b for a, b in zip(row.samples["tok_s"], against.samples["tok_s"], strict=False)]


def runs_in(row: Row) -> int:
    return len(row.samples.get("tok_s", []))


def figures(row: Row, against: Row | None, lengths: Sequence[int]) -> dict[str, Any]:
    """Return what a script's last line has of a row: medians with their intervals, and what was measured once."""
    found: dict[str, Any] = {**row.key, "runs": runs_in(row)}
    if row.problem:
        return found | {"problem": row.problem}
    series = {name: row.samples.get(name, []) for name in ("prefill_ms", "tok_s")}
    for length in lengths:
        series[f"whole_{length}_ms"] = times(row, length)
        found[f"derived_{length}"] = len(measured(row, length)) < runs_in(row)
    if against is not None and not against.problem:
        found["against"] = against.key["method"]
        series["speedup"] = speedups(row, against, lengths[0])
    for name, values in series.items():
        if values:
            found[name] = float(f"{np.median(values):.4g}")
            found[f"{name}_95"] = [float(f"{v:.4g}") for v in interval(values)]
    return found | row.facts


def summary(rows: Sequence[Row], against: Mapping[str, str], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures of all rows; `against` has the method of the same group with which each is compared."""
    found = []
    for row in rows:
        other = {name: row.key[name] for name in ("model", "group")} | {"method": against[str(row.key["method"])]}
        same = (r for r in rows if r is not row and other.items() <= r.key.items())
        found.append(figures(row, next(same, None), lengths))
    return found


def columns(lengths: Sequence[int]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Return what a table shows of the figures of a method: {heading: how it is written}."""
    times = {f"{n} tokens, ms": partial(ranged, name=f"whole_{n}_ms", assumed=f"derived_{n}") for n in lengths}
    return {
        **times,
        "prefill, ms": partial(ranged, name="prefill_ms"),
        "tokens/s": partial(ranged, name="tok_s"),
        "times as fast": partial(ranged, name="speedup"),
        "MB": partial(one, name="rss_mb"),
        "load, s": partial(one, name="load_s"),
        "perplexity, %": partial(one, name="perplexity_change_pct", form="{:+.2f}"),
        "same top 1": partial(one, name="top1_agreement", form="{:.1%}"),
    }


def print_tables(found: Sequence[dict[str, Any]], lengths: Sequence[int]) -> None:
    """Print a table for each model: medians with 95 % intervals, ~ where a time follows from prefill and rate."""
    shown = {"threads": partial(one, name="threads")} | columns(lengths)
    for model in dict.fromkeys(f["model"] for f in found):
        fine = [f for f in found if f["model"] == model and "problem" not in f]
        cells = [[model, *shown], *([f["method"], *(show(f) for show in shown.values())] for f in fine)]
        used = [i for i in range(len(cells[0])) if any(row[i] for row in cells[1:])]
        widths = {i: max(len(row[i]) for row in cells) for i in used}
        print()
        for row in cells:
            print("  ".join(row[i].ljust(widths[i]) for i in used).rstrip())
        for f in found:
            if f["model"] == model and "problem" in f:
                print(f"{f['method']}: not measured: {f['problem']}")


def one(found: dict[str, Any], name: str, form: str = "{}") -> str:
    return form.format(found[name]) if name in found else ""


def ranged(found: dict[str, Any], name: str, assumed: str = "") -> str:
    """Return the median with its interval."""
    if name not in found:
        return ""
    low, high = found[f"{name}_95"]
    return f"{'~' if found.get(assumed) else ''}{found[name]:.4g} [{low:.4g}, {high:.4g}]"
