"""Makes kinds of folders, asks both sides, and compares."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol import Client
from protocol.errors import Gpt2dError
from scripts.checkpoints import judge, ours
from scripts.checkpoints.compare import alike, compare
from scripts.checkpoints.environment import Judge
from scripts.checkpoints.kind import Kind, Make
from scripts.daemon import Daemon

MOST_SHOWN, MAX_SHOWN = 8, 400
"""Differences that are printed of one kind, and characters of each: the rest is of the same cause."""
COMMITTED = Path(__file__).resolve().parents[2] / "tests" / "data" / "checkpoints.json"
"""Answers of transformers 5 where the version in .venv gives others, by the kind's name."""


@dataclass
class Outcome:
    """What came of one kind."""

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    """Largest relative difference of a log-probability, by engine and precision."""
    refused: str = ""
    """The sentence, where it is to be refused."""
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        if self.differences:
            return "DIFFERS"
        return "refused" if self.refused else "same"

    def __str__(self) -> str:
        figures = "".join(f" {where} {largest:.1e}" for where, largest in self.figures.items())
        return f"{self.name}: {self.verdict}{figures} ({self.seconds:.1f} s)" + "".join(
            f"\n    {difference[:MAX_SHOWN]}" for difference in self.differences[:MOST_SHOWN]
        )


def table(outcomes: list[Outcome]) -> str:
    """Return all of them as a table of Markdown."""
    columns = list(dict.fromkeys(where for outcome in outcomes for where in outcome.figures))
    lines = [f"| kind | {' | '.join(['', *columns])} |", f"|{'---|' * (len(columns) + 2)}"]
    for outcome in outcomes:
        cells = [f"{outcome.figures[c]:.1e}" if c in outcome.figures else "" for c in columns]
        lines.append(f"| {outcome.name} | {' | '.join([outcome.verdict, *cells])} |")
    wrong = sum(bool(outcome.differences) for outcome in outcomes)
    return "\n".join([*lines, "", f"{len(outcomes)} kinds, {wrong} of which differ"])


def make(into: Path, maker: Make) -> Path:
    """Fill a new folder. Raises whatever its maker raises."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    maker(into)
    return into


def engines(kind: Kind) -> Iterable[tuple[str, str]]:
    precisions = ("fp32", "int8", "int4") if kind.blocks else ("fp32",)
    return ((engine, precision) for precision in precisions for engine in kind.engines)


def refuse(client: Client, kind: Kind) -> Outcome:
    """Load what must not be loaded."""
    said = ours.refusal(client, kind)
    outcome = Outcome(kind.name, refused=said)
    if not re.search(kind.refused, said):
        outcome.differences.append(f"should be refused with {kind.refused!r}: {said or 'it loads'}")
    return outcome


class Run:
    """A daemon and the judge's process, which many kinds are asked of. A context manager."""

    def __init__(self, python: Path, scratch: Path) -> None:
        """Start both; the folders go to `scratch`. Raises: OSError, RuntimeError where one does not start."""
        self._scratch = scratch
        self._answers: dict[str, judge.Answer] = {}
        with ExitStack() as stack:
            self._judge = stack.enter_context(Judge(python, scratch / "judge.log"))
            daemon = stack.enter_context(Daemon(scratch))
            self._client = stack.enter_context(Client(daemon.endpoint))
            self._stack = stack.pop_all()

    def kind(self, kind: Kind) -> Outcome:
        """Make it, ask both sides, compare. Raises: JudgeFailed."""
        began = time.monotonic()
        folder = make(self._scratch / "models" / kind.name, kind.make)
        outcome = refuse(self._client, kind) if kind.refused else self._accept(kind, folder)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _accept(self, kind: Kind, folder: Path) -> Outcome:
        if kind.judged:
            folder = make(self._scratch / "judged" / kind.name, kind.judged)
        self._judge.ask(folder, kind)
        mine: dict[tuple[str, str], ours.Answer] = {}
        outcome = Outcome(kind.name)
        for engine, precision in engines(kind):
            try:
                mine[engine, precision] = ours.ask(self._client, kind, engine, precision)
            except Gpt2dError as e:
                outcome.differences.append(f"{engine}/{precision}: {e}")
        theirs = self._judge.answer()
        if isinstance(theirs, str):
            outcome.differences.append(f"transformers: {theirs}")
            return outcome
        self._answers[kind.name] = theirs
        where: dict[str, list[str]] = {}
        for (engine, precision), answer in mine.items():
            found = compare(kind, theirs, answer, precision)
            outcome.figures[f"{engine}/{precision}"] = found.largest
            for difference in found.differences:
                where.setdefault(difference, []).append(f"{engine}/{precision}")
        outcome.differences += [f"{', '.join(places)}: {what}" for what, places in where.items()]
        return outcome

    def write(self, kinds: Iterable[Kind]) -> None:
        """Write what the judge answered where transformers in this process answers otherwise, or cannot.

        Of the gate's kinds alone; answers of kinds that were not tried now stay as they are.
        """
        kept = json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.exists() else {}
        for kind in kinds:
            theirs = self._answers.get(kind.name)
            if theirs is None or not kind.gate:
                continue
            folder = self._scratch / ("judged" if kind.judged else "models") / kind.name
            try:
                here: judge.Answer | None = judge.ask(folder, list(kind.texts), list(kind.prompts))
            except Exception:  # noqa: BLE001 - whatever it raises, it does not answer
                here = None
            if here is not None and alike(theirs, here):
                kept.pop(kind.name, None)
            else:
                kept[kind.name] = theirs
        COMMITTED.parent.mkdir(exist_ok=True)
        lines = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(kept.items())]
        COMMITTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
