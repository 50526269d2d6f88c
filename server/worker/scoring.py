"""Scores of given texts: each token's log-probability, rank and more, by windows that are prompts of their own.

Windows of a text, and texts, are rows of one step as far as they fit: no score depends on what is computed beside it.
Texts with the same context take it from the prefix cache, where a `Lead` puts it before them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator

from protocol import messages as m
from protocol.errors import BadRequest, RequestError
from protocol.means import means
from server.engines.base import Engine, Hidden, Judged, Logits
from server.link import Work
from server.worker.judging import judge
from server.worker.task import Question
from server.worker.text_scores import Piece, TextScores, Told
from server.worker.windows import Windows, check_cost, stride_of

AHEAD = 96
"""Most windows of a request that are in line: what a step takes of short ones, and the next."""
SHARED = 24
"""Least tokens of a context that several texts share for which it is computed by itself: a copy costs less."""


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
        self.fault: RequestError | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids)

    def begin(self, row: int) -> None:
        self.row = row

    def restored(self, positions: int) -> None:
        self.cached = positions

    def end(self, reason: m.FinishReason) -> None:
        self._scores.end(reason)

    def fail(self, fault: RequestError) -> None:
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
        if text.shared and begin == 0:
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
        self._fault: RequestError | None = None
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

    def fail(self, fault: RequestError) -> None:
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
            return m.Failure(id=self.id, code=self._fault.code, message=str(self._fault))
        if self._ended:
            return m.Failure(id=self.id, code=str(self._ended), message="ended before the whole text was scored")
        count = sum(text.scored for text in self._texts)
        fields = self._last or {"ids": [], "logprobs": []}
        fields |= means(math.fsum(text.sum for text in self._texts), count, sum(text.size for text in self._texts))
        fields |= {"tokens": count, "computed": self.computed}
        elapsed_ms = (time.monotonic() - self._received) * 1000
        return m.Scored(id=self.id, elapsed_ms=elapsed_ms, **fields)  # type: ignore[arg-type]

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
        windows = Windows(len(piece.lead), count, stride, context, after=told.members is not None)
        try:
            check_cost(windows, stride, context)
            check_told(count, request.top)
            texts.append(TextScores(index, piece, windows, told))
        except BadRequest as e:
            raise BadRequest(f"score: {which}: {e}") from None
    computed = sum(text.windows.computed for text in texts)
    if computed > m.MAX_COMPUTED and len(texts) > 1:
        raise BadRequest(
            f"score: these {len(texts)} texts are {computed:,} tokens to compute, and the limit is {m.MAX_COMPUTED:,}; "
            "send fewer in one request"
        )
    return texts


def check_told(tokens: int, top: int) -> None:
    """Check that one answer has room for what is to be told. Raises: BadRequest, which says what would do."""
    if tokens * top > m.MAX_TOLD:
        raise BadRequest(
            f"{top} alternatives for each of {tokens} tokens are more than the {m.MAX_TOLD:,} of one answer; ask "
            f"for a smaller `top`, or send the text in parts of {m.MAX_TOLD // top} tokens"
        )
