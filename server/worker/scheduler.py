"""Waiting and running sequences: who gets a row, and what the next step computes.

Running sequences decode in rows 0..B-1; at most one sequence prefills, in row B. So the rows of a decode step are always
the first ones, and a sequence that leaves is replaced by the last one. Groups (peers) with waiting sequences take turns;
within a group the first comes first.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence as Many
from dataclasses import dataclass
from itertools import zip_longest

from server.engines.base import Engine
from server.worker.prefix_cache import PrefixCache
from server.worker.scoring import Scoring
from server.worker.search import Lane
from server.worker.sequence import Sequence

ALONE_MS = 160.0
"""Time for one prefill chunk when nobody else runs: bounds how long a cancellation takes."""
SHARED_MS = 40.0
"""The same while others decode: bounds the gap in their streams."""
MIN_CHUNK, MAX_CHUNK, FIXED_CHUNK = 16, 512, 128
"""Tokens; the last is for what must be cut the same way each time."""


@dataclass(slots=True)
class Batch:
    """One step: a chunk of one prompt (or None), and the sequences that decode a token each."""

    prefill: Sequence | Scoring | None
    chunk: list[int]
    decode: list[Sequence | Lane]


class Scheduler:
    def __init__(self, engine: Engine, cache: PrefixCache) -> None:
        """The engine is asked to move, copy out and restore rows; it computes nothing here."""
        self._engine = engine
        self._cache = cache
        self._waiting: OrderedDict[int, deque[Sequence | Scoring]] = OrderedDict()
        """Group -> its waiting sequences; the group whose turn it is stands first."""
        self._prefilling: Sequence | Scoring | None = None
        self._running: list[Sequence | Lane] = []
        self._tokens_per_ms = 0.4  # a guess until a chunk has been timed; from then on a moving average

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def running(self) -> int:
        return len(self._running) + (self._prefilling is not None)

    def add(self, sequence: Sequence | Scoring) -> None:
        self._waiting.setdefault(sequence.group, deque()).append(sequence)

    def find(self, request_id: int) -> list[Sequence | Scoring | Lane]:
        """All sequences of a request."""
        return [s for s in self._all() if s.id == request_id]

    def in_line(self) -> Iterator[Sequence | Scoring]:
        """The waiting sequences in the order in which they will get a row."""
        for turn in zip_longest(*self._waiting.values()):
            yield from (sequence for sequence in turn if sequence is not None)

    def reap(self) -> list[Sequence | Scoring | Lane]:
        """End what is out of time; forget and return what was ended from outside a step."""
        now = time.monotonic()
        done: list[Sequence | Scoring | Lane] = []
        for sequence in self._all():
            if sequence.finished is None and sequence.expired(now):
                sequence.end("deadline")
            if sequence.finished is not None:
                done.append(sequence)
        for sequence in done:
            self._remove(sequence)
        return done

    def schedule(self) -> Batch:
        """Choose the next step."""
        if self._prefilling is None and self._waiting:
            self._admit()
        chunk: list[int] = []
        if self._prefilling:
            budget = SHARED_MS if self._running else ALONE_MS
            size = max(MIN_CHUNK, min(MAX_CHUNK, int(budget * self._tokens_per_ms)))
            if not self._prefilling.reuses:
                size = FIXED_CHUNK  # how a prompt is cut shows in the last bits of its logits
            start = self._prefilling.cached
            chunk = self._prefilling.ids[start : min(start + size, self._prefilling.prompt_tokens)]
        return Batch(self._prefilling, chunk, list(self._running))

    def postprocess(
        self, batch: Batch, first_token: int | None, tokens: list[list[int]], prefill_ms: float
    ) -> list[Sequence | Lane]:
        """Write down what a step computed: the prompt's first new token if it was completed, the tokens of each that decoded.

        Returns the sequences that have a new token; `release` forgets those that finished with it.
        """
        advanced = batch.decode
        for sequence, found in zip(advanced, tokens, strict=True):
            for token in found:
                assert isinstance(sequence, Sequence)  # noqa: S101 - a lane takes its tokens itself
                if sequence.finished is None or sequence.fault:
                    sequence.cached += 1
                    sequence.append(token, len(tokens))
        if batch.prefill:
            batch.prefill.cached += len(batch.chunk)
            if len(batch.chunk) >= MIN_CHUNK:
                self._tokens_per_ms += 0.5 * (len(batch.chunk) / max(prefill_ms, 0.01) - self._tokens_per_ms)
            lanes = batch.prefill.search.lanes if isinstance(batch.prefill, Sequence) and batch.prefill.search else []
            if isinstance(batch.prefill, Sequence) and (first_token is not None or lanes):
                if batch.prefill.branches:
                    self._remember(batch.prefill)  # the request's other continuations start from it
                if first_token is not None:
                    batch.prefill.append(first_token, 0)
                fresh: list[Sequence | Lane] = [*sorted(lanes, key=lambda lane: lane.row)] or [batch.prefill]
                self._running += fresh
                self._prefilling = None
                advanced = [*advanced, *fresh]
        return advanced

    def release(self, sequences: Many[Sequence | Scoring | Lane]) -> None:
        """Forget those that have finished. Apart from `postprocess`, so that their last replies need not wait for the copying."""
        for sequence in sequences:
            if sequence.finished is not None:
                self._remove(sequence)

    def _admit(self) -> None:
        """Give the next sequence in line a row, with whatever of its prompt is known already."""
        group, queue = next(iter(self._waiting.items()))
        alone = queue[0].alone or any(s.alone for s in self._running)
        if (self._running and alone) or len(self._running) + queue[0].width > self._engine.rows:
            return
        sequence = queue.popleft()
        self._waiting.move_to_end(group)
        if not queue:
            del self._waiting[group]
        sequence.begin(len(self._running))
        if sequence.reuses:
            # The last token of the prompt is computed in any case: its logits are wanted.
            known = self._cache.get(sequence.ids[: sequence.prompt_tokens - 1])
            if known:
                self._engine.restore(sequence.row, known)
                sequence.cached = sequence.reused = known.positions
        self._prefilling = sequence

    def _all(self) -> list[Sequence | Scoring | Lane]:
        waiting = [sequence for queue in self._waiting.values() for sequence in queue]
        return [*self._running, *([self._prefilling] if self._prefilling else []), *waiting]

    def _remove(self, sequence: Sequence | Scoring | Lane) -> None:
        if sequence.row < 0 and not isinstance(sequence, Lane):
            queue = self._waiting[sequence.group]
            queue.remove(sequence)
            if not queue:
                del self._waiting[sequence.group]
            return
        self._remember(sequence)
        if sequence is self._prefilling:
            self._prefilling = None
            return
        last = self._running.pop()
        if last is not sequence:
            self._running[sequence.row] = last
            self._place(last, sequence.row)
        if self._prefilling:
            self._place(self._prefilling, len(self._running))

    def _remember(self, sequence: Sequence | Scoring | Lane) -> None:
        if sequence.reuses and not sequence.fault:
            with contextlib.suppress(MemoryError):  # what cannot be kept is computed again
                self._cache.put(
                    sequence.ids[: sequence.cached], lambda positions: self._engine.export(sequence.row, positions)
                )

    def _place(self, sequence: Sequence | Scoring | Lane, row: int) -> None:
        self._engine.move(sequence.row, row, sequence.cached)
        sequence.row = row
