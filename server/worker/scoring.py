"""Scores of given texts: each token's log-probability, rank and more, by windows that are prompts of their own.

A text longer than the context is cut into overlapping windows. Each scores only the tokens that the window before did
not, so that all but those of the first window have at least context - stride tokens before them
(https://huggingface.co/docs/transformers/perplexity). Unlike there, windows that are a whole context apart overlap by
one token: the first of each would have none before it, and no score. The last token of a window is not computed, so a
text with something before it that fits the context but for that one is one window, as in lm-evaluation-harness.

Windows of a text, and texts, are rows of one step as far as they fit: no score depends on what is computed beside it.
Texts with the same context take it from the prefix cache, where a `Lead` puts it before them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import messages as m
from protocol.errors import BadRequest
from server.engines.base import Engine, Hidden, Judged, Logits
from server.link import Work
from server.worker import words as words_of
from server.worker.judging import judge
from server.worker.task import Question
from server.worker.text import Spans
from server.worker.words import Boundaries, Word

MAX_COMPUTED = 4_000_000
"""Most tokens that are computed for one request, those of every window counted: some minutes of a model of 124 M."""
STRIDE = 512
"""Distance of two windows by default, where half the context is not less."""
MAX_TOLD = 50_000
"""Most alternatives of one answer: some 3 MB."""
AHEAD = 96
"""Most windows of a request that are in line: what a step takes of short ones, and the next."""
SHARED = 24
"""Least tokens of a context that several texts share for which it is computed by itself: a copy costs less."""


@dataclass(frozen=True)
class Told:
    """What a request wants to be told, and by what it is."""

    top: int
    alternative: Callable[[int, float], m.Alternative]
    """Makes what is told of a possible token."""
    boundaries: Boundaries | None = None
    """Which tokens words begin with, where words are told."""

    @property
    def members(self) -> NDArray[np.float32] | None:
        """1 for tokens that begin a word and 0 for others, [vocabulary], where words are told."""
        return None if self.boundaries is None else self.boundaries.members


@dataclass(frozen=True)
class Piece:
    """A text to score, and the tokens before it."""

    lead: list[int]
    spans: Spans


class Windows:
    """Cuts of one text: where each begins and ends, and from which token on it scores."""

    def __init__(self, lead: int, tokens: int, stride: int, context: int, *, after: bool) -> None:
        """`after`: whether what follows the last token is wanted, which is then computed too."""
        self.first = max(lead, 1)  # nothing comes before the first token
        self.end = lead + tokens
        self._after = int(after)
        self._stride, self._context = stride, context
        most = context + (1 if lead and not after else 0)
        self.begin = max(0, lead + min(tokens, stride) - most)
        self._one = self.end - self.begin <= most

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield begin, end of what is computed, and the first token that is scored."""
        begin, scored = self.begin, self.first
        while True:
            end = self.end if self._one else min(self.end, begin + self._context)
            last = end == self.end
            yield begin, end - 1 + (self._after if last else 0), scored
            if last:
                return
            scored, begin = end, begin + self._stride

    @property
    def count(self) -> int:
        return 1 if self._one else 1 + math.ceil((self.end - self.begin - self._context) / self._stride)

    @property
    def computed(self) -> int:
        """Number of tokens that all of them compute, at most."""
        return self.count * min(self._context, self.end - self.begin)


def find(piece: Piece, boundaries: Boundaries) -> list[Word]:
    """Return the words of a text after its lead. Raises: BadRequest."""
    spans = piece.spans
    return words_of.find(spans.text, spans.ids, spans.offsets, boundaries, boundaries.after(piece.lead))


def spelled(found: Many[Word], text: str, tokens: Many[float | None], masses: Many[float | None]) -> m.Words:
    """Return what is told of words, from the log-probabilities of a text's tokens and the masses of words' beginnings:
    at each token and after the last.
    """
    return m.Words(
        texts=[text[word.begin : word.end] for word in found],
        starts=[word.begin for word in found],
        ends=[word.end for word in found],
        tokens=[word.first for word in found],
        logprobs=words_of.logprobs(found, tokens, masses),
    )


class TextScores:
    """Scores of one text, as its windows find them."""

    def __init__(self, index: int, piece: Piece, windows: Windows, told: Told) -> None:
        """Raises: BadRequest for a text whose words cannot be told."""
        self.index, self.piece = index, piece
        self.told = told
        self.windows = windows
        self.tokens = [*piece.lead, *piece.spans.ids]
        self.left = windows.count
        """Windows that are not done."""
        self.shared = False
        """Whether others have the same lead, which is computed by itself."""
        count = len(piece.spans.ids)
        self._logprobs, self._entropies = np.zeros(count), np.zeros(count)
        self._ranks, self._greedy = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._masses = np.zeros(count + 1) if told.members is not None else None
        self._top: list[list[m.Alternative]] = [[] for _ in range(count)] if told.top else []
        self._words = find(piece, told.boundaries) if told.boundaries else []
        self.unscored = windows.first - len(piece.lead)
        """1 where nothing stands before the first token."""
        self.sum = 0.0

    @property
    def scored(self) -> int:
        """Number of tokens that have a log-probability."""
        return len(self.piece.spans.ids) - self.unscored

    @property
    def size(self) -> int:
        """Bytes of the tokens that have one."""
        offsets = self.piece.spans.offsets
        return max(1, offsets[-1] - offsets[self.unscored])

    def take(self, at: int, judged: Judged, logits: Logits | None) -> None:
        """Take what was found of the tokens from `at` on, of all tokens; the last may be what follows the text."""
        first = at - len(self.piece.lead)
        count = min(len(judged.logprobs), len(self._logprobs) - first)
        part = slice(first, first + count)
        self._logprobs[part], self._entropies[part] = judged.logprobs[:count], judged.entropies[:count]
        self._ranks[part], self._greedy[part] = judged.ranks[:count], judged.greedy[:count]
        if self._masses is not None and judged.masses is not None:
            self._masses[first : first + len(judged.masses)] = judged.masses
        if self._top and logits is not None:
            for i, row in enumerate(logits[:count]):
                own = self.piece.spans.ids[first + i]
                total = float(row[own]) - float(judged.logprobs[i])
                self._top[first + i] = self._likeliest(row, total, own, float(judged.logprobs[i]))

    def fields(self) -> dict[str, object]:
        """Return what is told of the text, once all windows are done."""
        none, spans = [None] * self.unscored, self.piece.spans
        values = self._logprobs[self.unscored :]
        self.sum = float(values.sum())
        logprobs: list[float | None] = [*none, *values.tolist()]
        words = None
        if self._masses is not None:
            words = spelled(self._words, spans.text, logprobs, [*none, *self._masses[self.unscored :].tolist()])
        return {
            "ids": spans.ids,
            "offsets": spans.offsets,
            "logprobs": logprobs,
            "ranks": [*none, *self._ranks[self.unscored :].tolist()],
            "entropies": [*none, *self._entropies[self.unscored :].tolist()],
            "greedy": [*none, *self._greedy[self.unscored :].tolist()],
            "top": self._top,
            "words": words,
            **means(self.sum, self.scored, self.size),
        }

    def _likeliest(self, logits: Logits, total: float, own: int, logprob: float) -> list[m.Alternative]:
        """Return the likeliest tokens, best first, of equal ones that with the lowest number.  # [vocabulary]"""
        count = self.told.top
        if count == 1:
            best = logits.argmax(0, keepdims=True)
        else:
            best = np.sort(np.argpartition(logits, len(logits) - count)[len(logits) - count :])
            best = best[np.argsort(-logits[best], kind="stable")]
        logs = (logits[best].astype(np.float64) - total).tolist()
        pairs = zip(best.tolist(), logs, strict=True)
        return [self.told.alternative(token, logprob if token == own else log) for token, log in pairs]


def means(total: float, count: int, size: int) -> dict[str, float]:
    """Return what is told of `count` log-probabilities with this sum, of a text of `size` bytes."""
    mean = total / max(1, count)
    return {
        "sum": total,
        "mean": mean,
        "perplexity": math.exp(min(-mean, 700.0)),
        "bits_per_byte": -total / math.log(2) / max(1, size),
    }


class _Part:
    """Common part of the prompts of a request to score: they are prefilled, and never decode."""

    alone = False
    streams = False
    silent = False
    interval_ms = 0
    branches = False
    looks_inside = False
    width = 0
    reuses = False
    reusable = 0

    def __init__(self, scores: Scores, ids: list[int]) -> None:
        self._scores = scores
        self.id, self.expires = scores.id, scores.expires
        self.group, self.owner = scores.group, scores.owner
        self.row = -1
        self.place = self.cached = 0
        self.ids = ids
        self.finished: m.FinishReason | None = None
        self.fault = ""

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids)

    def begin(self, row: int) -> None:
        self.row = row

    def restored(self, positions: int) -> None:
        self.cached = positions

    def end(self, reason: m.FinishReason) -> None:
        self._scores.end(reason)

    def fail(self, fault: str) -> None:
        self.fault = fault
        self._scores.fail(fault)

    def pieces(self) -> tuple[m.Tokens, ...]:
        return ()

    def leave(self, reason: m.FinishReason) -> None:
        """Note that it has ended, or that the others have."""
        self.finished = self.finished or reason
        self._scores.open.discard(self)


class Lead(_Part):
    """What stands before several texts, computed for the prefix cache."""

    reuses = True
    branches = True

    @property
    def reusable(self) -> int:  # type: ignore[override]
        return len(self.ids) - 1

    fixed = False

    def wanted(self, count: int) -> list[int]:  # noqa: ARG002 - none of them
        return []

    def asked(self, count: int) -> None:  # noqa: ARG002 - nothing
        return None

    def prefilled(self, count: int, logits: Logits, hidden: Hidden | None, engine: Engine) -> tuple[()]:  # noqa: ARG002
        self.cached += count
        self._scores.computed += count
        if self.cached == self.prompt_tokens:
            self.leave("length")
        return ()


class Window(_Part):
    """A window of a text: a Prompt (task.py) that is prefilled and never decodes."""

    def __init__(self, scores: Scores, text: TextScores, begin: int, end: int, scored: int) -> None:
        super().__init__(scores, text.tokens[begin:end])
        self._text = text
        self._begin, self._scored = begin, scored
        self._judged: Judged | None = None
        """What an engine that judges has told of the next chunk."""
        if text.shared:
            self.reusable = len(text.piece.lead) - 1

    @property
    def fixed(self) -> bool:
        """Chunks are bounded where logits of all their tokens are in memory; their results are the same bits anyway on
        an engine that judges.
        """
        return not self._scores.judges or self._text.told.top > 0

    def wanted(self, count: int) -> list[int]:
        if self._scores.judges and not self._text.told.top:
            return []
        return self._places(count)

    def asked(self, count: int) -> Question | None:
        places = self._places(count) if self._scores.judges else []
        return Question(self._successors(places), self._text.told.members, self._take) if places else None

    def _take(self, judged: Judged) -> None:
        self._judged = judged

    def _places(self, count: int) -> list[int]:
        """Return which of the window's next `count` tokens have a successor that is not scored yet."""
        first = max(0, self._scored - 1 - self._begin - self.cached)
        return list(range(first, count))

    def _successors(self, places: list[int]) -> list[int]:
        """Return the tokens after these; nothing follows the last one of a text, whose score is not kept."""
        at = self._begin + self.cached + 1
        tokens = self._text.tokens
        return [tokens[at + place] if at + place < len(tokens) else 0 for place in places]

    def prefilled(self, count: int, logits: Logits, hidden: Hidden | None, engine: Engine) -> tuple[()]:  # noqa: ARG002
        places, told = self._places(count), self._text.told
        if places:
            judged, self._judged = self._judged, None
            if judged is None:
                judged = judge(logits, self._successors(places), told.members)
            self._text.take(self._begin + self.cached + places[0] + 1, judged, logits if told.top else None)
        self.cached += count
        self._scores.computed += count
        if self.cached == self.prompt_tokens:
            self.leave("length")
            self._scores.done(self._text)
        return ()


class Scores:
    """Answer to a request to score (replies.py), and the source of its prompts."""

    new_tokens = 0

    def __init__(self, work: Work, request: m.Score, texts: list[TextScores], received: float, *, judges: bool) -> None:
        """`received` is on the monotonic clock, `judges` says whether the engine does it itself."""
        self.id = work.id
        self.group, self.owner = work.group, work.owner
        self.expires = received + request.deadline_ms / 1000 if request.deadline_ms else math.inf
        self.open: set[_Part] = set()
        """Prompts that have not finished."""
        self.computed = 0
        self.judges = judges
        self._received = received
        self._single = request.texts is None
        self._texts = texts
        self._ready: deque[m.ScoredText] = deque()
        self._parts = self._all()
        self._next = next(self._parts, None)
        self._ended: m.FinishReason | None = None
        self._fault = ""
        self._last: dict[str, object] = {}

    def prompts(self) -> Iterator[Lead | Window]:
        """Yield the prompts that are to be put in line now."""
        while self._next is not None and len(self.open) < AHEAD and self._ended is None:
            part, self._next = self._next, next(self._parts, None)
            self.open.add(part)
            yield part

    def end(self, reason: m.FinishReason) -> None:
        """End it and all its prompts, from outside."""
        self._ended = self._ended or reason
        for part in list(self.open):
            part.leave(reason)

    def fail(self, fault: str) -> None:
        """End it and all its prompts with a fault."""
        self._fault = self._fault or fault
        self.end("cancelled")

    def done(self, text: TextScores) -> None:
        """Note that a window of a text is done."""
        text.left -= 1
        if text.left:
            return
        fields = text.fields()
        if self._single:
            self._last = fields
        else:
            self._ready.append(m.ScoredText(id=self.id, index=text.index, **fields))  # type: ignore[arg-type]

    def ready(self) -> Iterator[m.ScoredText]:
        """Take the texts that are ready."""
        while self._ready:
            yield self._ready.popleft()

    def rest(self) -> tuple[m.Tokens, ...]:
        return ()

    @property
    def complete(self) -> bool:
        return not self.open and (self._next is None or self._ended is not None)

    def last(self) -> m.Scored | m.Failure:
        if self._fault:
            return m.Failure(id=self.id, code="internal", message=self._fault)
        if self._ended:
            return m.Failure(id=self.id, code=str(self._ended), message="ended before the whole text was scored")
        count = sum(text.scored for text in self._texts)
        fields = self._last or {"ids": [], "logprobs": []}
        fields |= means(sum(text.sum for text in self._texts), count, sum(text.size for text in self._texts))
        elapsed_ms = (time.monotonic() - self._received) * 1000
        return m.Scored(id=self.id, **fields, tokens=count, computed=self.computed, elapsed_ms=elapsed_ms)  # type: ignore[arg-type]

    def _all(self) -> Iterator[Lead | Window]:
        """Yield all prompts: texts with the same lead one after the other, and what they share before them."""
        by_lead: dict[tuple[int, ...], list[TextScores]] = {}
        for text in self._texts:
            by_lead.setdefault(tuple(text.piece.lead), []).append(text)
        for lead, texts in by_lead.items():
            whole = [text for text in texts if text.windows.begin == 0]
            if len(whole) > 1 and len(lead) > SHARED:
                for text in whole:
                    text.shared = True
                yield Lead(self, list(lead[:-1]))
            for text in texts:
                for begin, end, scored in text.windows:
                    yield Window(self, text, begin, end, scored)


def stride_of(request: m.Score, context: int) -> int:
    """Return how far apart two windows are."""
    return min(request.stride or min(STRIDE, context // 2), context - 1)


def texts_of(request: m.Score, pieces: Iterable[Piece], told: Told, context: int) -> list[TextScores]:
    """Return the texts of a request. Raises: BadRequest, which says what would do, where they are too much work."""
    stride = stride_of(request, context)
    texts: list[TextScores] = []
    for index, piece in enumerate(pieces):
        count = len(piece.spans.ids)
        which = "the text" if request.texts is None else f"texts[{index}]"
        if not piece.lead and count < 2:
            raise BadRequest(f"score: {which} must have at least 2 tokens, got {count}")
        if not count:
            raise BadRequest(f"score: {which} must have at least 1 token, got none")
        check_cost(len(piece.lead) + count, stride, context)
        check_told(count, request.top)
        windows = Windows(len(piece.lead), count, stride, context, after=told.members is not None)
        try:
            texts.append(TextScores(index, piece, windows, told))
        except BadRequest as e:
            raise BadRequest(f"score: {which}: {e}") from None
    computed = sum(text.windows.computed for text in texts)
    if computed > MAX_COMPUTED and len(texts) > 1:
        raise BadRequest(
            f"score: these {len(texts)} texts are {computed:,} tokens to compute, and the limit is {MAX_COMPUTED:,}; "
            "send fewer in one request"
        )
    return texts


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
