"""Answers to requests: the rest of their streams, and their last replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence as Many
from dataclasses import dataclass
from typing import Protocol

import msgspec

from protocol import messages as m
from protocol.errors import RequestError
from server.engines.base import Adaptive
from server.worker.sequence import Sequence
from server.worker.task import Prompt

WAITED = {"cancelled": "cancelled while it waited", "deadline": "its time ran out while it waited"}


@dataclass(frozen=True)
class Served:
    """Description of the model that every result carries."""

    model: str
    engine: str
    precision: str
    digest: str
    threads: int
    cache: str = ""
    """What the KV cache is made of."""
    adaptive: Adaptive | None = None
    """The engine, where its steps do not all take all of its threads."""
    calibrated: bool = False
    """Whether its weights were rounded by calibration."""
    instruction_set: str = ""
    """The engine native's."""

    def steps(self) -> tuple[int, int]:
        """Return the number of its steps so far, and the sum of their threads."""
        return (self.adaptive.steps, self.adaptive.steps_threads) if self.adaptive else (0, 0)

    def threads_since(self, before: tuple[int, int]) -> float:
        """Return the mean number of threads of the steps since `before`."""
        steps, threads = (now - then for now, then in zip(self.steps(), before, strict=True))
        return threads / steps if steps else float(self.threads)


class Answer(Protocol):
    """Answer to a request, from its arrival until its last reply."""

    @property
    def complete(self) -> bool:
        """True when all its tasks have finished."""
        ...

    @property
    def new_tokens(self) -> int:
        """Number of tokens written so far, as its ledgers will count them."""
        ...

    def prompts(self) -> Iterable[Prompt]:
        """Take the prompts that are to be put in line, since some of its tasks have finished."""
        ...

    def ready(self) -> Iterable[m.ScoredText]:
        """Take what is ready before the last reply, beside streams."""
        ...

    def rest(self) -> Many[m.Tokens]:
        """Take the text that its streams have not sent yet."""
        ...

    def last(self) -> m.Generated | m.Scored | m.Failure:
        """Return the last reply, once it is complete."""
        ...


class Continuations:
    """Answer to a generate request, from all its continuations."""

    def __init__(self, sequences: list[Sequence], served: Served) -> None:
        self._sequences = sequences
        self._served = served
        self._before = served.steps()

    @property
    def complete(self) -> bool:
        return all(s.finished is not None for s in self._sequences)

    @property
    def new_tokens(self) -> int:
        return sum(s.new_tokens for s in self._sequences)

    def prompts(self) -> tuple[()]:
        return ()

    def ready(self) -> tuple[()]:
        return ()

    def rest(self) -> list[m.Tokens]:
        return [piece for s in self._sequences if s.request.stream and (piece := s.take_piece())]

    def last(self) -> m.Generated | m.Failure:
        """Return a result if any of them had started, else an error."""
        sequences = self._sequences
        first = sequences[0]
        if fault := next((s.fault for s in sequences if s.fault), None):
            return failed(first.id, fault)
        if not any(s.started for s in sequences):
            reason = str(first.finished)
            return m.Failure(id=first.id, code=reason, message=WAITED[reason])
        return result(sequences, self._served, self._served.threads_since(self._before))


def failed(request_id: int, fault: RequestError) -> m.Failure:
    """Return the last reply to a request that ends with an error."""
    return m.Failure(id=request_id, code=fault.code, message=str(fault))


def result(sequences: list[Sequence], served: Served, threads_used: float) -> m.Generated:
    """Return the last reply to a request that had started."""
    first, *others = sequences
    settings = {name: getattr(first.request, name) for name in m.SETTINGS} | {"seed": first.seed}
    return m.Generated(
        id=first.id,
        text=first.text,
        ids=first.ids[first.prompt_tokens :],
        finish_reason=first.finished or "cancelled",
        prompt_truncated=first.dropped,
        settings=msgspec.to_builtins(settings),
        model=served.model,
        engine=served.engine,
        precision=served.precision,
        digest=served.digest,
        threads=served.threads,
        threads_used=threads_used,
        calibrated=served.calibrated,
        cache=served.cache,
        instruction_set=served.instruction_set,
        ledger=first.ledger(),
        logprobs=first.logprobs,
        score=first.score,
        others=[_continuation(s) for s in others],
    )


def prompt_tokens(reply: m.Generated | m.Scored | m.Failure) -> int:
    """Return the number of prompt tokens that a last reply counts: those of its ledgers, or computed for scores."""
    if isinstance(reply, m.Scored):
        return reply.computed
    if isinstance(reply, m.Generated):
        return reply.ledger.prompt_tokens + sum(other.ledger.prompt_tokens for other in reply.others)
    return 0


def _continuation(sequence: Sequence) -> m.Continuation:
    return m.Continuation(
        text=sequence.text,
        ids=sequence.ids[sequence.prompt_tokens :],
        finish_reason=sequence.finished or "cancelled",
        seed=sequence.seed,
        ledger=sequence.ledger(),
        logprobs=sequence.logprobs,
        score=sequence.score,
    )
