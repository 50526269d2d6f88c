"""Conclusions: sentences written by hand in conclusions.toml, and the measured figures on which each of them rests.

A figure names its row, its metric, and the interval in which it has to lie for the sentence to be true. A sentence gets
into the report only while all its figures do; otherwise the report says that it is left out, and the command says why.
Sentences are not composed from figures: no program knows what a figure means.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from scripts.bench.figures import percentile
from scripts.investigation.harness import Row, interval
from scripts.investigation.one_daemon import figure, ranged
from scripts.report.measured import Measured
from scripts.report.recommendation import RULE, Point
from scripts.report.rows import limits, precision_of

FILE = Path(__file__).with_name("conclusions.toml")
FINDINGS = "old_findings"
"""Section whose conclusions judge sentences of an earlier investigation."""
UNSUPPORTED = "not supported by these results"
RULE_ROWS = "rule"
"""Script of figures that are limits of the rule in recommendation.py instead of measurements."""

Where = dict[str, str | int | float | bool]
"""Part of a row's key."""


class NotMeasured(Exception):
    """Row or metric that the results do not have."""


class Cited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figure that a sentence cites."""

    text: str
    """Figure as the sentence writes it."""
    within: tuple[float, float]
    """Interval of the median in which the sentence is true."""
    row: Where = {}
    than: Where | None = None
    """Differences of the key of the row with which `row` is compared: the figure is a ratio."""
    script: str = ""
    of: str = ""
    """Name of a sample or a fact, or times_as_fast, share_of_limit, same_texts.

    Empty: that of the conclusion; so is `script`.
    """
    length: int = 25
    """Number of new tokens of times_as_fast."""
    at: float | None = None
    """Share of a percentile, which takes the place of the median."""
    times: float = 1.0
    """Factor: 100 for per cent."""
    whole: bool = False
    """Whether the whole 95 % interval has to lie within."""

    @property
    def name(self) -> str:
        than = f" than {' '.join(map(str, self.than.values()))}" if self.than else ""
        return f"{self.script} {' '.join(map(str, self.row.values()))} {self.of}{than}"

    def values(self, found: Measured) -> list[float]:
        """Return one value for each run; or one, where it was measured once. Raises: NotMeasured."""
        if self.script == RULE_ROWS:
            return [float(getattr(RULE, self.of)) * self.times]
        row = self._row(found, self.row)
        other = self._row(found, self.row | self.than) if self.than else None
        return [value * self.times for value in self._of(found, row, other)]

    def _of(self, found: Measured, row: Row, other: Row | None) -> list[float]:
        if self.of == "times_as_fast" and other:
            ways = found.onnx if self.script == "onnx_methods" else found.compared
            size, method = str(row.key["model"]), str(row.key["method"])
            return ways.ratio(size, method, str(other.key["method"]), self.length) or self._missing()
        if self.of == "share_of_limit":
            most = limits(str(row.key["model"]), found.read_gb_s).get(precision_of(str(row.key["method"])))
            return [value / most for value in row.samples["tok_s"]] if most else self._missing()
        if self.of == "same_texts" and other:
            return [float(all("texts" in r.facts for r in (row, other)) and row.facts["texts"] == other.facts["texts"])]
        values = self._values_in(row)
        if other:
            return [statistics.median(values) / statistics.median(self._values_in(other))]
        return values if self.at is None else [percentile(values, self.at)]

    def _values_in(self, row: Row) -> list[float]:
        if self.of in row.facts:
            return [float(row.facts[self.of])]
        return row.samples.get(self.of) or self._missing()

    def _row(self, found: Measured, where: Where) -> Row:
        """Return the one row that the key says; the last of several groups. Raises: NotMeasured, ValueError."""
        fits = [r for r in found.rows[self.script] if not r.problem and where.items() <= r.key.items()]
        if not fits:
            self._missing()
        keys = {tuple((name, value) for name, value in r.key.items() if name != "group") for r in fits}
        if len(keys) > 1:
            raise ValueError(f"{self.name}: {len(keys)} rows have this key, expected one")
        return fits[-1]

    def _missing(self) -> Any:
        raise NotMeasured(f"{self.name} is not measured")

    def shown(self, found: Measured) -> str:
        """Return the figure as it is now, with its 95 % interval where it has one. Raises: NotMeasured."""
        values = self.values(found)
        return ranged(values) if len(values) > 1 else figure(values[0])

    def problem(self, found: Measured) -> str:
        """Return why the sentence is not true with these results; empty: it is."""
        try:
            values = self.values(found)
        except NotMeasured as e:
            return str(e)
        middle, (low, high) = statistics.median(values), self.within
        least, most = interval(values) if self.whole else (middle, middle)
        if low <= least and most <= high:
            return ""
        return f"{self.name} is {self.shown(found)}, the sentence is for {low:g} to {high:g}"


class Conclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sentence or two, with the figures that they cite."""

    section: str
    text: str
    script: str = "optimisation_methods"
    of: str = "times_as_fast"
    given: list[str] = []
    """Parts of the text whose numbers are settings or names and not measured."""
    cites: list[Cited] = []
    chosen: dict[str, str | int | bool] = {}
    """Choices of the rule in recommendation.py with which the sentence is true."""
    then: str = ""
    """Finding of the earlier investigation; the text and the verdict are of today."""
    verdict: str = ""

    def figures(self) -> Iterator[Cited]:
        for cited in self.cites:
            yield msgspec.structs.replace(cited, script=cited.script or self.script, of=cited.of or self.of)

    def problems(self, found: Measured, point: Point) -> list[str]:
        """Return why it is not true with these results; empty: it is."""
        reasons = [problem for cited in self.figures() if (problem := cited.problem(found))]
        for name, wanted in self.chosen.items():
            if (chosen := getattr(point, name)) != wanted:
                reasons.append(f"the rule chooses {name}={chosen}, the sentence is for {wanted}")
        return reasons

    def uncited(self) -> list[str]:
        """Return the numbers of the text that are neither cited nor given nor part of a name."""
        text = re.sub(r"`[^`]*`|gpt2[\w-]*|fp32|bf16|int[48]", "", self.text)
        for known in sorted([*self.given, *(cited.text for cited in self.cites)], key=len, reverse=True):
            text = re.sub(rf"(?<![\d.,]){re.escape(known)}(?!\d|[.,]\d)", "", text)
        return re.findall(r"\d[\d,.]*", text)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    conclusion: list[Conclusion]


def read(file: Path = FILE) -> list[Conclusion]:
    """Raises: msgspec.ValidationError, ValueError."""
    return msgspec.toml.decode(file.read_bytes(), type=_Document).conclusion


class Conclusions:
    """Conclusions as these results support them."""

    def __init__(self, found: Measured, point: Point, every: Sequence[Conclusion] | None = None) -> None:
        self._found, self._every = found, read() if every is None else every
        self._problems = [conclusion.problems(found, point) for conclusion in self._every]
        self.unsupported = {c.text: ps for c, ps in zip(self._every, self._problems, strict=True) if ps}
        """Reasons why a sentence is left out."""

    def of(self, section: str) -> list[str]:
        """Return the section's sentences as a list in Markdown."""
        own = [c for c in self._every if c.section == section]
        lines = [f"- {c.text}{self._elsewhere(c)}" for c in own if c.text not in self.unsupported]
        if left_out := len(own) - len(lines):
            sentences = "1 conclusion is" if left_out == 1 else f"{left_out} conclusions are"
            lines.append(f"- *{sentences} left out: these results lack the figures, or have others.*")
        return [*lines, ""] if lines else []

    def _elsewhere(self, conclusion: Conclusion) -> str:
        """Return whether a sentence is true of the second machine as well, or which figures that has."""
        second = self._found.second
        figures = list(conclusion.figures())
        if second is None or not figures:
            return ""
        try:
            if not any(cited.problem(second) for cited in figures):
                return " *(Second machine: the same.)*"
            return f" *(Second machine: {', '.join(cited.shown(second) for cited in figures)}.)*"
        except NotMeasured:
            return " *(Second machine: not measured.)*"

    def findings(self) -> dict[str, str]:
        """Return the verdict on each finding of the earlier investigation."""
        return {c.then: self._verdict(c) for c in self._every if c.section == FINDINGS}

    def findings_table(self) -> list[str]:
        """Return the table of the earlier investigation's findings; the intervals are those of these results."""
        lines = ["| then | verdict | now | measured |", "| --- | --- | --- | --- |"]
        for c in self._every:
            if c.section == FINDINGS:
                now = f"{c.text}{self._elsewhere(c)}" if c.text not in self.unsupported else ""
                lines.append(f"| {c.then} | **{self._verdict(c)}** | {now} | {self._intervals(c)} |")
        return lines

    def _verdict(self, conclusion: Conclusion) -> str:
        return UNSUPPORTED if conclusion.text in self.unsupported else conclusion.verdict

    def _intervals(self, conclusion: Conclusion) -> str:
        shown = []
        for cited in conclusion.figures():
            try:
                shown.append(cited.shown(self._found))
            except NotMeasured:
                shown.append("-")
        return "; ".join(shown)
