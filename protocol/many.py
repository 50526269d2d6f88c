"""Many texts -> requests, of which a few are under way at a time: neither the server waits, nor does memory grow."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol import messages as m
from protocol.errors import BadRequest, Gpt2dError, NotGpt2d
from protocol.means import means
from protocol.requests import request

MANY_S = 3600.0
"""Timeout of one of many requests, which wait for each other."""
GENERATIONS = 32
"""Most generations under way: twice as many as the rows that a model has by default."""
SCORES = 2
"""Most requests to score under way. A worker computes them in turns, and their answers are taken one after the other:
with more, the first would come late."""
REQUEST_BYTES = 32 << 10
"""Bytes of the texts of one request, about: some seconds of a model of 124 M."""
PART_BYTES = 32 << 10
"""Most bytes of a text that is scored as one; a longer one is scored in parts."""
BEFORE = 32_768
"""Most characters that stand before a part, of which the server takes as many as are of use."""
BEFORE_BYTES = 64_000
"""Most bytes of these: a byte can be a token, of which a server takes 65,536."""
CONTEXT = 4096
"""Most tokens of a model's context where it is not known: BEFORE has room for as many, of up to eight characters."""
WORDS = re.compile(r".*[^ \t\n\v\f\r](?=[ \t\n\v\f\r])", re.DOTALL)
SIGNS = re.compile(r".*[^\w\s](?=\w)", re.DOTALL)
"""Up to the last end of a word, or of a run of signs: where tokens end, too."""
PLACE = re.compile(r"texts\[([^]]*)\]")
LISTS = ("ids", "logprobs", "ranks", "entropies", "greedy", "top")
"""Fields of scores that have an entry for each token."""


def generations(prompts: Iterable[str], settings: Mapping[str, Any]) -> Iterator[m.Generate]:
    """Yield a request for each prompt; where there is a seed, each begins with that after the last of the one before.

    Raises: BadRequest, which says the number of the prompt, from 0.
    """
    _check_several("generate: the prompts", prompts)
    given = dict(settings)
    seed = given.pop("seed", None)
    for number, prompt in enumerate(prompts):
        try:
            made = request(m.Generate, given, prompt=prompt, stream=False, seed=seed)
        except BadRequest as e:
            raise BadRequest(f"prompt {number}: {e}") from None
        yield made
        if seed is not None:
            seed += made.n


def parts(text: str, limit: int) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a text begin and end, in characters: each of at most `limit` bytes in UTF-8.

    A part ends where a word ends; where none does, between a sign and a letter, or anywhere.
    """
    begin = 0
    while begin < len(text):
        end = begin + len(text[begin : begin + limit].encode()[:limit].decode(errors="ignore"))
        if end < len(text):
            found = WORDS.match(text, begin, end + 1) or SIGNS.match(text, begin, end + 1)
            end = found.end() if found else end
        yield begin, end
        begin = end


def part_bytes(top: int = 0, stride: int | None = None, context: int = CONTEXT) -> int:
    """Return the most bytes of a text that is scored as one.

    `context`: the model's, in tokens. A part at a small stride is many windows, and a server computes only
    MAX_COMPUTED tokens for a request; a byte is a token at most.
    """
    steps = m.MAX_COMPUTED // context - 2  # one window more than steps, and room for a token before the text
    most = min(PART_BYTES, m.MAX_TOLD // max(1, top), steps * (stride or m.STRIDE))
    return max(4, most)  # a character has 4 bytes at most


def passages(text: str, context: str = "", *, limit: int = PART_BYTES) -> Iterator[m.Passage]:
    """Yield a text as passages to score: one, or where it has more bytes than `limit` several, each with what stands
    before it.
    """
    for begin, end in parts(text, limit) if text else [(0, 0)]:
        own = text[max(0, begin - BEFORE) : begin]
        before = _last_bytes(context[max(0, len(context) - BEFORE + len(own)) :] + own)
        goes_on = not context and len(before) == begin > 0
        yield m.Passage(text=text[begin:end], context=before or None, goes_on=goes_on)


def _last_bytes(text: str) -> str:
    """Return as many of a text's last characters as BEFORE_BYTES has room for."""
    if text.isascii():
        return text
    return text.encode()[-BEFORE_BYTES:].decode(errors="ignore")


@dataclass(frozen=True)
class _Part:
    """A passage of a request: of which of all texts it is, and whether that ends with it."""

    index: int
    passage: m.Passage
    last: bool


class ManyScores:
    """Requests that score any number of texts, and their answers put together."""

    def __init__(
        self, texts: Iterable[str | m.Passage], contexts: Iterable[str] | None, settings: Mapping[str, Any]
    ) -> None:
        """Raises: BadRequest for one text instead of several, and for a setting that no text makes right."""
        _check_several("score: the texts", texts)
        _check_several("score: the contexts", contexts)
        if isinstance(texts, Sized) and isinstance(contexts, Sized) and len(texts) != len(contexts):
            raise BadRequest(f"score: each text has a context of its own, got {len(contexts)} for {len(texts)} texts")
        request(m.Score, settings, texts=[m.Passage(text="")])
        self._stride = settings.get("stride") or m.STRIDE
        self._limit = part_bytes(settings.get("top") or 0, self._stride)
        self._texts = iter(texts)
        self._contexts = iter(contexts) if contexts is not None else None
        self._settings = settings
        self._asked: deque[list[_Part]] = deque()
        self._taken = 0
        """Number of the oldest request's texts whose scores are taken, all in their order."""
        self._early: dict[int, m.ScoredText] = {}
        """Scores of the oldest request that came before those of texts before them."""
        self._held: list[tuple[str, m.ScoredText]] = []
        """The parts of a text whose other parts are not answered yet, and their answers."""

    def requests(self) -> Iterator[m.Score]:
        """Yield the requests, as they are wanted. Raises: BadRequest."""
        held: list[_Part] = []
        size = computed = 0
        for part in self._parts():
            more = _size(part.passage)
            work = _computed(part.passage, self._stride)
            full = size + more > REQUEST_BYTES or computed + work > m.MAX_COMPUTED
            if held and (full or len(held) == m.MAX_TEXTS):
                yield self._request(held)
                held = []
                size = computed = 0
            held.append(part)
            size += more
            computed += work
        if held:
            yield self._request(held)

    def take(self, event: m.AnyReply | Gpt2dError) -> Iterator[m.ScoredText]:
        """Yield the scores that an answer to the oldest request completes, in the order of the texts.

        Raises: the error that it is; BadRequest with the text's place among all of them; NotGpt2d for an answer that is
        not one to what was asked.
        """
        asked = self._asked[0]
        if isinstance(event, BadRequest):
            raise BadRequest(_placed(event, asked, self._taken))
        if isinstance(event, Gpt2dError):
            raise event
        if isinstance(event, m.ScoredText):
            if not self._taken <= event.index < len(asked) or event.index in self._early:
                raise NotGpt2d(f"the server answered text {event.index} of {len(asked)}, which it was not asked for")
            _check_lists(event, asked[event.index].passage.text)
            self._early[event.index] = event
            while (score := self._early.pop(self._taken, None)) is not None:
                yield from self._complete(asked[self._taken], score)
                self._taken += 1
        elif isinstance(event, m.Result):
            if self._taken < len(asked):
                raise NotGpt2d(f"the server answered {self._taken} of {len(asked)} texts")
            self._asked.popleft()
            self._taken = 0

    def _complete(self, part: _Part, score: m.ScoredText) -> Iterator[m.ScoredText]:
        """Yield the scores of the text that a part completes, if it does."""
        self._held.append((part.passage.text or "", score))
        if part.last:
            yield _joined(part.index, self._held)
            self._held = []

    def _request(self, held: list[_Part]) -> m.Score:
        try:
            made = request(m.Score, self._settings, texts=[part.passage for part in held])
        except BadRequest as e:
            raise BadRequest(_placed(e, held, 0)) from None
        self._asked.append(held)
        return made

    def _parts(self) -> Iterator[_Part]:
        for index, text in enumerate(self._texts):
            if isinstance(text, m.Passage) and self._contexts is None:
                yield _Part(index, text, last=True)
                continue
            context = next(self._contexts, None) if self._contexts is not None else ""
            if not isinstance(text, str) or not isinstance(context, str):
                raise BadRequest(f"score: texts[{index}] must be a text, with a context of its own, or a Passage")
            if not (text + context).isascii():
                _check(text + context, index)
            cut = list(passages(text, context, limit=self._limit))
            for place, passage in enumerate(cut, 1):
                yield _Part(index, passage, last=place == len(cut))


def _check_several(what: str, texts: object) -> None:
    """Raise BadRequest for one text, whose characters would be taken for texts."""
    if isinstance(texts, str | bytes):
        raise BadRequest(f"{what} must be a list of them, got a text; put it into a list")


def _check(text: str, index: int) -> None:
    """Raise BadRequest for a text that cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise BadRequest(f"score: texts[{index}] cannot be encoded in UTF-8: lone surrogate") from e


def _check_lists(score: m.ScoredText, text: str | None) -> None:
    """Raise NotGpt2d for scores whose lists are not of the same tokens, or whose places are outside of the text."""
    count = len(score.ids)
    sound = {len(getattr(score, name)) for name in LISTS[:-1]} == {count} and len(score.top) in (0, count)
    sound = sound and all(value is None or math.isfinite(value) for value in score.logprobs)
    size = len(text.encode()) if text is not None else math.inf
    sound = sound and len(score.offsets) == count + 1 and all(0 <= offset <= size for offset in score.offsets)
    if (words := score.words) is not None:
        sound = sound and len({len(getattr(words, name)) for name in m.Words.__struct_fields__}) == 1
        sound = sound and all(0 <= token < count for token in words.tokens)
    if not sound:
        raise NotGpt2d(f"the server's scores of text {score.index} do not fit together")


def _placed(error: BadRequest, asked: Sequence[_Part], taken: int) -> str:
    """Return what is wrong with a request, with a text's place among all texts instead of that in the request.

    Raises: NotGpt2d where it names none of the texts that are not answered, all but the first `taken`.
    """
    open_ = {str(place): asked[place].index for place in range(taken, len(asked))}
    found = PLACE.search(str(error))
    if found is None:
        return str(error)
    if found[1] not in open_:
        raise NotGpt2d(f"the server refused a text that it was not asked for, of {len(asked)}: {error}")
    return f"{str(error)[: found.start()]}texts[{open_[found[1]]}]{str(error)[found.end() :]}"


def _bytes(text: str | None) -> int:
    """Return how many bytes a text takes in UTF-8; what cannot be encoded takes one."""
    if text is None or text.isascii():
        return len(text or "")
    return len(text.encode(errors="replace"))


def _size(passage: m.Passage) -> int:
    """Return about how many bytes a passage takes in a request."""
    tokens = len(passage.ids or ()) + len(passage.context_ids or ())
    return _bytes(passage.text) + _bytes(passage.context) + 5 * tokens


def _computed(passage: m.Passage, stride: int) -> int:
    """Return how many tokens are computed for a passage, at most, where it and its context are of one token a byte."""
    own = _bytes(passage.text) + len(passage.ids or ())
    before = _bytes(passage.context) + len(passage.context_ids or ())
    context = min(CONTEXT, max(before, (own + before) // 2))  # where windows as long as this are the most work
    steps = min(own, own + before - context) // stride
    return (context + 1) * (steps + 2)


def _joined(index: int, parts_of: Sequence[tuple[str, m.ScoredText]]) -> m.ScoredText:
    """Return the scores of a text, made of those of its parts."""
    scores = [score for _, score in parts_of]
    first = scores[0]
    if len(scores) == 1:
        return msgspec.structs.replace(first, index=index)
    known = [value for part in scores for value in part.logprobs if value is not None]
    offsets = [0]
    for part in scores:
        offsets += [offsets[-1] + offset for offset in part.offsets[1:]]
    size = offsets[-1] - offsets[sum(value is None for value in first.logprobs)]
    return msgspec.structs.replace(
        first,
        index=index,
        **{name: [one for part in scores for one in getattr(part, name)] for name in LISTS},
        offsets=offsets,
        **means(math.fsum(known), len(known), size),
        words=_words(parts_of),
    )


def _words(parts_of: Sequence[tuple[str, m.ScoredText]]) -> m.Words | None:
    """Return the words of a text, made of those of its parts."""
    made: dict[str, list[Any]] = {name: [] for name in m.Words.__struct_fields__}
    characters = tokens = 0
    for text, part in parts_of:
        if part.words is None:
            return None
        made["texts"] += part.words.texts
        made["logprobs"] += part.words.logprobs
        made["starts"] += [characters + start for start in part.words.starts]
        made["ends"] += [characters + end for end in part.words.ends]
        made["tokens"] += [tokens + token for token in part.words.tokens]
        characters += len(text)
        tokens += len(part.ids)
    return m.Words(**made)
