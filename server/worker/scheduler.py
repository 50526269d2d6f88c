"""Waiting and running tasks: which of them get a row, and what the next step computes.

Running rows decode in the engine's rows 0..B-1; prompts prefill in rows above. So the rows of a decode step are always
the first ones, and one that leaves is replaced by the last one. A prompt whose last chunk is next gets row B.

Groups (peers) take turns: each has at most one prompt that prefills, and those get a chunk each, one after the other;
one that has just come goes before them, so that a short one waits for the chunk that is being computed alone. Where the
engine can run rows together, a step has chunks of as many prompts as its time allows, and what is left of that begins
further prompts of groups whose own one ends in the step.
Within a group the first comes first, but a prompt that waits for room blocks nothing that fits, until it has waited for
KEEP_S: then rows are kept free for it. Windows of texts that are scored are prompts like others: they leave their rows
when they are computed, and a step has as many of them as there are rows.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence as Many
from dataclasses import dataclass

from protocol.errors import Internal
from server.engines.base import Engine, Together
from server.worker.prefix_cache import PrefixCache
from server.worker.task import Prompt, Row, Sampled, Task
from server.worker.turns import Turns

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
KEEP_S = 2.0
"""Time for which the first prompt of a group waits for room, before nobody else gets a row until it has its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a prompt that a step computes."""

    prompt: Prompt
    chunk: list[int]

    @property
    def is_last(self) -> bool:
        """True if the prompt is complete with it. Only before the step is run."""
        return self.prompt.cached + len(self.chunk) == self.prompt.prompt_tokens

    @property
    def wanted(self) -> list[int]:
        """Indices of those of its tokens whose logits the prompt needs. Only before the step is run."""
        return self.prompt.wanted(len(self.chunk))


@dataclass(slots=True)
class Batch:
    """Work of one step: chunks of prompts, and the rows that decode."""

    prefill: list[Part]
    decode: list[Row]

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the chunks."""
        return sum(len(part.chunk) for part in self.prefill)


@dataclass(slots=True)
class Outcome:
    """Results of a step."""

    chosen: list[tuple[Sampled, list[int]]]
    """New tokens of the rows that sample; a search has taken its own."""
    fresh: list[Many[Row]]
    """Rows that each prompt became, if its chunk was the last."""
    prefill_ms: float
    """Time that the chunks took, beside the rows that decoded."""


class Scheduler:
    def __init__(self, engine: Engine, cache: PrefixCache) -> None:
        """Make a scheduler without tasks. The engine only moves, copies out and restores rows here."""
        self._engine = engine
        self._together = isinstance(engine, Together)
        self._cache = cache
        self._waiting: Turns[Prompt] = Turns()
        self._heads: dict[int, tuple[Prompt, float]] = {}
        """Group -> the first of its waiting prompts, and since when it is that (monotonic)."""
        self._prefilling: list[Prompt] = []
        """At most one of each group, the one that is next first."""
        self._fresh: list[Prompt] = []
        """Those of them that have had no chunk yet."""
        self._jumped = False
        """Whether the last chunk was of one that had not been next."""
        self._running: list[Row] = []
        self._due = math.inf
        """Time before which no task is out of time (monotonic)."""
        self.tokens_per_ms = 0.4
        """Speed of prefilling: a guess until a chunk has been timed, then a moving average."""

    @property
    def waiting(self) -> int:
        """Number of prompts in line."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of rows in use."""
        return len(self._running) + len(self._prefilling)

    def add(self, prompt: Prompt) -> None:
        self._waiting.add(prompt.group, prompt)
        self._due = min(self._due, prompt.expires)

    def find(self, request_id: int) -> list[Task]:
        """Return all tasks of a request."""
        return [task for task in self._all() if task.id == request_id]

    def serves_only(self, request_id: int) -> bool:
        """Return True if there is no task of another request."""
        return all(task.id == request_id for task in self._all())

    def in_line(self) -> Iterator[Prompt]:
        """Return the waiting prompts in the order in which they will get a row."""
        return iter(self._waiting)

    def reap(self) -> list[Task]:
        """End tasks that are out of time; forget and return those that were ended from outside a step."""
        if (now := time.monotonic()) > self._due:
            self._due = math.inf
            for task in self._all():
                if task.finished is None and now > task.expires:
                    task.end("deadline")
                elif task.finished is None:
                    self._due = min(self._due, task.expires)
        ended: list[Task] = [row for row in self._running if row.finished is not None]
        ended += [prompt for prompt in self._prefilling if prompt.finished is not None]
        for task in ended:
            self._leave(task)
        given_up = [prompt for prompt in self._waiting if prompt.finished is not None] if self._waiting else []
        for prompt in given_up:
            self._waiting.drop(prompt.group, prompt)
            self._forget_head(prompt)
        return ended + given_up

    def schedule(self) -> Batch:
        """Choose the next step."""
        if self._waiting:
            self._admit({prompt.group for prompt in self._prefilling})
        parts = self._parts() if self._prefilling else []
        first = len(self._running)
        for part in parts:
            if part.is_last and part.prompt.width:
                self._settle(part.prompt, first)
                first += part.prompt.width
        return Batch(parts, list(self._running))

    def postprocess(self, batch: Batch, outcome: Outcome) -> list[Task]:
        """Give the results of a step to their tasks; return the tasks that may have something new to send.

        `release` forgets those that finished in the step.
        """
        now = time.monotonic()
        for row, tokens in outcome.chosen:
            row.advance(tokens, len(batch.decode), now)
        advanced: list[Task] = list(batch.decode)
        if batch.prompt_tokens >= MIN_CHUNK:
            self.tokens_per_ms += 0.5 * (batch.prompt_tokens / max(outcome.prefill_ms, 0.01) - self.tokens_per_ms)
        for part, fresh in zip(batch.prefill, outcome.fresh, strict=True):
            self._prefilling.remove(part.prompt)
            if fresh:
                self._decode_from_here(part.prompt, fresh)
                advanced += fresh
                continue
            self._prefilling.append(part.prompt)
            if part.prompt.finished is not None:
                advanced.append(part.prompt)
        return advanced

    def release(self, tasks: Many[Task]) -> None:
        """Forget the tasks that have finished.

        This is separate from `postprocess`, so that their last replies need not wait until their rows have been copied.
        """
        for task in tasks:
            if task.finished is not None:
                self._leave(task)

    def _admit(self, busy: set[int]) -> list[Prompt]:
        """Give rows to waiting prompts: one for each group that is not busy, in turns, as far as they fit."""
        now = time.monotonic()
        begun: list[Prompt] = []
        for group, queue in self._waiting.groups():
            head, since = self._heads.get(group, (None, now))
            if head is not queue[0]:
                self._heads[group] = (queue[0], now)
                since = now
            if group in busy:
                continue
            prompt = next((prompt for prompt in queue if self._fits(prompt)), None)
            if prompt is not queue[0] and now > since + KEEP_S:
                break
            if prompt is not None:
                self._begin(prompt)
                begun.append(prompt)
        return begun

    def _parts(self) -> list[Part]:
        """Return the chunks of the next step: as many tokens as its time allows, of one prompt or of several.

        All logits of a step are in memory: they are those of a fixed chunk at most. Prompts that have had no chunk go
        before the others, every second time at most.
        """
        left, room = self._most_tokens(), FIXED_CHUNK
        fresh = [] if self._jumped else self._fresh
        order = deque([*fresh, *(prompt for prompt in self._prefilling if prompt not in fresh)])
        self._jumped = order[0] is not self._prefilling[0]
        parts: list[Part] = []
        ending: list[Prompt] = []
        while order and left > 0:
            part = Part(order[0], self._chunk(order.popleft(), left))
            logits = len(part.wanted)
            fits = len(part.chunk) <= left and logits <= room
            if not parts or (fits and (part.is_last or len(part.chunk) >= MIN_CHUNK)):
                parts.append(part)
                left -= len(part.chunk)
                room -= logits
                if part.is_last and not part.prompt.branches:
                    ending.append(part.prompt)
            if not self._together:
                break
            if not order and self._waiting:
                order.extend(self._admit({prompt.group for prompt in self._prefilling if prompt not in ending}))
        begun = [part.prompt for part in parts]
        self._fresh = [prompt for prompt in self._fresh if prompt not in begun]
        return parts

    def _fits(self, prompt: Prompt) -> bool:
        """Return whether there is room for a prompt, and for all that it will decode in."""
        held = len(self._running) + sum(max(1, other.width) for other in self._prefilling)
        if held and (prompt.alone or any(task.alone for task in self._in_rows())):
            return False
        return held + max(1, prompt.width) <= self._engine.rows

    def _begin(self, prompt: Prompt) -> None:
        """Take a prompt out of the line and give it a row. It gets the part of it that the prefix cache knows."""
        self._waiting.take(prompt.group, prompt)
        self._forget_head(prompt)
        prompt.begin(self._free_rows(len(self._running))[0])
        self._prefilling.append(prompt)
        self._fresh.append(prompt)
        if prompt.reusable:
            with contextlib.suppress(MemoryError):  # what cannot be restored is computed
                self._restore(prompt)

    def _forget_head(self, prompt: Prompt) -> None:
        """Forget who was the first of a group that waits for nothing any more."""
        if prompt.group not in self._waiting:
            self._heads.pop(prompt.group, None)

    def _free_rows(self, first: int) -> list[int]:
        """Return the rows from `first` on in which nothing prefills."""
        taken = {prompt.row for prompt in self._prefilling}
        return [row for row in range(first, self._engine.rows) if row not in taken]

    def _settle(self, prompt: Prompt, first: int) -> None:
        """Move a prompt to the row `first`, and others out of all rows that it will decode in from there on."""
        others = [p for p in self._prefilling if p is not prompt and first <= p.row < first + prompt.width]
        for other in others:
            free = self._free_rows(first + prompt.width)
            if free:
                self._place(other, free[-1])  # far from those that decode, so that it moves once
            else:
                self._swap(prompt, other)
        if prompt.row != first:
            self._place(prompt, first)

    def _swap(self, prompt: Prompt, other: Prompt) -> None:
        """Let two prompts change their rows, where no third one is free."""
        kept = None
        try:
            kept = self._engine.export(other.row, other.cached) if other.cached else None
        except MemoryError:
            other.fail(Internal("the server ran out of memory while it made room; try again"))
        free = prompt.row
        self._place(prompt, other.row)
        other.row = free
        if kept is not None:
            self._engine.restore(free, kept)

    def _restore(self, prompt: Prompt) -> None:
        """Copy the known part of a prompt into its row; tokens whose logits are needed are always computed."""
        known = self._cache.get(prompt.ids[: prompt.reusable], prompt.owner)
        if known:
            self._engine.restore(prompt.row, known)
            prompt.restored(known.positions)

    def _most_tokens(self) -> int:
        """Return the number of tokens of prompts that the next step computes."""
        group = self._prefilling[0].group
        others = self._running or any(prompt.group != group for prompt in self._prefilling)
        others = others or self._waiting.has_others(group)
        budget = SHARED_MS if others else ALONE_MS
        return max(MIN_CHUNK, min(MAX_CHUNK, int(budget * self.tokens_per_ms)))

    def _chunk(self, prompt: Prompt, most: int) -> list[int]:
        """Return the next tokens of a prompt: `most`, but how one is cut that must be the same each time is fixed."""
        size = FIXED_CHUNK if prompt.fixed else most
        return prompt.ids[prompt.cached : min(prompt.cached + size, prompt.prompt_tokens)]

    def _decode_from_here(self, prompt: Prompt, rows: Many[Row]) -> None:
        """Let the rows that a prompt became decode, in the engine's next ones: a prompt before it may have failed."""
        if prompt.branches:
            self._remember(prompt)  # the request's other continuations start from it
        for row in rows:
            if row.row != len(self._running):
                self._place(row, len(self._running))
            self._running.append(row)

    def _in_rows(self) -> list[Task]:
        return [*self._running, *self._prefilling]

    def _all(self) -> Iterator[Task]:
        yield from self._in_rows()
        yield from self._waiting

    def _leave(self, task: Task) -> None:
        """Free the row of a task; the last row takes its place."""
        self._remember(task)
        prefilling = next((prompt for prompt in self._prefilling if prompt is task), None)
        if prefilling is not None:
            self._prefilling.remove(prefilling)
            self._fresh = [other for other in self._fresh if other is not prefilling]
            return
        last = self._running.pop()
        if last is not task:
            self._running[task.row] = last
            self._place(last, task.row)

    def _remember(self, task: Task) -> None:
        if task.reuses and not task.fault:
            with contextlib.suppress(MemoryError):  # what cannot be kept is computed again
                kept = task.ids[: task.cached]
                self._cache.put(kept, functools.partial(self._engine.export, task.row), task.owner)

    def _place(self, task: Task, row: int) -> None:
        if task.cached:
            self._engine.move(task.row, row, task.cached)
        task.row = row
