"""Rows of a table -> surprisals of their texts' words or tokens."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from client.corpus.journal import Done, Position
from client.corpus.model import Model
from client.corpus.tables import Row, Table
from protocol import Client, messages as m
from protocol.client import is_last
from protocol.errors import BadRequest
from protocol.many import MANY_S, ManyScores, part_bytes, passages
from protocol.tokens import name_of_part

REPEATED = 2000
"""Characters of the longest text that is repeated beside each of its words: with longer ones a table would be mostly
that."""
BLANKS = " \t\n\v\f\r"
PLACE = re.compile(r"score: texts\[([0-9]+)\](:?) ")
ALONE = 32
"""Texts, a refused one among them, that are sent each by itself; where as many are good before it, those go
together."""
LN2 = math.log(2)


@dataclass(frozen=True)
class Asked:
    """What is to be told."""

    unit: str
    bos: str
    stride: int | None
    top: int

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request."""
        return {"unit": self.unit, "bos": self.bos, "stride": self.stride, "top": self.top}


@dataclass(frozen=True)
class Piece:
    """A passage of a row's text: all of it, where that is not long."""

    row: Row
    number: int
    """Number of the text."""
    begin: int
    """Character of the text that the passage begins with; -1: the space before it, which its first token has."""
    passage: m.Passage | None
    """None: there is nothing to score."""
    last: bool

    @property
    def characters(self) -> int:
        return len(self.passage.text or "") if self.passage else 0

    @property
    def place(self) -> dict[str, int]:
        """Where it is in the text, by the names of our columns."""
        return {"start": max(0, self.begin), "end": self.begin + self.characters}


def kept(table: Table) -> list[str]:
    """Return the input's columns that stand beside each word or token: a .txt has none, and long texts are left out."""
    if table.plain:
        return []
    long = {table.column, table.context_column} if table.longest > REPEATED else set[str | None]()
    return [name for name in table.columns if name not in long]


def columns(table: Table, asked: Asked) -> dict[str, type | None]:
    """Return our columns and their types."""
    ours: dict[str, type | None] = table.source | {"text_number": int}
    if asked.unit == "word":
        return ours | {
            "word_number": int, "word": str, "start": int, "end": int, "surprisal_bits": float,
            "first_token_entropy_bits": float, "first_token_rank": int, "first_token_greedy": bool,
        }  # fmt: skip
    ours |= {
        "token_number": int, "token": str, "token_id": int, "start": int, "end": int, "surprisal_bits": float,
        "entropy_bits": float, "rank": int, "greedy": bool,
    }  # fmt: skip
    for place in range(1, asked.top + 1):
        ours |= {f"top_{place}": str, f"top_{place}_surprisal_bits": float}
    return ours


def scored(client: Client, table: Table, model: Model, asked: Asked, at: Position) -> Generator[Done, None, None]:
    """Yield the rows of each passage, from a position on."""
    limit = part_bytes(asked.top, asked.stride, model.context)
    pieces, ahead = itertools.tee(itertools.islice(_pieces(table, limit), at.done, None))
    places = [place for place, name in enumerate(table.columns) if name in kept(table)]
    ours = list(columns(table, asked))[len(table.source) + 1 :]
    number = at.number
    texts = (piece.passage for piece in ahead if piece.passage)
    with contextlib.closing(_answers(client, texts, asked.settings | model.which)) as answers:
        for piece in pieces:
            number = 0 if piece.begin <= 0 else number
            score = next(answers) if piece.passage else None
            beside = [*(piece.row.cells[place] for place in places), *table.source_of(piece.row), piece.number]
            if isinstance(score, str):
                rows = [[*beside, *map(piece.place.get, ours)]]
                why = f"{piece.row.file}, line {piece.row.line}: {score}"
                yield Done(rows, piece.characters, 0, whole=piece.last, number=number, refused=why)
                continue
            found = list(_found(piece, score, asked)) if score else []
            rows = [[*beside, number + place, *cells] for place, cells in enumerate(found, 1)]
            number += len(found)
            if piece.last and not number:  # so that no text is missing
                rows = [[*beside, *[None] * len(ours)]]
            yield Done(rows, piece.characters, len(score.ids) if score else 0, whole=piece.last, number=number)


def _answers(
    client: Client, texts: Iterator[m.Passage], settings: dict[str, Any]
) -> Generator[m.ScoredText | str, None, None]:
    """Yield the scores of texts in their order; of a text that the server refuses, why.

    The server refuses the whole request with it, so the others are sent again. Where one is refused, others near it
    often are, too: these are sent each by itself. Raises: what concerns no single text.
    """
    held: deque[m.Passage] = deque()
    """Texts that were read and are not answered."""

    def read() -> Iterator[m.Passage]:
        yield from list(held)
        for text in texts:
            held.append(text)
            yield text

    while True:
        answered = 0
        try:
            with contextlib.closing(client.score_many(read(), **settings)) as scores:
                for score in scores:
                    held.popleft()
                    answered += 1
                    yield score
            return
        except BadRequest as e:
            refused = _refused(e)
            if refused is None and len(held) < 2:
                raise
        good = refused[0] - answered if refused else 0
        if refused and good >= ALONE:
            yield from _answers(client, iter([held.popleft() for _ in range(good)]), settings)
            held.popleft()
            yield refused[1]
        else:
            yield from _each(client, [held.popleft() for _ in range(min(ALONE, len(held)))], settings)


def _each(
    client: Client, texts: Sequence[m.Passage], settings: dict[str, Any]
) -> Generator[m.ScoredText | str, None, None]:
    """Same as _answers, of texts that are sent each by itself, all at once."""
    asked = [ManyScores([text], None, settings) for text in texts]
    requests = itertools.chain.from_iterable(one.requests() for one in asked)
    with contextlib.closing(client.in_order(requests, MANY_S, ALONE)) as events:
        for one in asked:
            try:
                for event in events:
                    yield from one.take(event)
                    if is_last(event):
                        break
            except BadRequest as e:
                refused = _refused(e)
                if refused is None:
                    raise
                yield refused[1]


def _refused(error: BadRequest) -> tuple[int, str] | None:
    """Return the number of the text that an error is about, and why it is refused; None if it is about none of them."""
    found, said = PLACE.match(str(error)), str(error)
    if found is None:
        return None
    return int(found[1]), said[found.end() :] if found[2] else f"this text {said[found.end() :]}"


def _pieces(table: Table, limit: int) -> Iterator[Piece]:
    for number, row in enumerate(table.rows(), 1):
        if not row.text:
            yield Piece(row, number, 0, None, last=True)
            continue
        context = row.context.removesuffix(" ")
        apart = not context or context[-1] in BLANKS or row.text[0] in BLANKS
        between = "" if apart and context == row.context else " "
        begin, end = -len(between), len(row.text)
        for passage in passages(between + row.text, context, limit=limit):
            after = begin + len(passage.text or "")
            yield Piece(row, number, begin, passage, last=after == end)
            begin = after


def _found(piece: Piece, score: m.ScoredText, asked: Asked) -> Iterator[list[Any]]:
    return _words(piece, score) if asked.unit == "word" else _tokens(piece, score, asked.top)


def _words(piece: Piece, score: m.ScoredText) -> Iterator[list[Any]]:
    words = score.words or m.Words(texts=[], starts=[], ends=[], tokens=[], logprobs=[])
    spans = zip(words.starts, words.ends, strict=True)
    for text, (start, end), first, logprob in zip(words.texts, spans, words.tokens, words.logprobs, strict=True):
        yield [text, piece.begin + start, piece.begin + end, _bits(logprob), *_of_token(score, first)]


def _tokens(piece: Piece, score: m.ScoredText, top: int) -> Iterator[list[Any]]:
    data = (piece.passage.text or "").encode() if piece.passage else b""
    characters = [-1, *itertools.accumulate((byte & 0xC0) != 0x80 for byte in data)]
    for place, (start, end) in enumerate(itertools.pairwise(score.offsets)):
        if start == end:  # what the tokenizer puts before a text
            continue
        first = max(0, piece.begin + characters[start + 1] - 1)  # the character that it begins in
        cells = [_text(data[start:end]), score.ids[place], first, piece.begin + characters[end]]
        cells += [_bits(score.logprobs[place]), *_of_token(score, place)]
        likely = score.top[place] if score.top else []
        for one in likely:
            cells += [one.name or one.text, _bits(one.logprob)]
        yield cells + [None] * 2 * (top - len(likely))


def _of_token(score: m.ScoredText, place: int) -> list[Any]:
    """Return entropy, rank and whether it is the greedy choice, of a token."""
    greedy = score.greedy[place]
    return [_bits(score.entropies[place]), score.ranks[place], None if greedy is None else greedy == score.ids[place]]


def _text(piece: bytes) -> str:
    """Return a token's text; the bytes of a part of a character as alternatives name them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return name_of_part(piece)


def _bits(nats: float | None) -> float | None:
    return None if nats is None else abs(nats) / LN2
