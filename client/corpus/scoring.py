"""Rows of a table -> surprisals of their texts' words or tokens."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from client.corpus.journal import Done, Position
from client.corpus.model import Model
from client.corpus.tables import Row, Table, Unusable
from protocol import Client, messages as m
from protocol.errors import BadRequest
from protocol.many import passages
from protocol.tokens import name_of_part

REPEATED = 2000
"""Characters of the longest text that is repeated beside each of its words: with longer ones a table would be mostly
that."""
BLANKS = " \t\n\v\f\r"
PLACE = re.compile(r"score: texts\[(\d+)\]:?")
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
    pieces, ahead = itertools.tee(_pieces(table, asked, at.done))
    settings = asked.settings | model.which
    places = [place for place, name in enumerate(table.columns) if name in kept(table)]
    width = len(columns(table, asked))
    number = at.number
    texts = (piece.passage for piece in ahead if piece.passage)
    with contextlib.closing(client.score_many(texts, **settings)) as answers:
        for piece in pieces:
            number = 0 if piece.begin <= 0 else number
            found: list[list[Any]] = []
            tokens = 0
            if piece.passage:
                try:
                    score = next(answers)
                except BadRequest as e:
                    raise _named(e, table, asked, at.done) from None
                tokens = len(score.ids)
                found = list(_words(piece, score) if asked.unit == "word" else _tokens(piece, score, asked.top))
            beside = [*(piece.row.cells[place] for place in places), *table.source_of(piece.row), piece.number]
            rows = [[*beside, number + place, *cells] for place, cells in enumerate(found, 1)]
            number += len(found)
            if piece.last and not number:  # so that no text is missing
                rows = [beside + [None] * (width - len(table.source) - 1)]
            characters = len(piece.passage.text or "") if piece.passage else 0
            yield Done(rows, characters, tokens, whole=piece.last, number=number)


def _pieces(table: Table, asked: Asked, done: int) -> Iterator[Piece]:
    return itertools.islice(_all_pieces(table, asked.top), done, None)


def _all_pieces(table: Table, top: int) -> Iterator[Piece]:
    for number, row in enumerate(table.rows(), 1):
        if not row.text:
            yield Piece(row, number, 0, None, last=True)
            continue
        context = row.context.removesuffix(" ")
        apart = not context or context[-1] in BLANKS or row.text[0] in BLANKS
        between = "" if apart and context == row.context else " "
        begin, end = -len(between), len(row.text)
        for passage in passages(between + row.text, context, top=top):
            after = begin + len(passage.text or "")
            yield Piece(row, number, begin, passage, last=after == end)
            begin = after


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


def _named(error: BadRequest, table: Table, asked: Asked, done: int) -> Exception:
    """Return a refusal with the place of its text in the file."""
    found = PLACE.match(str(error))
    if found is None:
        return error
    sent: Iterable[Piece] = (piece for piece in _pieces(table, asked, done) if piece.passage)
    row = next(itertools.islice(sent, int(found[1]), None)).row
    return Unusable(f"{row.file}, line {row.line}: this text{str(error)[found.end() :]}")
