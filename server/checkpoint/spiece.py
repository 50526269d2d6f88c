"""A model of sentencepiece: its pieces with their scores, and its table of characters.

The package sentencepiece reads the file and writes it again in its own form; only that is taken apart here, since the
package tells neither the table nor which pieces are the user's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol.errors import BadModel
from server.checkpoint.tokenizer_settings import MAX_TOKENIZER_BYTES

UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4


@dataclass(frozen=True)
class Pieces:
    """What a sentencepiece model consists of."""

    algorithm: int
    unknown: int
    pieces: list[tuple[str, float]]
    kinds: list[int]
    charsmap: bytes | None


def read_pieces(file: Path) -> Pieces:
    """Return what the file holds. Raises: BadModel, OSError."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise BadModel(f"{file.name} is read by the package sentencepiece, which is missing here: install it") from None
    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise BadModel(f"{file.name} is over {MAX_TOKENIZER_BYTES} bytes")
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(file.read_bytes())
    except RuntimeError as e:
        raise BadModel(f"the tokenizer cannot be read: {file.name}: {e}") from None
    pieces, kinds = [], []
    trainer, normalizer = {}, {}
    for field, value in _fields(processor.serialized_model_proto()):
        if field == 1:
            piece = dict(_fields(_bytes(value)))
            pieces.append((_bytes(piece.get(1, b"")).decode(), struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]))
            kinds.append(_number(piece.get(3, 1)))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    charsmap = _bytes(normalizer.get(2, b"")) or None
    if charsmap:
        check_charsmap(charsmap)
    return Pieces(_number(trainer.get(3, UNIGRAM)), _number(trainer.get(40, 0)), pieces, kinds, charsmap)


def check_charsmap(charsmap: bytes) -> None:
    """Raise BadModel where a walk through the table could leave it: the library would end with a panic then.

    It is the size of a trie, the trie (Darts: a double array of 32-bit units), and the texts that its values begin.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or not 4 <= size <= len(charsmap) - 5 or charsmap[-1]:
        raise BadModel("its tokenizer's table of characters (precompiled_charsmap) is damaged")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    places = np.arange(len(units))
    inner = units < 1 << 31
    block = places ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    values = units[~inner] & 0x7FFF_FFFF
    if (inner & ((block | 0xFF) >= len(units))).any() or (values >= len(charsmap) - 4 - size).any():
        raise BadModel("its tokenizer's table of characters (precompiled_charsmap) is damaged")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field of a message in protobuf's encoding."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(message, at)
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
        else:
            raise BadModel("its sentencepiece model has a field of an unknown kind")
        if size > len(message) - at:
            raise BadModel("its sentencepiece model is cut off")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        value |= (message[at] & 0x7F) << shift
        if message[at] < 0x80:
            return value, at + 1
        at, shift = at + 1, shift + 7
    raise BadModel("its sentencepiece model is cut off")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise BadModel("its sentencepiece model has a number where a text should be")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise BadModel("its sentencepiece model has a text where a number should be")
    return value
