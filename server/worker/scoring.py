"""Log-probabilities of a given text, by sliding windows.

A text longer than the context is cut into overlapping windows. Each scores only the tokens that the window before did
not, so that all but those of the first window have at least context - stride tokens before them
(https://huggingface.co/docs/transformers/perplexity). Unlike there, windows that are a whole context apart overlap by
one token: the first of each would have none before it, and no score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from protocol import messages as m
from protocol.errors import BadRequest
from server.engines.base import Engine, Hidden, Logits
from server.link import Work
from server.worker.softmax import log_totals

MAX_COMPUTED = 4_000_000
"""Most tokens that are computed for one text, those of every window counted: some minutes of a model of 124 M."""
STRIDE = 512
"""Distance of two windows by default, where half the context is not less."""
MAX_TOLD = 50_000
"""Most alternatives of one answer: some 3 MB."""


class Scoring:
    """A text being scored: a Prompt (task.py) that is prefilled window after window and never decodes.

    The task is its own Answer (replies.py) too.
    """

    alone = False
    reuses = False
    streams = False
    silent = False
    interval_ms = 0
    branches = False
    looks_inside = False
    width = 0
    new_tokens = 0
    owner = 0

    def __init__(
        self,
        work: Work,
        request: m.Score,
        tokens: list[int],
        sizes: list[int],
        context: int,
        received: float,
        told: Callable[[int, float], m.Alternative],
    ) -> None:
        """Make a task; `sizes` are the tokens' lengths in bytes, `received` is on the monotonic clock, and `told` makes
        what is told of a possible token.
        """
        self.id = work.id
        self.group = work.group
        self.row = -1
        self.place = 0
        self.cached = 0
        self.finished: m.FinishReason | None = None
        self.fault = ""
        self._tokens = tokens
        self._sizes = sizes
        self._context = context
        self._stride = stride_of(request, context)
        self._logprobs = np.zeros(len(tokens), np.float64)  # [tokens]
        self._count = request.top
        self._told = told
        self._top: list[list[m.Alternative]] = [[]]
        """As far as they are scored; none for the first token."""
        self._begin = 0
        self._scored = 1  # nothing comes before the first token
        self._received = received
        self.expires = received + request.deadline_ms / 1000 if request.deadline_ms else math.inf
        self.ids = tokens[:context]

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in the present window."""
        return len(self.ids)

    def begin(self, row: int) -> None:
        self.row = row

    def restored(self, positions: int) -> None:
        raise NotImplementedError("a text is scored without the prefix cache")

    def end(self, reason: m.FinishReason) -> None:
        self.finished = reason

    def fail(self, fault: str) -> None:
        self.fault = fault
        self.finished = "cancelled"

    def pieces(self) -> tuple[m.Tokens, ...]:
        return ()

    def wanted(self, count: int) -> list[int]:
        """Return which of the window's next `count` tokens have a successor that is not scored yet."""
        first = max(0, self._scored - 1 - self._begin - self.cached)
        last = min(count, self.prompt_tokens - 1 - self.cached)
        return list(range(first, last))

    def prefilled(
        self,
        count: int,
        logits: Logits,
        hidden: Hidden | None,  # noqa: ARG002 - a search uses these two
        engine: Engine,  # noqa: ARG002
    ) -> tuple[()]:
        wanted = self.wanted(count)
        if wanted:
            at = self._begin + self.cached + wanted[0] + 1
            successors = self._tokens[at : at + len(wanted)]
            totals = log_totals(logits)
            self._logprobs[at : at + len(wanted)] = logits[np.arange(len(wanted)), successors] - totals
            if self._count:
                self._top.extend(self._likeliest(row, total) for row, total in zip(logits, totals, strict=True))
            self._scored = at + len(wanted)
        self.cached += count
        if self.cached < self.prompt_tokens:
            return ()
        if self._scored >= len(self._tokens):
            self.finished = "length"
        else:
            self._begin += self._stride
            self.ids = self._tokens[self._begin : self._begin + self._context]
            self.cached = 0
        return ()

    def _likeliest(self, logits: Logits, total: np.float64) -> list[m.Alternative]:
        """Return the likeliest tokens, best first, of equal ones that with the lowest number.  # [vocabulary]"""
        if self._count == 1:
            best = logits.argmax(0, keepdims=True)
        else:
            best = np.sort(np.argpartition(logits, len(logits) - self._count)[len(logits) - self._count :])
            best = best[np.argsort(-logits[best], kind="stable")]
        logs = logits[best] - total
        return list(map(self._told, best.tolist(), logs.tolist()))

    def rest(self) -> tuple[m.Tokens, ...]:
        return ()

    @property
    def complete(self) -> bool:
        return self.finished is not None

    def last(self) -> m.Scored | m.Failure:
        if self.fault:
            return m.Failure(id=self.id, code="internal", message=self.fault)
        if self.finished != "length":
            return m.Failure(id=self.id, code=str(self.finished), message="ended before the whole text was scored")
        loss = -float(self._logprobs[1:].sum())
        count = max(1, len(self._tokens) - 1)
        size = max(1, sum(self._sizes[1:]))
        return m.Scored(
            id=self.id,
            ids=self._tokens,
            logprobs=[None, *self._logprobs[1:].tolist()],
            perplexity=math.exp(min(loss / count, 700.0)),
            bits_per_byte=loss / math.log(2) / size,
            elapsed_ms=(time.monotonic() - self._received) * 1000,
            top=self._top if self._count else [],
        )


def stride_of(request: m.Score, context: int) -> int:
    """Return how far apart two windows are."""
    return min(request.stride or min(STRIDE, context // 2), context - 1)


def check_cost(tokens: int, stride: int, context: int) -> None:
    """Check that a text of `tokens` tokens is not too much work. Raises: BadRequest, which says what would do."""
    more = max(0, tokens - context)
    windows = 1 + math.ceil(more / stride)
    if windows * context <= MAX_COMPUTED:
        return
    enough = math.ceil(more / (MAX_COMPUTED // context - 1))
    raise BadRequest(
        f"score: {tokens} tokens at a stride of {stride} are {windows} windows of {context} tokens, "
        f"{windows * context:,} tokens to compute, and the limit is {MAX_COMPUTED:,}; a stride of {enough} keeps to "
        "it, and so does the text in parts"
    )


def check_told(tokens: int, top: int) -> None:
    """Check that one answer has room for what is to be told. Raises: BadRequest, which says what would do."""
    if tokens * top > MAX_TOLD:
        raise BadRequest(
            f"score: {top} alternatives for each of {tokens} tokens are more than the {MAX_TOLD:,} of one answer; ask "
            f"for a smaller `top`, or send the text in parts of {MAX_TOLD // top} tokens"
        )
