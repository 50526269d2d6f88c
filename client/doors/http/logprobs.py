"""Log-probabilities as OpenAI tells them: names of tokens, their values, and where they begin in the text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from protocol import messages as m
from protocol.errors import NotGpt2d
from protocol.tokens import bytes_of, name_of_part, pieces_of


class Listing:
    """The tokens of one choice, in the order of its text."""

    def __init__(self, top: int, offset: int = 0) -> None:
        """`top` is the number of alternatives that are told, `offset` where the first token begins, in characters."""
        self._top = top
        self._offset = offset
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        """Counts a character when its last byte is there."""
        self._names: list[str] = []
        self._logprobs: list[float | None] = []
        self._alternatives: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def prompt(self, told: m.Tokenized, scored: m.Scored | None) -> None:
        """List the tokens of a prompt. `scored` is None for a single one, which nothing precedes.

        Raises: NotGpt2d for places or scores that do not fit the tokens.
        """
        pieces = pieces_of(told)
        logprobs: Sequence[float | None] = scored.logprobs if scored else [None] * len(pieces)
        tops = scored.top if scored and scored.top else [[]] * len(pieces)
        if not len(logprobs) == len(tops) == len(pieces) or (scored and scored.ids != told.ids):
            raise NotGpt2d("the server's scores of tokens do not fit the tokens")
        for token, piece, logprob, top in zip(told.ids, pieces, logprobs, tops, strict=True):
            own = next((one for one in top if one.id == token), None)
            name = name_of(own) if own else _readable(piece)
            self._add(name, logprob, top, piece)

    def new(self, tokens: Iterable[m.TokenLogprobs]) -> None:
        """List tokens that were written."""
        for token in tokens:
            name = token.name or token.text
            self._add(name, token.logprob, token.top, bytes_of(name) if token.text else b"")

    def take(self) -> dict[str, Any]:
        """Return what was listed since the last call."""
        taken = {
            "tokens": self._names,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._alternatives if self._top else None,
            "text_offset": self._offsets,
        }
        self._names, self._logprobs = [], []
        self._alternatives, self._offsets = [], []
        return taken

    def _add(self, name: str, logprob: float | None, top: Sequence[m.Alternative], piece: bytes) -> None:
        self._names.append(name)
        self._logprobs.append(logprob)
        self._offsets.append(self._offset)
        self._offset += len(self._characters.decode(piece))
        if logprob is None:
            self._alternatives.append(None)
            return
        # The token's own value is always there, and of two of one name the likelier one.
        told = {name_of(one): one.logprob for one in reversed(top)}
        self._alternatives.append({name_of(one): told[name_of(one)] for one in top} | {name: logprob})


def name_of(one: m.Alternative) -> str:
    """Return what a token is called, which no other is."""
    return one.name or one.text or f"<{one.id}>"


def _readable(piece: bytes) -> str:
    """Return the text of a token, or where it has parts of characters their bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return name_of_part(piece)
