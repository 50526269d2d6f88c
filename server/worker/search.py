"""Decoders that run several rows for one text: beam search and its relatives (beams.py), and contrastive search.

A search has a lane for each text that it compares. A lane is a row of the running batch with the tokens in it. After a
step the search decides which lanes go on; the others take over the text of one that does, by copying into their rows
what follows the beginning that they share with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from dataclasses import dataclass

from protocol import messages as m
from protocol.errors import RequestError
from server.engines.base import Engine, Hidden, Logits
from server.worker.sequence import Generation, Sequence


@dataclass(eq=False)
class Lane:
    """Row of a search: a Row (task.py)."""

    search: Search
    ids: list[int]
    cached: int
    row: int
    reuses = False
    owner = 0

    @property
    def id(self) -> int:
        return self.search.id

    @property
    def alone(self) -> bool:
        return self.search.alone

    @property
    def finished(self) -> m.FinishReason | None:
        return self.search.finished

    @property
    def fault(self) -> RequestError | None:
        return self.search.fault

    @property
    def expires(self) -> float:
        return self.search.expires

    @property
    def silent(self) -> bool:
        return self.search.silent

    @property
    def interval_ms(self) -> int:
        return self.search.interval_ms

    def end(self, reason: m.FinishReason) -> None:
        self.search.end(reason)

    def fail(self, fault: RequestError) -> None:
        self.search.fail(fault)

    def pieces(self) -> Many[m.Tokens]:
        """Take the search's pieces, once for all its lanes."""
        return self.search.pieces() if self is self.search.lanes[0] else ()


class Search(ABC):
    """Base of all searches: a prompt, lanes, and the sequences that take the part of their texts that is certain.

    A search is a Prompt (task.py) until it spreads over its lanes, and from then on takes their logits (`Joint`).
    """

    looks_inside = False
    branches = True
    """True, so that its prompt is kept: other seeds and strategies begin with it."""

    def __init__(self, generation: Generation, width: int) -> None:
        """Make a search that needs `width` rows."""
        request = generation.request
        self.id = generation.id
        self.group = generation.group
        self.owner = generation.owner
        self.request = request
        self.width = width
        self.outputs = [Sequence(generation, index) for index in range(request.n)]
        """Sequences of the texts to return."""
        self.lanes: list[Lane] = []
        self.alone = request.deterministic
        self.reuses = not request.deterministic
        self.streams = request.stream
        self.interval_ms = request.stream_interval_ms
        self.ids = list(generation.prompt)
        self.prompt_tokens = len(generation.prompt)
        self.cached = 0
        self.row = -1
        self.place = 0
        self._generation = generation

    @property
    def finished(self) -> m.FinishReason | None:
        return self.outputs[0].finished

    @property
    def fault(self) -> RequestError | None:
        return self.outputs[0].fault

    @property
    def expires(self) -> float:
        return self.outputs[0].expires

    @property
    def silent(self) -> bool:
        return any(output.silent for output in self.outputs)

    @property
    def fixed(self) -> bool:
        return not self.reuses

    def asked(self, count: int) -> None:  # noqa: ARG002 - it chooses from logits
        return None

    @property
    def reusable(self) -> int:
        return self.prompt_tokens - 1 if self.reuses else 0

    def begin(self, row: int) -> None:
        self.row = row
        for output in self.outputs:
            output.begin(row)

    def restored(self, positions: int) -> None:
        self.cached = positions
        for output in self.outputs:
            output.reused = positions

    def wanted(self, count: int) -> list[int]:
        return [count - 1] if self.cached + count == self.prompt_tokens else []

    def prefilled(self, count: int, logits: Logits, hidden: Hidden | None, engine: Engine) -> Many[Lane]:
        self.cached += count
        if hidden is not None:
            self.see(hidden)
        if not len(logits):
            return ()
        self.lanes = [Lane(self, list(self.ids), 0, self.row + i) for i in range(self.width)]
        self.lanes[0].cached = len(self.ids)
        for output in self.outputs:
            output.count(0)
        self.start(logits[0], engine)
        return sorted(self.lanes, key=lambda lane: lane.row)

    def advance(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:
        for lane in self.lanes:
            lane.cached += 1
        self.proceed(logits, hidden, engine)

    def end(self, reason: m.FinishReason) -> None:
        if self.finished is not None:
            return
        if self.lanes:
            self.conclude(reason)
        for output in self.outputs:
            output.finish(reason)

    def fail(self, fault: RequestError) -> None:
        for output in self.outputs:
            output.fail(fault)

    def pieces(self) -> Many[m.Tokens]:
        return [piece for output in self.outputs for piece in output.pieces()]

    @abstractmethod
    def start(self, logits: Logits, engine: Engine) -> None:
        """Spread from the first lane over the others, with the logits after the prompt, [vocabulary]."""

    @abstractmethod
    def proceed(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:
        """Take a step's logits, [lanes, vocabulary], and hidden states, [lanes, width]."""

    @abstractmethod
    def conclude(self, reason: m.FinishReason) -> None:
        """Give the outputs the best texts so far: the search is being ended from outside."""

    def see(self, hidden: Hidden) -> None:
        """Take the hidden states of a chunk of the prompt, [tokens, width]; only if the search `looks_inside`."""
        raise NotImplementedError

    def _fork(self, parents: Many[int], tokens: Many[int], engine: Engine) -> None:
        """Let lane i become the text of lane `parents[i]` and `tokens[i]`.

        A parent's first child stays in its row; the others get the rows of lanes that end.
        """
        lanes = self.lanes
        keep: dict[int, int] = {}
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
            lane.ids = ids
            lane.cached = cached
        self.lanes = [lane for lane, _, _ in after]

    def _scores(self, logits: Logits, lane: Lane | None) -> Logits:
        """Return the logits (or log-probabilities) after a lane, or after the prompt for None, as processed.

        They are [vocabulary], and changed as the request asks (processors.py).
        """
        processors = self._generation.processors()
        if not processors.active:
            return logits
        return processors.apply(logits, lane.ids if lane else self.ids)


def common(a: Many[int], b: Many[int]) -> int:
    """Return the number of tokens with which both texts begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
