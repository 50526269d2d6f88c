"""Tokens -> text, one token after the other: the stages of a tokenizer's decoder.

A decoder of the package `tokenizers` takes all tokens of a text at once. A stage here takes one piece after the other
and gives what no later piece can change; at the end they have given the same text. Tried instead: `DecodeStream` of
that package, and windows that are decoded again (docs/decisions/decoding-token-by-token.md).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from protocol.errors import BadModel

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What transformers' clean_up_tokenization_spaces replaces, one after the other in the whole text."""
WORD_CLEAN_UP = (*CLEAN_UP[:7], (" do not", " don't"), *CLEAN_UP[7:])
"""What the decoder of WordPiece replaces in each word."""


class Stage:
    """Part of a decoder. Its state consists of immutable values, so that a shallow copy goes its own way."""

    held = 0
    """Number of bytes of the tokens whose text is not certain yet."""

    def push(self, piece: str) -> Iterable[str]:
        """Take the next piece; return those that are certain now."""
        raise NotImplementedError

    def flush(self) -> Iterable[str]:
        """Return the rest, at the end of the text."""
        return ()


class Spaced(Stage):
    """Puts a space between tokens, which is what `tokenizers` does without a decoder."""

    def __init__(self) -> None:
        self._begun = False

    def push(self, piece: str) -> Iterable[str]:
        begun, self._begun = self._begun, True
        return (f" {piece}" if begun else piece,)


class Metaspace(Stage):
    """Turns the character for a space into one; in the first token it goes, if it was put there."""

    def __init__(self, replacement: str, *, prepended: bool) -> None:
        self._replacement = replacement
        self._first = prepended

    def push(self, piece: str) -> Iterable[str]:
        first, self._first = self._first, False
        return (piece.replace(self._replacement, "" if first else " "),)


class WordPiece(Stage):
    """Puts a space before each token that begins a word, except the first."""

    def __init__(self, prefix: str, *, cleans: bool) -> None:
        self._prefix = prefix
        self._cleans = cleans
        self._begun = False

    def push(self, piece: str) -> Iterable[str]:
        if self._begun:
            inside = piece.startswith(self._prefix)
            piece = piece.removeprefix(self._prefix) if inside else f" {piece}"
        self._begun = True
        if self._cleans:
            for pattern, content in WORD_CLEAN_UP:
                piece = piece.replace(pattern, content)
        return (piece,)


class ByteRuns(Stage):
    """Makes characters of tokens such as <0xE2>. A run of them that is not UTF-8 becomes a replacement for each."""

    def __init__(self) -> None:
        self._run = b""

    @property
    def held(self) -> int:  # type: ignore[override]
        return len(self._run)

    def push(self, piece: str) -> Iterable[str]:
        if byte := BYTE.fullmatch(piece):
            self._run += bytes.fromhex(byte[1])
            return ()
        return (*self.flush(), piece)

    def flush(self) -> Iterable[str]:
        run, self._run = self._run, b""
        if not run:
            return ()
        try:
            return (run.decode(),)
        except UnicodeDecodeError:
            return ("\ufffd",) * len(run)


class Each(Stage):
    """Changes each piece by itself."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def push(self, piece: str) -> Iterable[str]:
        return (self._change(piece),)


class StripStart(Stage):
    """Drops a character from the beginning of the whole text, up to `most` times."""

    def __init__(self, content: str, most: int) -> None:
        self._content = content
        self._most = most

    def push(self, piece: str) -> Iterable[str]:
        rest = strip(piece, self._content, self._most)
        if piece:
            self._most = 0 if rest else self._most - len(piece)
        return (rest,)


class Replace(Stage):
    """Replaces a pattern in the whole text; the beginning of one that may be completed waits."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content
        self._held = ""

    def push(self, piece: str) -> Iterable[str]:
        *done, rest = (self._held + piece).split(self._pattern)
        pattern = self._pattern
        waits = next((n for n in range(min(len(pattern) - 1, len(rest)), 0, -1) if rest.endswith(pattern[:n])), 0)
        certain = len(rest) - waits
        self._held = rest[certain:]
        return (self._content.join([*done, rest[:certain]]),)

    def flush(self) -> Iterable[str]:
        held, self._held = self._held, ""
        return (held,)


class Stages:
    """Stages one after the other."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._stages = tuple(stages)

    @property
    def held(self) -> int:
        return sum(stage.held for stage in self._stages)

    def fork(self) -> Stages:
        """Return a copy that goes its own way."""
        return Stages(copy.copy(stage) for stage in self._stages)

    def push(self, piece: str) -> str:
        pieces = [piece]
        for stage in self._stages:
            pieces = [out for piece in pieces for out in stage.push(piece)]
        return "".join(pieces)

    def flush(self) -> str:
        pieces: list[str] = []
        for stage in self._stages:
            pieces = [*(out for piece in pieces for out in stage.push(piece)), *stage.flush()]
        return "".join(pieces)


def clean_up() -> Stages:
    """Return what transformers' clean_up_tokenization_spaces does."""
    return Stages(Replace(pattern, content) for pattern, content in CLEAN_UP)


def read_stages(decoder: Any) -> Stages:
    """Return the stages of a decoder of `tokenizers`, or of None. Raises: BadModel for one that is not known."""
    if decoder is None:
        return Stages([Spaced()])
    state = json.loads(decoder.__getstate__())
    stages = []
    fused = False
    for part in state["decoders"] if state["type"] == "Sequence" else [state]:
        if part["type"] == "Fuse":
            fused = True
        else:
            stages.append(_whole(part) if fused else _single(part))
    return Stages(stages)


def _single(part: dict[str, Any]) -> Stage:
    """Return the stage of a part that takes tokens one by one."""
    match part:
        case {"type": "Metaspace", "replacement": str(replacement), "prepend_scheme": scheme}:
            return Metaspace(replacement, prepended=scheme != "never")
        case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleans)}:
            return WordPiece(prefix, cleans=cleans)
        case {"type": "ByteFallback"}:
            return ByteRuns()
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return Each(partial(_replace, pattern=pattern, content=content))
        case {"type": "Strip", "content": str(content), "start": int(most), "stop": 0}:
            return Each(partial(strip, content=content, most=most))
    raise _unknown(part)


def _whole(part: dict[str, Any]) -> Stage:
    """Return the stage of a part that takes the whole text, since Fuse comes before it."""
    match part:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return Replace(pattern, content)
        case {"type": "Strip", "content": str(content), "start": int(most), "stop": 0}:
            return StripStart(content, most)
    raise _unknown(part)


def _unknown(part: dict[str, Any]) -> BadModel:
    settings = ", ".join(f"{name} {value!r}" for name, value in part.items() if name != "type")
    told = f"{part['type']} ({settings})" if settings else part["type"]
    return BadModel(f"its tokenizer's decoder has a part that is not supported: {told}")


def _replace(piece: str, pattern: str, content: str) -> str:
    return piece.replace(pattern, content)


def strip(piece: str, content: str, most: int) -> str:
    """Return a piece without the character `content` at its beginning, dropped up to `most` times."""
    dropped = 0
    while dropped < most and piece.startswith(content, dropped):
        dropped += 1
    return piece[dropped:]
