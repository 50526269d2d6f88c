"""Waiting and running tasks: which of them get a row, and what the next step computes.

Running rows decode in the engine's rows 0..B-1; at most one prompt prefills, in row B. So the rows of a decode step are
always the first ones, and one that leaves is replaced by the last one. Groups (peers) with waiting prompts take turns;
within a group the first comes first.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence as Many
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from server.engines.base import Engine
from server.worker.prefix_cache import PrefixCache
from server.worker.task import Prompt, Row, Sampled, Task

ALONE_MS = 160.0
"""Time for one prefill chunk when nothing else runs. It bounds how long a cancellation takes."""
SHARED_MS = 40.0
"""Time for one prefill chunk while others decode. It bounds the gap in their streams."""
MIN_CHUNK = 16
"""Number of tokens of the smallest chunk."""
MAX_CHUNK = 512
"""Number of tokens of the largest chunk."""
FIXED_CHUNK = 128
"""Number of tokens of every chunk of a prompt that must be cut the same way each time."""

AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(slots=True)
class Batch:
    """Work of one step: a chunk of one prompt (or None), and the rows that decode."""

    prefill: Prompt | None
    chunk: list[int]
    decode: list[Row]


@dataclass(slots=True)
class Outcome:
    """Results of a step."""

    chosen: list[tuple[Sampled, list[int]]]
    """New tokens of the rows that sample; a search has taken its own."""
    fresh: Many[Row]
    """Rows that the prompt became, if its chunk was the last."""
    prefill_ms: float


class Scheduler:
    def __init__(self, engine: Engine, cache: PrefixCache) -> None:
        """Make a scheduler without tasks. The engine only moves, copies out and restores rows here."""
        self._engine = engine
        self._cache = cache
        self._waiting: OrderedDict[int, deque[Prompt]] = OrderedDict()
        """Group -> its waiting prompts; the group that is next comes first."""
        self._prefilling: Prompt | None = None
        self._running: list[Row] = []
        self.tokens_per_ms = 0.4
        """Speed of prefilling: a guess until a chunk has been timed, then a moving average."""

    @property
    def waiting(self) -> int:
        """Number of prompts in line."""
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def running(self) -> int:
        """Number of rows in use."""
        return len(self._running) + (self._prefilling is not None)

    def add(self, prompt: Prompt) -> None:
        self._waiting.setdefault(prompt.group, deque()).append(prompt)

    def find(self, request_id: int) -> list[Task]:
        """Return all tasks of a request."""
        return [task for task in self._all() if task.id == request_id]

    def serves_only(self, request_id: int) -> bool:
        """Return True if there is no task of another request."""
        return all(task.id == request_id for task in self._all())

    def in_line(self) -> Iterator[Prompt]:
        """Return the waiting prompts in the order in which they will get a row."""
        for turn in zip_longest(*self._waiting.values()):
            yield from (prompt for prompt in turn if prompt is not None)

    def reap(self) -> list[Task]:
        """End tasks that are out of time; forget and return those that were ended from outside a step."""
        now = time.monotonic()
        ended: list[Task] = _over(self._in_rows(), now)
        for task in ended:
            self._leave(task)
        for group, queue in list(self._waiting.items()):
            given_up = _over(queue, now)
            ended += given_up
            for prompt in given_up:
                queue.remove(prompt)
            if not queue:
                del self._waiting[group]
        return ended

    def schedule(self) -> Batch:
        """Choose the next step."""
        if self._prefilling is None and self._waiting:
            self._admit()
        prompt = self._prefilling
        return Batch(prompt, self._chunk(prompt) if prompt else [], list(self._running))

    def postprocess(self, batch: Batch, outcome: Outcome) -> list[Task]:
        """Give the results of a step to their tasks; return the tasks that may have something new to send.

        `release` forgets those that finished in the step.
        """
        for row, tokens in outcome.chosen:
            row.advance(tokens, len(batch.decode))
        prompt = batch.prefill
        if prompt is None:
            return list(batch.decode)
        if len(batch.chunk) >= MIN_CHUNK:
            self.tokens_per_ms += 0.5 * (len(batch.chunk) / max(outcome.prefill_ms, 0.01) - self.tokens_per_ms)
        if not outcome.fresh:
            return [*batch.decode, prompt] if prompt.finished is not None else list(batch.decode)
        if prompt.branches:
            self._remember(prompt)  # the request's other continuations start from it
        self._running += outcome.fresh
        self._prefilling = None
        return [*batch.decode, *outcome.fresh]

    def release(self, tasks: Many[Task]) -> None:
        """Forget the tasks that have finished.

        This is separate from `postprocess`, so that their last replies need not wait until their rows have been copied.
        """
        for task in tasks:
            if task.finished is not None:
                self._leave(task)

    def _admit(self) -> None:
        """Give the next prompt in line a row, with the part of it that the prefix cache knows."""
        group, queue = next(iter(self._waiting.items()))
        prompt = queue[0]
        alone = prompt.alone or any(row.alone for row in self._running)
        if (self._running and alone) or len(self._running) + prompt.width > self._engine.rows:
            return
        queue.popleft()
        self._waiting.move_to_end(group)
        if not queue:
            del self._waiting[group]
        self._prefilling = prompt
        prompt.begin(len(self._running))
        if prompt.reuses:
            with contextlib.suppress(MemoryError):  # what cannot be restored is computed
                self._restore(prompt)

    def _restore(self, prompt: Prompt) -> None:
        """Copy the known part of a prompt into its row; the last token is always computed, for its logits."""
        known = self._cache.get(prompt.ids[: prompt.prompt_tokens - 1])
        if known:
            self._engine.restore(prompt.row, known)
            prompt.restored(known.positions)

    def _chunk(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt that the next step computes."""
        size = FIXED_CHUNK  # how a prompt is cut shows in the last bits of its logits
        if prompt.reuses:
            budget = SHARED_MS if self._running else ALONE_MS
            size = max(MIN_CHUNK, min(MAX_CHUNK, int(budget * self.tokens_per_ms)))
        return prompt.ids[prompt.cached : min(prompt.cached + size, prompt.prompt_tokens)]

    def _in_rows(self) -> list[Task]:
        return [*self._running, self._prefilling] if self._prefilling else list(self._running)

    def _all(self) -> Iterator[Task]:
        yield from self._in_rows()
        for queue in self._waiting.values():
            yield from queue

    def _leave(self, task: Task) -> None:
        """Free the row of a task; the last row takes its place."""
        self._remember(task)
        if task is self._prefilling:
            self._prefilling = None
            return
        last = self._running.pop()
        if last is not task:
            self._running[task.row] = last
            self._place(last, task.row)
        if self._prefilling:
            self._place(self._prefilling, len(self._running))

    def _remember(self, task: Task) -> None:
        if task.reuses and not task.fault:
            with contextlib.suppress(MemoryError):  # what cannot be kept is computed again
                self._cache.put(task.ids[: task.cached], lambda positions: self._engine.export(task.row, positions))

    def _place(self, task: Task, row: int) -> None:
        self._engine.move(task.row, row, task.cached)
        task.row = row


def _over(tasks: Iterable[AnyTask], now: float) -> list[AnyTask]:
    """End the tasks that are out of time; return those that have ended."""
    ended = []
    for task in tasks:
        if task.finished is None and task.expired(now):
            task.end("deadline")
        if task.finished is not None:
            ended.append(task)
    return ended
