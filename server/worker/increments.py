"""Tokens -> text in pieces: together the text that decoding all tokens at once gives."""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Many
from typing import Protocol

from server.checkpoint.decoder import Stages, clean_up


class Decoder(Protocol):
    """Decoder of one token after the other."""

    @property
    def held(self) -> int:
        """Number of bytes of the tokens whose text is not certain yet."""
        ...

    def push(self, token: int) -> str:
        """Take the next token; return the text that no later token can change."""
        ...

    def push_all(self, tokens: Many[int]) -> str:
        """Take several tokens, as one after the other."""
        ...

    def flush(self) -> str:
        """Return the rest, at the end of the text."""
        ...

    def fork(self) -> Decoder:
        """Return a copy that goes its own way."""
        ...


class ByteDecoder:
    """Decoder of tokens that are bytes. Those of an unfinished character wait for the next token."""

    def __init__(self, table: Many[bytes]) -> None:
        """Make one with the bytes of each token, none for those without text."""
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def held(self) -> int:
        return len(self._decoder.getstate()[0])

    def push(self, token: int) -> str:
        return self._decoder.decode(self._table[token])

    def push_all(self, tokens: Many[int]) -> str:
        table = self._table
        return self._decoder.decode(b"".join([table[token] for token in tokens]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def fork(self) -> ByteDecoder:
        other = ByteDecoder(self._table)
        other._decoder.setstate(self._decoder.getstate())
        return other


class StageDecoder:
    """Decoder of tokens that are parts of words, by the stages of their tokenizer's decoder."""

    def __init__(self, table: Many[str | None], stages: Stages) -> None:
        """Make one with each token as the tokenizer has it, None for those without text."""
        self._table = table
        self._stages = stages

    @property
    def held(self) -> int:
        return self._stages.held

    def push(self, token: int) -> str:
        piece = self._table[token]
        return "" if piece is None else self._stages.push(piece)

    def push_all(self, tokens: Many[int]) -> str:
        return "".join(map(self.push, tokens))

    def flush(self) -> str:
        return self._stages.flush()

    def fork(self) -> StageDecoder:
        return StageDecoder(self._table, self._stages.fork())


class CleanDecoder:
    """Decoder without the spaces that transformers' clean_up_tokenization_spaces takes away."""

    def __init__(self, decoder: Decoder, stages: Stages | None = None) -> None:
        self._decoder = decoder
        self._stages = stages or clean_up()

    @property
    def held(self) -> int:
        return self._decoder.held

    def push(self, token: int) -> str:
        return self._stages.push(self._decoder.push(token))

    def push_all(self, tokens: Many[int]) -> str:
        return "".join(map(self.push, tokens))

    def flush(self) -> str:
        return self._stages.push(self._decoder.flush()) + self._stages.flush()

    def fork(self) -> CleanDecoder:
        return CleanDecoder(self._decoder.fork(), self._stages.fork())


class Increments:
    """Text of one continuation: that of prompt and new tokens together, after that of the prompt alone.

    Where the first does not begin with the second, since the first new token changes the prompt's end (it completes a
    character, or takes a space away), the continuation is what follows their common beginning.
    """

    def __init__(self, decoder: Decoder, passed: str = "") -> None:
        """Make one with a decoder that has taken the prompt, and the end of the prompt's text that it holds back."""
        self._decoder = decoder
        self._passed = passed
        """What is left of that end, as long as the continuation begins with it."""

    @classmethod
    def after(cls, decoder: Decoder, prompt: Many[int]) -> Increments:
        """Begin after a prompt, with a decoder that has no tokens yet and belongs to this from now on."""
        decoder.push_all(prompt)
        return cls(decoder, decoder.fork().flush())

    def push(self, token: int) -> str:
        """Take a new token; return the text that no later one can change."""
        return self._after_prompt(self._decoder.push(token))

    def push_all(self, tokens: Many[int]) -> str:
        """Take several new tokens, as one after the other."""
        return self._after_prompt(self._decoder.push_all(tokens))

    def flush(self) -> str:
        """Return the rest at the end: of an unfinished character, a replacement."""
        return self._after_prompt(self._decoder.flush())

    def fork(self) -> Increments:
        """Return a copy that goes its own way."""
        return Increments(self._decoder.fork(), self._passed)

    def _after_prompt(self, text: str) -> str:
        if not self._passed or not text:
            return text
        differing = (i for i, (x, y) in enumerate(zip(self._passed, text, strict=False)) if x != y)
        same = next(differing, min(len(self._passed), len(text)))
        self._passed = self._passed[same:] if same == len(text) else ""
        return text[same:]
