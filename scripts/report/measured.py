"""Rows of the investigation, read from their JSON lines and compared; and how the report writes words and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.investigation import method_figures, methods, onnx_methods, optimisation_methods
from scripts.investigation.harness import Row, read
from scripts.investigation.one_daemon import lines_of
from scripts.report.rows import beside_limits, newest, of_one_machine, sizes_of, weights_of

SCRIPTS = (
    "optimisation_methods",
    "onnx_methods",
    "decoder_methods",
    "combined_methods",
    "operating_point",
    "serving_methods",
)
BASELINE = "transformers-fp32"


# Rows


class Compared:
    """Rows of optimisation_methods or onnx_methods, with the rows that they are compared with."""

    def __init__(self, rows: Sequence[Row], script: Any, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self._rows = rows
        self._by = {
            (str(r.key["model"]), str(r.key["method"])): r for r in rows if not r.problem and r.samples.get("tok_s")
        }
        self.sizes = sizes_of(self._by.values())
        self._against: dict[str, str] = {}
        for threads in {int(r.key["threads"]) for r in rows}:
            for size in sizes_of(rows):
                found = script.methods_of(size, threads, (size,))
                self.baseline = found[0].name
                self._against |= {method.name: method.against or self.baseline for method in found}

    def row(self, size: str, method: str) -> Row | None:
        return self._by.get((size, method))

    def methods(self, size: str) -> list[str]:
        return [method for model, method in self._by if model == size]

    def against(self, row: Row) -> Row | None:
        """Return the row with which a row is compared: it lived at the same time and was asked in the same turns."""
        found = self._beside(row, self._against.get(str(row.key["method"]), self.baseline))
        return found if found is not row else None

    def ratio(self, size: str, method: str, other: str, length: int = 25) -> list[float] | None:
        """Return, for each run, how many times as fast a method is as another.

        Methods of different groups are compared by way of the baseline of each.
        """
        one, two = self.row(size, method), self.row(size, other)
        if one is None or two is None:
            return None
        if one.key["group"] == two.key["group"]:
            return method_figures.speedups(one, two, length) or None
        bases = self._beside(one, self.baseline), self._beside(two, self.baseline)
        if bases[0] is None or bases[1] is None:
            return None
        pairs = zip(self._times(one, bases[0], length), self._times(two, bases[1], length), strict=False)
        return [a / b for a, b in pairs] or None

    def _beside(self, row: Row, method: str) -> Row | None:
        """Return a method's row of the same group."""
        wanted = (row.key["model"], row.key["group"], method)
        found = [r for r in self._rows if (r.key["model"], r.key["group"], r.key["method"]) == wanted]
        return found[-1] if found and not found[-1].problem else None

    @staticmethod
    def _times(row: Row, base: Row, length: int) -> list[float]:
        return [1.0] * method_figures.runs_in(row) if row is base else method_figures.speedups(row, base, length)

    def _missing(self, size: str) -> Iterator[str]:
        """Yield a line for each reason why methods were not measured."""
        reasons: dict[str, list[str]] = {}
        for row in self._rows:
            if row.problem and row.key["model"] == size and self.row(size, str(row.key["method"])) is None:
                reasons.setdefault(row.problem.removeprefix("Skipped: "), []).append(str(row.key["method"]))
        for reason, names in reasons.items():
            yield f"{size}, not measured: {listed(names)}: {reason}"

    def tables(self, _: Sequence[Row]) -> str:
        """Return a table for each size."""
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "method": lambda f: f"`{f['method']}`",
            "threads": partial(method_figures.one, name="threads"),
            "runs": partial(method_figures.one, name="runs"),
            **method_figures.columns(self.lengths),
            "GB/s": partial(method_figures.one, name="gb_s", form="{:.1f}"),
            "prefill, GMAC/s": partial(method_figures.one, name="gmac_s", form="{:.0f}"),
            "of L": partial(method_figures.one, name="of_limit", form="{:.2f}"),
        }
        text = []
        for size in sizes_of(self._rows):
            found = [
                method_figures.figures(row, self.against(row), self.lengths) | beside_limits(row)
                for (model, _), row in self._by.items()
                if model == size
            ]
            cells = [[show(f) for show in columns.values()] for f in found]
            used = [i for i in range(len(columns)) if any(line[i] for line in cells)]
            text += [f"**{weights_of(size, self._rows)}**", ""]
            if cells:
                head = [*columns]
                text += lines_of([head[i] for i in used], ([line[i] for i in used] for line in cells))
            text += ["", *self._missing(size), ""]
        return "\n".join(text)


@dataclass
class Measured:
    """Everything that there is to report on."""

    rows: dict[str, list[Row]]
    """Rows of each script, newest last."""
    second: Measured | None = None
    """The same of another machine, which was measured before."""
    compared: Compared = field(init=False)
    onnx: Compared = field(init=False)

    def __post_init__(self) -> None:
        self.compared = Compared(self.rows["optimisation_methods"], optimisation_methods, methods.LENGTHS[1:])
        self.onnx = Compared(self.rows["onnx_methods"], onnx_methods, methods.LENGTHS[:1])

    @property
    def read_gb_s(self) -> float:
        """Highest read bandwidth seen on the machine of the newest rows: a busy machine reads less."""
        everything = [row for rows in self.rows.values() for row in rows]
        if not everything:
            return 0.0
        cpu = max(everything, key=lambda row: row.date).machine["cpu"]
        return max(float(row.machine["read_gb_s"]) for row in everything if row.machine["cpu"] == cpu)


def load(results: Path, *, quick: bool) -> Measured:
    files = {name: results / f"{name}{'.quick' if quick else ''}.jsonl" for name in SCRIPTS}
    both = {
        name: of_one_machine([r for r in read(file) if r.script == name] if file.exists() else [])
        for name, file in files.items()
    }
    first, second = ({name: newest(rows[i]) for name, rows in both.items()} for i in range(2))
    return Measured(first, Measured(second) if any(second.values()) else None)


# Words


def command_of(script: str) -> str:
    """Return the command that measures what a script's rows have."""
    return f"python -m scripts.investigation.{script}"


def listed(parts: Sequence[str]) -> str:
    """Return the parts as an enumeration: "a, b and c"."""
    if len(parts) < 2:
        return parts[0] if parts else "nothing"
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def escaped(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|#~])", r"\\\1", text)


def origins(rows: Iterable[Row]) -> list[str]:
    """Return machine, versions, command and dates, a line for each combination."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        mc = row.machine
        size = f"{mc.get('cores', '?')} cores, {mc.get('memory_gb', '?')} GB"
        machine = f"{mc.get('cpu', '?')}, {size}, {mc.get('system', '?')}"
        python = f"Python {mc.get('python', '?')}"
        versions = ", ".join([python, *(f"{name} {version}" for name, version in row.versions.items())])
        groups.setdefault((machine, versions, row.command), []).append(row)
    found = []
    for (machine, versions, command), same in groups.items():
        dates = sorted(row.date for row in same)
        first, last = (f"{date[:10]} {date[11:16]}" for date in (dates[0], dates[-1]))
        when = first if first == last else f"{first} to {last}"
        reads = sorted({float(row.machine.get("read_gb_s", 0)) for row in same})
        loads = sorted({float(row.machine.get("load", 0)) for row in same})
        state = f"reads {_span(reads)} GB/s, load at the start {_span(loads)}"
        found.append(f"{machine}, {state}; {versions}; {command}; {when} UTC")
    return found


def _span(ordered: Sequence[float]) -> str:
    first, last = f"{ordered[0]:.1f}", f"{ordered[-1]:.1f}"
    return first if first == last else f"{first} to {last}"


def under(rows: Iterable[Row]) -> list[str]:
    """Return the line under a figure or table."""
    return ["<sub>" + "<br>".join(line.replace("<", "&lt;") for line in origins(rows)) + "</sub>", ""]


def markdown(text: str, under: str) -> Iterator[str]:
    """Yield tables, each with `under` below it, and other lines as a list; tables without rows are left out."""
    table: list[str] = []
    others: list[str] = []

    def flush() -> Iterator[str]:
        if len(table) > 2:
            yield from (*table, "", under, "")
        table.clear()

    for line in text.splitlines():
        if line.startswith("|"):
            table.append(line)
        elif line.startswith("**"):
            yield from flush()
            yield from (line, "")
        else:
            yield from flush()
            if line:
                others.append(f"- {escaped(line)}")
    yield from flush()
    if others:
        yield from (*others, "")
