"""Text -> tokens, and tokens -> text in pieces that never split a UTF-8 character."""

from __future__ import annotations

import codecs
import itertools
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from protocol.errors import BadModel, BadRequest
from protocol.messages import OfText
from server.catalogue.architecture import Architecture
from server.checkpoint.tokenizer import read_tokenizer

MAX_TOKENS = 65_536
"""Largest number of tokens of a text that is tokenised or scored, since one reply has to hold them."""


@dataclass(frozen=True)
class Vocabulary:
    """Bytes of each token, empty for special ones, and the tokens that end a text."""

    token_bytes: list[bytes]
    ends: tuple[int, ...]

    def increments(self) -> Increments:
        """Return a decoder for one sequence's new tokens."""
        return Increments(self.token_bytes)


@dataclass(frozen=True)
class Spans:
    """Tokens of a text and where each begins."""

    text: str
    ids: list[int]
    offsets: list[int]
    """Offsets in bytes: one for each token, and the end of the last."""


class Text:
    """A model's byte-level BPE tokenizer (Radford et al. 2019, section 2.2)."""

    def __init__(self, folder: Path, arch: Architecture) -> None:
        """Read a model's tokenizer. Raises: BadModel if the files are unreadable or hold another kind of tokenizer."""
        model = read_tokenizer(folder)
        if not model.byte_level or model.before:
            raise BadModel("its tokenizer is not byte-level BPE, which alone is used")
        self._tokenizer = model.tokenizer
        self.vocabulary = Vocabulary(_token_bytes(self._tokenizer, arch.vocabulary), arch.ends)
        self._start = arch.start
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content.encode() for index, token in added.items()}

    def encode(self, text: str) -> list[int]:
        """Return a prompt's tokens; an empty one gets the model's first token. Raises: BadRequest if it has none."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids or self._empty()

    def forms(self, word: str) -> list[list[int]]:
        """Return a word's tokens at the start of a line, and those after a space.

        Raises: BadRequest if there are none, since a vocabulary need not have every byte.
        """
        forms = [self._tokenizer.encode(form, add_special_tokens=False).ids for form in (word, f" {word}")]
        if not all(forms):
            raise BadRequest(f"bad_words: this model has no token for {word!r}")
        return forms

    def spans(self, request: OfText) -> Spans:
        """Return the tokens of a request that has a text or tokens.

        Raises: BadRequest for a token that does not exist, or too many.
        """
        ids = (
            self._tokenizer.encode(request.text, add_special_tokens=False).ids
            if request.text is not None
            else request.ids or []
        )
        if request.text is None and ids:
            self.check(ids)
        if len(ids) > MAX_TOKENS:
            raise BadRequest(f"the text must have at most {MAX_TOKENS} tokens, got {len(ids)}; send it in parts")
        pieces = [self._special.get(token, self.vocabulary.token_bytes[token]) for token in ids]
        offsets = [0, *itertools.accumulate(len(piece) for piece in pieces)]
        text = request.text if request.text is not None else b"".join(pieces).decode("utf-8", "replace")
        return Spans(text, ids, offsets)

    def check(self, ids: list[int]) -> list[int]:
        """Return the ids, or the model's first token for none.

        Raises: BadRequest for one not in the vocabulary, or if there are none and the model has no first token.
        """
        size = len(self.vocabulary.token_bytes)
        if ids and max(ids) >= size:
            raise BadRequest(f"a token of this model must be 0 to {size - 1}, got {max(ids)}")
        return list(ids) or self._empty()

    def _empty(self) -> list[int]:
        """Return an empty prompt's tokens. Raises: BadRequest."""
        if self._start is None:
            raise BadRequest(
                "the prompt is empty, and this model has neither a bos_token_id nor an eos_token_id to begin with; "
                "give it a prompt of at least one token"
            )
        return [self._start]


class Increments:
    """Decoder of one token at a time. Bytes of an unfinished character wait for the next token."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._bytes[token])

    def text_of(self, token: int) -> str:
        """Return the text of a token by itself, with a replacement character for a part of a character."""
        return self._bytes[token].decode("utf-8", "replace")

    def flush(self) -> str:
        """Return the rest at the end: a replacement character if the last character is unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)


def _token_bytes(tokenizer: Tokenizer, vocabulary: int) -> list[bytes]:
    """Return the bytes of each token; none for special tokens and for padding of the vocabulary."""
    byte_of = _byte_alphabet()
    special = set(tokenizer.get_added_tokens_decoder())
    table = [b""] * vocabulary
    for token, index in tokenizer.get_vocab().items():
        if index >= vocabulary:
            raise BadModel(f"its tokenizer has token {index}, but the model's vocabulary only {vocabulary} tokens")
        if index not in special:
            try:
                table[index] = bytes(byte_of[c] for c in token)
            except KeyError as e:
                raise BadModel(f"its token {index} has the character {e}, which byte-level BPE does not use") from None
    return table


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character -> byte: the byte itself if printable, else the next free one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
