"""Interfaces of the tasks that the scheduler schedules.

A task has a row of the engine from `begin` on. It comes as a `Prompt`, waits in line for its row, and is prefilled
there. Its `prefilled` decides what follows: a `Sequence` decodes in its row, a `Search` spreads over several rows, its
`Lane`s, and a `Window` or `Lead` of texts to score has finished. A task that decodes is a `Row`.

    Sequence    Prompt, then Row: its own sampler chooses its tokens (`Sampled`)
    Search      Prompt; its Lanes are Rows, whose logits it takes together (`Joint`)
    Window      Prompt only

To cancel a task means to `end` it: it leaves its row before the next step. A fault that concerns a task alone ends it
by `fail`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from protocol import messages as m
from protocol.errors import RequestError
from server.engines.base import Engine, Hidden, Judged, Logits
from server.worker.sampling import Sampler


class Task(Protocol):
    """Tokens of a request in a row, or waiting for one."""

    row: int
    """Row of the engine that holds its keys and values; -1 while it waits for one."""
    ids: list[int]
    """Tokens of the prompt and new ones."""
    cached: int
    """Number of its tokens that have their keys and values in the row."""

    @property
    def id(self) -> int:
        """Id of the request. Tasks of the same request are cancelled together."""
        ...

    @property
    def alone(self) -> bool:
        """True if it runs with no other."""
        ...

    @property
    def reuses(self) -> bool:
        """True if it takes from the prefix cache and gives to it."""
        ...

    @property
    def owner(self) -> int:
        """Owner of what it takes from the prefix cache and gives to it; 0: all have it in common."""
        ...

    @property
    def finished(self) -> m.FinishReason | None:
        """Reason why it ended; None while it goes on. A finished task leaves its row after the step."""
        ...

    @property
    def fault(self) -> RequestError | None:
        """Error for the client, if a fault has ended the task."""
        ...

    @property
    def expires(self) -> float:
        """Time at which it is out of time, on the monotonic clock; infinite: never."""
        ...

    @property
    def silent(self) -> bool:
        """True if it streams and its client has been sent nothing yet: its first piece waits for nothing."""
        ...

    @property
    def interval_ms(self) -> int:
        """Least milliseconds between two of its pieces, after the first."""
        ...

    def end(self, reason: m.FinishReason) -> None:
        """End it from outside with its text so far: it is cancelled, or out of time."""
        ...

    def fail(self, fault: RequestError) -> None:
        """End it, and what belongs to it, with a fault."""
        ...

    def pieces(self) -> Many[m.Tokens]:
        """Take the text that it has for its client, if that streams, before its last reply."""
        ...


class Prompt(Task, Protocol):
    """Task that waits in line and is prefilled."""

    place: int
    """Place in line that its client has last been sent; 0 if none has."""

    @property
    def group(self) -> int:
        """Peer that it works for. Groups take turns."""
        ...

    @property
    def width(self) -> int:
        """Number of rows that it will decode in; 0: it is prefilled alone."""
        ...

    @property
    def streams(self) -> bool:
        """True if its client is sent its place in line."""
        ...

    @property
    def branches(self) -> bool:
        """True if others will begin with the same prompt, which is then kept as soon as it is computed."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Number of its tokens that are prefilled."""
        ...

    @property
    def reusable(self) -> int:
        """Number of its first tokens that may come from the prefix cache: their logits are not needed."""
        ...

    @property
    def looks_inside(self) -> bool:
        """True if `prefilled` needs the hidden states."""
        ...

    def begin(self, row: int) -> None:
        """Take a row; the prefill starts."""
        ...

    def restored(self, positions: int) -> None:
        """Note that the keys and values of its first `positions` tokens have come from the prefix cache."""
        ...

    def wanted(self, count: int) -> list[int]:
        """Return the indices of those of its next `count` tokens whose logits it needs."""
        ...

    @property
    def fixed(self) -> bool:
        """True if its prompt is cut the same way each time."""
        ...

    def asked(self, count: int) -> Question | None:
        """Return what it wants to be told of its next `count` tokens by an engine that judges; None: logits alone."""
        ...

    def prefilled(self, count: int, logits: Logits, hidden: Hidden | None, engine: Engine) -> Many[Row]:
        """Take the results of its next `count` tokens; return the rows that decode from now on, in the engine's order.

        `logits` are those of `wanted`, [len(wanted), vocabulary]; `hidden` are [count, width] if it `looks_inside`.
        Without rows, there is more to prefill, or it has finished. Raises: whatever choosing a token raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """Tokens of which a prompt wants to be told how likely they are, and who is to take it."""

    tokens: Many[int]
    """Successors of the last tokens of its chunk, as many of these."""
    members: NDArray[np.float32] | None
    """Tokens whose mass it wants to know, [vocabulary]."""
    take: Callable[[Judged], None]
    """Is called before `prefilled`."""


class Row(Task, Protocol):
    """Task that decodes: a token or more in each step."""

    @property
    def search(self) -> Joint | None:
        """Search that takes its logits together with those of other rows; None for a `Sampled`."""
        ...


class Sampled(Row, Protocol):
    """Row whose own sampler chooses its tokens one after the other."""

    sampler: Sampler

    def guess(self, price: float, most: int) -> list[int]:
        """Return at most `most` guesses at the tokens after the one that is due: those that are worth their price."""
        ...

    def learn(self, guessed: int, accepted: int) -> None:
        """Note that `guessed` tokens were tried, of which the first `accepted` were right."""
        ...

    def advance(self, tokens: Many[int], batch: int, now: float) -> None:
        """Take the tokens of a step of `batch` rows that ended `now`: one, or more where guesses were right."""
        ...


class Joint(Protocol):
    """Search, as the runner sees it."""

    @property
    def lanes(self) -> Many[Row]:
        """Rows, in the order in which `advance` takes their logits."""
        ...

    @property
    def looks_inside(self) -> bool:
        """True if `advance` needs the hidden states."""
        ...

    def advance(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:
        """Take a step's logits, [lanes, vocabulary], and hidden states, [lanes, width]; move rows in the engine."""
        ...

    def fail(self, fault: RequestError) -> None:
        """End it with a fault."""
        ...


def is_sampled(row: Row) -> TypeGuard[Sampled]:
    """Return True if a row's own sampler chooses its tokens."""
    return row.search is None
