"""Text -> tokens, and tokens -> text in pieces that never split a UTF-8 character."""

from __future__ import annotations

import codecs
import itertools
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from protocol.errors import BadModel, BadRequest
from protocol.messages import OfText

END_OF_TEXT = "<|endoftext|>"
MAX_TOKENS = 65_536
"""Of a text that is tokenised or scored, as of `ids`: a reply has to hold them."""
CACHED_WORDS = 1024
"""How many words the tokenizer remembers: its default of 10,000 makes it grow for hours and no faster."""


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of each token, empty for special ones, and the token that ends a text."""

    token_bytes: list[bytes]
    end_of_text: int

    def increments(self) -> Increments:
        """Return a decoder for one sequence's new tokens."""
        return Increments(self.token_bytes)


class Text:
    """A model's byte-level BPE tokenizer (Radford et al. 2019, section 2.2)."""

    def __init__(self, folder: Path, vocabulary: int, end_of_text: int) -> None:
        """Raises: BadModel if the files are unreadable or hold another kind of tokenizer."""
        self._tokenizer = _read(folder)
        self._tokenizer.model._resize_cache(CACHED_WORDS)
        self.vocabulary = Vocabulary(_token_bytes(self._tokenizer, vocabulary), end_of_text)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content.encode() for index, token in added.items()}

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt; an empty one starts from the end-of-text token, as GPT-2's training texts did."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids or [self.vocabulary.end_of_text]

    def forms(self, word: str) -> list[list[int]]:
        """Return a word's tokens at the start of a line, and those after a space.

        Raises: BadRequest where there are none: a vocabulary need not have every byte.
        """
        forms = [self._tokenizer.encode(form, add_special_tokens=False).ids for form in (word, f" {word}")]
        if not all(forms):
            raise BadRequest(f"bad_words: this model has no token for {word!r}")
        return forms

    def spans(self, request: OfText) -> tuple[str, list[int], list[int]]:
        """Return (text, tokens, byte offsets) of a request for either. Raises: BadRequest for a token there is not, or too many."""
        ids = (
            self._tokenizer.encode(request.text, add_special_tokens=False).ids
            if request.text is not None
            else request.ids or []
        )
        if request.text is None and ids:
            self.check(ids)
        if len(ids) > MAX_TOKENS:
            raise BadRequest(f"the text has {len(ids)} tokens, over the limit of {MAX_TOKENS}; send it in parts")
        pieces = [self._special.get(token, self.vocabulary.token_bytes[token]) for token in ids]
        offsets = [0, *itertools.accumulate(len(piece) for piece in pieces)]
        text = request.text if request.text is not None else b"".join(pieces).decode("utf-8", "replace")
        return text, ids, offsets

    def check(self, ids: list[int]) -> list[int]:
        """Return the ids, or the end-of-text token for none. Raises: BadRequest for one outside the vocabulary."""
        size = len(self.vocabulary.token_bytes)
        if ids and max(ids) >= size:
            raise BadRequest(f"there is no token {max(ids)}; this model's are 0 to {size - 1}")
        return list(ids) or [self.vocabulary.end_of_text]


class Increments:
    """Turns tokens into text one at a time. Bytes of an unfinished character wait for the next token."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._bytes[token])

    def text_of(self, token: int) -> str:
        """A token by itself; a replacement character stands for a part of a character."""
        return self._bytes[token].decode("utf-8", "replace")

    def flush(self) -> str:
        """What is left at the end: a replacement character if the last one stayed unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)


def _read(folder: Path) -> Tokenizer:
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.add_special_tokens([END_OF_TEXT])
    except Exception as e:  # noqa: BLE001 - tokenizers raises plain Exception
        raise BadModel(f"the tokenizer cannot be read: {e}") from None
    if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise BadModel("its tokenizer is not byte-level BPE, which GPT-2 uses")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_bytes(tokenizer: Tokenizer, vocabulary: int) -> list[bytes]:
    """The bytes that each token stands for; none for special tokens and for padding of the vocabulary."""
    byte_of = _byte_alphabet()
    special = set(tokenizer.get_added_tokens_decoder())
    table = [b""] * vocabulary
    for token, index in tokenizer.get_vocab().items():
        if index >= vocabulary:
            raise BadModel(f"its tokenizer has token {index}, the model's vocabulary only {vocabulary}")
        if index not in special:
            try:
                table[index] = bytes(byte_of[c] for c in token)
            except KeyError as e:
                raise BadModel(f"its token {index} has the character {e}, which is not of byte-level BPE") from None
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
