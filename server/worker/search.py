"""Decoders that run several rows for one text: beam search and its relatives, and contrastive search.

A search owns as many lanes as it compares texts. Each lane is a row of the running batch with the tokens in it; after a step
the search says which lanes live on, and what stands after the common ancestor is copied into the rows of those that do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass

from protocol import messages as m
from server.engines.base import Engine, Hidden, Logits
from server.worker.processors import Processors
from server.worker.sequence import Sequence


@dataclass
class Lane:
    """One row of a search. To the scheduler it is what a sequence is."""

    search: Search
    ids: list[int]
    cached: int
    row: int
    reuses = False

    @property
    def alone(self) -> bool:
        return self.request.deterministic

    @property
    def id(self) -> int:
        return self.search.outputs[0].id

    @property
    def request(self) -> m.Generate:
        return self.search.request

    @property
    def outputs(self) -> list[Sequence]:
        """The search's, told once for all its lanes."""
        return self.search.outputs if self is self.search.lanes[0] else []

    @property
    def finished(self) -> m.FinishReason | None:
        return self.search.outputs[0].finished

    def expired(self, now: float) -> bool:
        return self.search.outputs[0].expired(now)

    @property
    def fault(self) -> str:
        return self.search.outputs[0].fault

    def fail(self, fault: str) -> None:
        self.search.outputs[0].fail(fault)

    def end(self, reason: m.FinishReason) -> None:
        if not self.search.finished:
            self.search.end(reason)


class Search(ABC):
    """What all searches have: their lanes, and the sequences that take what is certain of their texts."""

    width: int
    """How many rows it needs."""
    looks_inside = False
    """It wants the hidden states, the prompt's too."""

    def __init__(self, outputs: list[Sequence], processors: Callable[[], Processors]) -> None:
        """`outputs` are one for each text to return; `processors` makes new ones, since lanes have different pasts."""
        self.outputs = outputs
        self.request = outputs[0].request
        self.lanes: list[Lane] = []
        self._processors = processors

    @property
    def finished(self) -> bool:
        return all(output.finished is not None for output in self.outputs)

    @abstractmethod
    def start(self, logits: Logits, engine: Engine) -> None:
        """Spread from float32 [vocabulary], after the prompt, which is in the first output's row, over the rows behind it."""

    @abstractmethod
    def advance(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:
        """Take a step from float32 [width, vocabulary] and [width, hidden], one row for each lane."""

    @abstractmethod
    def end(self, reason: m.FinishReason) -> None:
        """End it from outside, with the best that there is."""

    def see(self, hidden: Hidden) -> None:
        """Take the hidden states of a chunk of the prompt, float32 [tokens, width]; asked only where it looks inside."""
        raise NotImplementedError

    def _open(self) -> None:
        lead, *others = self.outputs
        for output in others:
            output.begin(lead.row)
        for output in self.outputs:
            output.count(0)
        self.lanes = [Lane(self, list(lead.ids), 0, lead.row + i) for i in range(self.width)]
        self.lanes[0].cached = len(lead.ids)

    def _fork(self, parents: Many[int], tokens: Many[int], engine: Engine) -> None:
        """Let lane i become its parent and a token more. A parent's first child stays in its row, the others get those of lanes that end."""
        lanes, keep = self.lanes, dict[int, int]()
        for child, parent in enumerate(parents):
            keep.setdefault(parent, child)
        free = [lane for i, lane in enumerate(lanes) if i not in keep]
        after: list[tuple[Lane, list[int], int]] = []
        for child, (parent, token) in enumerate(zip(parents, tokens, strict=True)):
            old = lane = lanes[parent]
            if keep[parent] != child:
                lane = free.pop()
                engine.move(old.row, lane.row, old.cached, min(lane.cached, common(lane.ids, old.ids)))
            after.append((lane, [*old.ids, token], old.cached))
        for lane, ids, cached in after:
            lane.ids, lane.cached = ids, cached
        self.lanes = [lane for lane, _, _ in after]

    def _scores(self, logits: Logits, lane: Lane | None) -> Logits:
        """What the request's processors make of the logits (or log-probabilities) after a lane; None: after the prompt."""
        processors = self._processors()
        return processors.apply(logits, lane.ids if lane else self.outputs[0].ids) if processors.active else logits


def common(a: Many[int], b: Many[int]) -> int:
    """How many tokens two texts begin with together."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
