"""Waiting and running sequences: who gets a row, and what the next step computes.

Running sequences decode in rows 0..B-1; at most one sequence prefills, in row B. So the rows of a decode step are always
the first ones, and a sequence that leaves is replaced by the last one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.sequence import Sequence

ALONE_MS = 160.0
"""Time for one prefill chunk when nobody else runs: bounds how long a cancellation takes."""
SHARED_MS = 40.0
"""The same while others decode: bounds the gap in their streams."""
MIN_CHUNK, MAX_CHUNK = 16, 512


@dataclass(slots=True)
class Batch:
    """One step: a chunk of one prompt (or None), and the sequences that decode a token each."""

    prefill: Sequence | None
    chunk: list[int]
    decode: list[Sequence]

    @property
    def completes_prompt(self) -> bool:
        return self.prefill is not None and self.prefill.cached + len(self.chunk) == self.prefill.prompt_tokens


class Scheduler:
    def __init__(self, rows: int, move: Callable[[int, int, int], None]) -> None:
        """`move(source, target, positions)` copies a row's beginning over another row."""
        self._rows = rows
        self._move = move
        self._waiting: deque[Sequence] = deque()
        self._prefilling: Sequence | None = None
        self._running: list[Sequence] = []
        self._tokens_per_ms = 0.4

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running) + (self._prefilling is not None)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def find(self, request_id: int) -> Sequence | None:
        return next((s for s in self._all() if s.id == request_id), None)

    def reap(self) -> list[Sequence]:
        """End what is out of time; forget and return what was ended from outside a step."""
        now = time.monotonic()
        done = []
        for sequence in self._all():
            if sequence.finished is None and sequence.expired(now):
                sequence.end("deadline")
            if sequence.finished is not None:
                done.append(sequence)
        for sequence in done:
            self._remove(sequence)
        return done

    def schedule(self) -> Batch:
        """Choose the next step. First come, first served."""
        if self._prefilling is None and self._waiting and len(self._running) < self._rows:
            self._prefilling = self._waiting.popleft()
            self._prefilling.begin(len(self._running))
        chunk: list[int] = []
        if self._prefilling:
            budget = SHARED_MS if self._running else ALONE_MS
            size = max(MIN_CHUNK, min(MAX_CHUNK, int(budget * self._tokens_per_ms)))
            start = self._prefilling.cached
            chunk = self._prefilling.ids[start : min(start + size, self._prefilling.prompt_tokens)]
        return Batch(self._prefilling, chunk, list(self._running))

    def postprocess(self, batch: Batch, first_token: int | None, tokens: list[int], prefill_ms: float) -> list[Sequence]:
        """Write down what a step computed: the prompt's first new token if it was completed, a token for each decoded.

        Returns the sequences that have a new token; those that finished with it are forgotten.
        """
        advanced = batch.decode
        for sequence, token in zip(advanced, tokens, strict=True):
            sequence.cached += 1
            sequence.append(token, len(tokens))
        if batch.prefill:
            batch.prefill.cached += len(batch.chunk)
            if len(batch.chunk) >= MIN_CHUNK:
                self._tokens_per_ms += 0.5 * (len(batch.chunk) / max(prefill_ms, 0.01) - self._tokens_per_ms)
            if first_token is not None:
                batch.prefill.append(first_token, 0)
                self._running.append(batch.prefill)
                self._prefilling = None
                advanced = [*advanced, batch.prefill]
        for sequence in advanced:
            if sequence.finished is not None:
                self._remove(sequence)
        return advanced

    def _all(self) -> list[Sequence]:
        return [*self._running, *([self._prefilling] if self._prefilling else []), *self._waiting]

    def _remove(self, sequence: Sequence) -> None:
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence is self._prefilling:
            self._prefilling = None
        else:
            last = self._running.pop()
            if last is not sequence:
                self._running[sequence.row] = last
                self._place(last, sequence.row)
            if self._prefilling:
                self._place(self._prefilling, len(self._running))

    def _place(self, sequence: Sequence, row: int) -> None:
        self._move(sequence.row, row, sequence.cached)
        sequence.row = row
