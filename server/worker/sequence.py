"""Mutable state of one continuation of a generate request."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.errors import RequestError
from protocol.ledger import Ledger, ledger
from server.engines.base import Engine, Hidden, Logits
from server.worker.increments import Increments
from server.worker.processors import Processors
from server.worker.sampling import Sampler, sample
from server.worker.speculation import Guesser, Pace, PromptLookup
from server.worker.text import Vocabulary

SEEDS = 1 << 63


@dataclass(frozen=True)
class Generation:
    """Generate request whose prompt is ready: all that its continuations have in common."""

    id: int
    group: int
    request: m.Generate
    prompt: list[int]
    dropped: int
    """Number of tokens cut off the beginning of the prompt."""
    seed: int
    bad_words: list[list[int]]
    """Token sequences that must not come."""
    stops: frozenset[int]
    """Special tokens that end the text, since their names are stop strings."""
    vocabulary: Vocabulary
    received: float
    """Time at which the request came, on the monotonic clock."""
    tokenised: float = field(default_factory=time.monotonic)
    owner: int = 0
    """Owner of its entries in the prefix cache."""

    def processors(self) -> Processors:
        """Return new processors, since each text has its own history."""
        ends = [*self.vocabulary.ends, *self.stops]
        return Processors(self.request, len(self.prompt), ends, self.bad_words)

    def increments(self) -> Increments:
        """Return a new decoder for what is written after the prompt."""
        return self._begun.fork()

    @functools.cached_property
    def _begun(self) -> Increments:
        return self.vocabulary.increments(self.prompt)


class Sequence:
    """Prompt and the text written after it: a Task (task.py), first as Prompt, then as Row.

    `ids` are prompt and new tokens together; `cached` of them have their keys and values in the row. While it decodes,
    all but the last token are cached.
    """

    width = 1
    looks_inside = False
    search = None
    """None, since its own sampler chooses its tokens."""

    def __init__(self, generation: Generation, index: int = 0) -> None:
        """Make continuation number `index` of a request."""
        request = generation.request
        self.id = generation.id
        self.group = generation.group
        self.owner = generation.owner
        self.request = request
        self.index = index
        self.score: float | None = None
        """Sum of a beam's log-probabilities, divided by a power of its length."""
        self.alone = request.deterministic
        self.reuses = not request.deterministic
        self.branches = request.n > 1
        self.streams = request.stream and index == 0
        self.ids = list(generation.prompt)
        self.prompt_tokens = len(generation.prompt)
        self.dropped = generation.dropped
        self.seed = (generation.seed + index) % SEEDS
        self.cached = 0
        self.reused = 0
        self.row = -1
        self.place = 0
        self.finished: m.FinishReason | None = None
        self.fault: RequestError | None = None
        self.sampler = Sampler(request, self.seed, generation.processors())
        self.guesser: Guesser | None = PromptLookup() if request.speculate else None
        self.pace = Pace()
        self.silent = request.stream
        self.interval_ms = request.stream_interval_ms
        self.expires = generation.received + request.deadline_ms / 1000 if request.deadline_ms else math.inf
        self._vocabulary = generation.vocabulary
        self._increments = generation.increments()
        self._ends = generation.vocabulary.ends
        self._stops = generation.stops
        self._enders = self._stops if request.ignore_eos else self._stops.union(self._ends)
        self._longest = self.prompt_tokens + request.max_new_tokens
        self._looked_at = bool(request.stop) or request.logprobs is not None
        """Whether more is to be done with each token than to keep it."""
        self._text = ""
        """Text of the first `_decoded` tokens: of all where stop strings are looked for, else up to the last piece."""
        self._decoded = self.prompt_tokens
        self._sent_characters = 0
        self._sent_tokens = 0
        self._logprobs: list[m.TokenLogprobs] = []
        self._received = generation.received
        self._tokenised = generation.tokenised
        self._prefill_began = 0.0
        self._first_token = 0.0
        self._last_token = 0.0
        self._steps = 0
        self._batch_total = 0

    @property
    def fixed(self) -> bool:
        return not self.reuses

    def asked(self, count: int) -> None:  # noqa: ARG002 - it chooses from logits
        return None

    @property
    def reusable(self) -> int:
        return self.prompt_tokens - 1 if self.reuses else 0

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def started(self) -> bool:
        return self._prefill_began > 0

    def begin(self, row: int) -> None:
        self.row = row
        self._prefill_began = time.monotonic()

    def restored(self, positions: int) -> None:
        self.cached = positions
        self.reused = positions

    def wanted(self, count: int) -> list[int]:
        return [count - 1] if self.cached + count == self.prompt_tokens else []

    def prefilled(
        self,
        count: int,
        logits: Logits,
        hidden: Hidden | None,  # noqa: ARG002 - a search uses these two
        engine: Engine,  # noqa: ARG002
    ) -> Many[Sequence]:
        self.cached += count
        if not len(logits):
            return ()
        (token,) = sample(logits, [self.sampler], [self.ids])
        if isinstance(token, Exception):
            raise token
        self.count(0)
        self._take(token)
        return (self,)

    def guess(self, price: float, most: int) -> list[int]:
        if self.guesser is None:
            return []
        most = min(self.request.speculate, self._longest - len(self.ids) - 1, most, self.pace.wanted(price))
        return self.guesser.guess(self.ids, most) if most > 0 else []

    def learn(self, guessed: int, accepted: int) -> None:
        self.pace.learn(guessed, accepted)

    def advance(self, tokens: Many[int], batch: int, now: float) -> None:
        self._last_token = now
        self._steps += 1
        self._batch_total += batch
        for token in tokens:
            if self.finished is None:
                self.cached += 1
                self._take(token)

    def count(self, batch: int) -> None:
        """Note the end of a step of `batch` rows (0: the prefill)."""
        self._last_token = time.monotonic()
        if batch:
            self._steps += 1
            self._batch_total += batch
        else:
            self._first_token = self._last_token

    def take(self, tokens: Many[int]) -> None:
        """Take new tokens, up to one that ends the text."""
        for token in tokens:
            if self.finished is None:
                self._take(token)

    def _take(self, token: int) -> None:
        self.ids.append(token)
        if self._looked_at:
            self._look_at(token)
        if token in self._enders:
            self.finish("stop" if token not in self._ends or self.request.ignore_eos else "eos")
        elif len(self.ids) >= self._longest:
            self.finish("length")

    def _look_at(self, token: int) -> None:
        """Note why a token was chosen, and look whether its text completes a stop string."""
        if self.sampler.explanations:
            explanation = self.sampler.explanations.popleft()
            own = self._vocabulary.alternative(token, explanation.logprob)
            top = [self._vocabulary.alternative(other, logprob) for other, logprob in explanation.top]
            self._logprobs.append(m.TokenLogprobs(text=own.text, name=own.name, logprob=own.logprob, top=top))
        if self.request.stop:
            self._decode()

    def fail(self, fault: RequestError) -> None:
        self.fault = fault
        self.finished = "cancelled"

    def end(self, reason: m.FinishReason) -> None:
        self.finish(reason)

    def finish(self, reason: m.FinishReason) -> None:
        """End the text here, if nothing has ended it before."""
        if self.finished is None:
            self._decode()
            self._write(self._increments.flush())
            self.finished = self.finished or reason

    def _decode(self) -> None:
        """Write the text of the tokens that have none yet."""
        if self._decoded < len(self.ids):
            tokens = self.ids[self._decoded :]
            self._decoded = len(self.ids)
            self._write(self._increments.push_all(tokens))

    def _write(self, piece: str) -> None:
        """Add to the text; a stop string that this completes ends it, unless tokens are missing to `min_new_tokens`."""
        before = len(self._text)
        self._text += piece
        if not self.request.stop:
            return
        stops = self.request.stop if piece and self.new_tokens >= self.request.min_new_tokens else []
        found = [at for stop in stops if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.finished = "stop"

    def _held_back(self) -> int:
        """Return the number of characters at the end that could be the beginning of a stop string."""
        held = 0
        for stop in self.request.stop:
            for n in range(min(len(stop) - 1, len(self._text)), held, -1):
                if self._text.endswith(stop[:n]):
                    held = n
                    break
        return held

    def pieces(self) -> Many[m.Tokens]:
        piece = self.take_piece() if self.request.stream else None
        return () if piece is None else (piece,)

    def take_piece(self) -> m.Tokens | None:
        """Take the text and tokens written since the last piece; None if there are none."""
        self._decode()
        end = len(self._text)
        if self.request.stop and not self.finished:
            end = max(self._sent_characters, end - self._held_back())
        text = self._text[self._sent_characters : end]
        ids = self.ids[self.prompt_tokens + self._sent_tokens :]
        if not ids and not text:
            return None
        logprobs = self._logprobs[self._sent_tokens :] if self._logprobs else []
        self.silent = False
        self._sent_characters, self._sent_tokens = end, self._sent_tokens + len(ids)
        return m.Tokens(id=self.id, text=text, ids=ids, index=self.index, logprobs=logprobs)

    @property
    def text(self) -> str:
        """Text so far, up to a stop string."""
        self._decode()
        return self._text

    @property
    def logprobs(self) -> list[m.TokenLogprobs]:
        """Log-probabilities of each new token, if asked for."""
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
