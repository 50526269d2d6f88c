"""One generation's whole mutable state."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

import msgspec

from protocol import messages as m
from protocol.ledger import Ledger, ledger
from server.link import Work
from server.worker.sampling import Sampler
from server.worker.speculation import Guesser, Pace, PromptLookup
from server.worker.text import Increments

if TYPE_CHECKING:
    from server.worker.search import Search


class Sequence:
    """A prompt and what has been written after it.

    `ids` are prompt and new tokens together; `cached` of them have their keys and values in the row. While it decodes,
    all but the last token are cached.
    """

    def __init__(
        self,
        work: Work,
        request: m.Generate,
        index: int,
        prompt: list[int],
        dropped: int,
        seed: int,
        increments: Increments,
        sampler: Sampler,
        end_of_text: int,
        received: float,
    ) -> None:
        """`index` counts the continuations of one request, `dropped` the tokens cut off its prompt; `received` is monotonic."""
        self.id = work.id
        self.group = work.group
        self.request = request
        self.index = index
        self.search: Search | None = None
        """It is the first of a search's outputs, and its prompt is the search's."""
        self.score: float | None = None
        """Of a beam: the sum of its log-probabilities by its length."""
        self.alone = request.deterministic
        """It runs with no other."""
        self.reuses = not request.deterministic
        """It takes from the prefix cache and gives to it."""
        self.branches = request.n > 1
        """Other continuations of the same prompt come after it."""
        self.streams = request.stream and index == 0
        """It is told its place in the queue."""
        self.ids = list(prompt)
        self.prompt_tokens = len(prompt)
        self.dropped = dropped
        self.seed = seed
        self.cached = self.reused = 0
        self.row = -1
        self.place = 0
        """Its place in the queue, as last told."""
        self.finished: m.FinishReason | None = None
        self.fault = ""
        """What went wrong, for a sequence that a fault has ended."""
        self.sampler = sampler
        self.guesser: Guesser | None = PromptLookup() if request.speculate else None
        self.pace = Pace()
        self.sent_at = float("-inf")
        self._increments = increments
        self._end_of_text = end_of_text
        self._text = ""
        self._sent_characters = 0
        self._sent_tokens = 0
        self._logprobs: list[m.TokenLogprobs] = []
        self._received = received
        self._tokenised = time.monotonic()
        self._prefill_began = self._first_token = self._last_token = 0.0
        self._steps = self._batch_total = 0
        self._expires = received + request.deadline_ms / 1000 if request.deadline_ms else None

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def width(self) -> int:
        """How many rows it takes to decode it."""
        return self.search.width if self.search else 1

    @property
    def outputs(self) -> list[Sequence]:
        return [self]

    @property
    def started(self) -> bool:
        return self._prefill_began > 0

    def expired(self, now: float) -> bool:
        return self._expires is not None and now > self._expires

    def guess(self, batch: int, context: int) -> list[int]:
        """Tokens that may come after the one that is due, as many as pay in a step of so many sequences."""
        if self.guesser is None:
            return []
        room = min(self.request.max_new_tokens - self.new_tokens, context - len(self.ids)) - 1
        most = min(self.request.speculate, room, self.pace.wanted(batch))
        return self.guesser.guess(self.ids, most) if most > 0 else []

    def begin(self, row: int) -> None:
        """It has got a row; its prefill starts."""
        self.row = row
        self._prefill_began = time.monotonic()

    def wanted(self, count: int) -> list[int]:
        """Which of the prompt's next `count` tokens' logits are needed: the last one's of the prompt, if it is among them."""
        return [count - 1] if self.cached + count == self.prompt_tokens else []

    def append(self, token: int, batch: int) -> None:
        """Take a new token, drawn in a decode step of `batch` sequences (0: it came out of the prefill)."""
        if not self.fault:
            self.count(batch)
            self.take([token])

    def count(self, batch: int) -> None:
        """A step of `batch` rows (0: the prefill) is done."""
        self._last_token = time.monotonic()
        if batch:
            self._steps += 1
            self._batch_total += batch
        else:
            self._first_token = self._last_token

    def take(self, tokens: Many[int]) -> None:
        """Take new tokens, up to one that ends it."""
        for token in tokens:
            if self.finished is None:
                self._take(token)

    def _take(self, token: int) -> None:
        self.ids.append(token)
        if self.sampler.explanations:
            explanation = self.sampler.explanations.popleft()
            top = [m.Alternative(id=i, text=self._increments.text_of(i), logprob=p) for i, p in explanation.top]
            self._logprobs.append(
                m.TokenLogprobs(text=self._increments.text_of(token), logprob=explanation.logprob, top=top)
            )
        self._text += self._increments.push(token)
        if token == self._end_of_text and not self.request.ignore_eos:
            self.finish("eos")
        elif self.request.stop and (at := self._stop_at()) is not None:
            self._text = self._text[:at]
            self.finished = "stop"
        elif self.new_tokens >= self.request.max_new_tokens:
            self.finish("length")

    def fail(self, fault: str) -> None:
        """Something went wrong with this sequence alone, or its search: its request ends in an error."""
        for output in self.search.outputs if self.search else [self]:
            output.fault, output.finished = fault, "cancelled"

    def end(self, reason: m.FinishReason) -> None:
        """End it from outside: cancelled, or out of time."""
        for output in self.search.outputs if self.search else [self]:
            output.finish(reason)

    def finish(self, reason: m.FinishReason) -> None:
        if self.finished is None:
            self.finished = reason
            self._text += self._increments.flush()

    def _stop_at(self) -> int | None:
        """Where the earliest stop string begins in text that has not been sent, if one is there."""
        found = [at for stop in self.request.stop if (at := self._text.find(stop, self._sent_characters)) >= 0]
        return min(found, default=None)

    def _held_back(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        held = 0
        for stop in self.request.stop:
            for n in range(min(len(stop) - 1, len(self._text)), held, -1):
                if self._text.endswith(stop[:n]):
                    held = n
                    break
        return held

    def take_piece(self) -> m.Tokens | None:
        """What has been written since the last piece; None if there is nothing."""
        end = len(self._text) if self.finished else max(self._sent_characters, len(self._text) - self._held_back())
        text = self._text[self._sent_characters : end]
        ids = self.ids[self.prompt_tokens + self._sent_tokens :]
        if not ids and not text:
            return None
        logprobs = self._logprobs[self._sent_tokens :]
        self._sent_characters, self._sent_tokens = end, self.new_tokens
        return m.Tokens(id=self.id, text=text, ids=ids, index=self.index, logprobs=logprobs)

    @property
    def text(self) -> str:
        """What has been written, without what stands behind a stop string."""
        return self._text

    @property
    def logprobs(self) -> list[m.TokenLogprobs]:
        """One for each new token, where asked for."""
        return self._logprobs

    def ledger(self) -> Ledger:
        queued_until = self._prefill_began or time.monotonic()
        first = self._first_token or time.monotonic()
        return ledger(
            queue_ms=(queued_until - self._tokenised) * 1000,
            tokenise_ms=(self._tokenised - self._received) * 1000,
            prefill_ms=(first - self._prefill_began) * 1000 if self.started else 0.0,
            decode_ms=(self._last_token - self._first_token) * 1000 if self._first_token else 0.0,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            reused_tokens=self.reused,
            guessed_tokens=self.pace.guessed,
            accepted_tokens=self.pace.accepted,
            mean_batch=self._batch_total / self._steps if self._steps else 0.0,
        )


def result(
    sequences: list[Sequence], *, model: str, engine: str, precision: str, digest: str, threads: int
) -> m.Generated:
    """The last reply to a request, from all its continuations."""
    first, *others = sequences
    settings = {name: getattr(first.request, name) for name in m.SETTINGS} | {"seed": first.seed}
    return m.Generated(
        id=first.id,
        text=first.text,
        ids=first.ids[first.prompt_tokens :],
        finish_reason=first.finished or "cancelled",
        prompt_truncated=first.dropped,
        settings=msgspec.to_builtins(settings),
        model=model,
        engine=engine,
        precision=precision,
        digest=digest,
        threads=threads,
        ledger=first.ledger(),
        logprobs=first.logprobs,
        score=first.score,
        others=[
            m.Continuation(
                text=s.text,
                ids=s.ids[s.prompt_tokens :],
                finish_reason=s.finished or "cancelled",
                seed=s.seed,
                ledger=s.ledger(),
                logprobs=s.logprobs,
                score=s.score,
            )
            for s in others
        ],
    )
