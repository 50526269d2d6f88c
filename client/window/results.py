"""Part of AppState: what has come of generations. Their times, their history, and several of them compared."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from client import replicas
from client.window.preferences import Settings
from protocol import messages as m

MAX_HISTORY, MAX_POINTS = 500, 2000
KEPT_LOGPROBS, MAX_LOGPROBS = 50, 20_000
"""Number of generations, the newest, that keep their tokens' probabilities, which take far more memory than their
texts; and most tokens, of all their texts together: 2 KB each.
"""


@dataclass(slots=True)
class Ledgers:
    """The last generation's times, and those of the session."""

    last: m.Generated | None = None
    whole_ms: float = 0.0
    """Time that the window measured: the difference to the server's is the network's share."""
    series: dict[str, deque[tuple[float, float, float]]] = field(default_factory=dict)
    """model/engine/precision -> (number of the generation, tokens a second, ms to the first token)."""
    count: int = 0


@dataclass(slots=True)
class Column:
    """One of the compared ways."""

    model: str = ""
    engine: str = ""
    precision: str = ""
    preset: str = ""
    as_chosen: bool = False
    """What is chosen in the Model panel was wanted here."""
    settings: Settings = field(default_factory=dict)
    """Settings of the preset; empty: those of the Sampling panel."""
    text: str = ""
    result: m.Generated | None = None
    error: str = ""
    parts: list[tuple[str, bool]] = field(default_factory=list)
    """The text, cut into (part, whether it is the word with which it parts from the first column's)."""

    @property
    def way(self) -> tuple[str, str, str]:
        """Model, engine and precision; empty: those of the Model panel."""
        return replicas.way(self)

    @way.setter
    def way(self, way: tuple[str, str, str]) -> None:
        self.model, self.engine = way[:2]
        self.precision = way[2]


@dataclass(slots=True)
class Compare:
    prompt: str = "Shall I compare thee"
    seed: int = 1
    max_new_tokens: int = 40
    columns: list[Column] = field(default_factory=lambda: [Column(), Column()])
    running: int | None = None
    """The column whose turn it is."""
    stopping: bool = False
    """True from the stop to the end of what was under way, for which is waited a moment."""
    stopped_at: float = 0.0
    awaited: Literal["compare", "compare load"] = "compare"
    """Purpose of the request that is under way: answers to another are those of an earlier comparison."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One generation of the session."""

    number: int
    at: float
    """Unix time."""
    prompt: str
    result: m.Generated
    endpoint: str

    @property
    def told(self) -> int:
        """Number of tokens whose probabilities it has."""
        return len(self.result.logprobs) + sum(len(other.logprobs) for other in self.result.others)

    @property
    def bare(self) -> Entry:
        """The same without any probabilities."""
        others = [msgspec.structs.replace(other, logprobs=[]) for other in self.result.others]
        return replace(self, result=msgspec.structs.replace(self.result, logprobs=[], others=others))


@dataclass(slots=True)
class History:
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    search: str = ""
    chosen: int | None = None
    kept: int = 0
    """Number of the newest that other sessions have, or that was cleared."""

    def entry(self, number: int | None) -> Entry | None:
        return next((entry for entry in self.entries if entry.number == number), None)
