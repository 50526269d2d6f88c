"""Places of tokens in a text, in bytes: they begin at 0, never go back, and end at the text's end."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence as Many

from server.checkpoint.decoder import CLEAN_UP
from server.worker.increments import Decoder


def by_bytes(pieces: Many[bytes], data: bytes) -> list[int] | None:
    """Return the offsets of tokens whose bytes are the text, or the text after a space; None if they are neither."""
    joined = b"".join(pieces)
    more = len(joined) - len(data)
    if more not in (0, 1) or joined != b" " * more + data:
        return None
    return [max(0, end - more) for end in itertools.accumulate(map(len, pieces), initial=0)]


def by_places(places: Many[tuple[int, int]], size: Callable[[int], int], text: str) -> list[int]:
    """Return the offsets of tokens that `tokenizers` finds at `places` of a text, in characters.

    What lies between two places belongs to the token after it. Tokens that share a character are parted by their sizes
    in bytes, `size(i)` for the i-th, counted from the end of what they share.
    """
    ends = [0, *itertools.accumulate(len(c.encode()) for c in text)]  # byte at which each character begins
    count = len(places)
    offsets = [0] * (count + 1)
    first = 0
    while first < count:
        last = first + 1
        end = places[first][1]
        while last < count and places[last][0] < end:
            end = max(end, places[last][1])
            last += 1
        begin = offsets[first]
        at = offsets[last] = max(begin, ends[end])
        for i in range(last - 1, first, -1):
            at = offsets[i] = max(begin, at - size(i))
        first = last
    if count:
        offsets[count] = ends[-1]
    return offsets


def of_tokens(decoder: Decoder, ids: Iterable[int], *, clean_up: bool) -> tuple[str, list[int]]:
    """Return the text of tokens, by a decoder that has no tokens yet, and their offsets in it."""
    data = bytearray()
    offsets = [0]
    for token in ids:
        data += decoder.push(token).encode()
        offsets.append(len(data) + decoder.held)
    data += decoder.flush().encode()
    if len(offsets) > 1:
        offsets[-1] = len(data)
    for i in range(len(offsets) - 1, 0, -1):  # what is held may come to less
        offsets[i - 1] = min(offsets[i - 1], offsets[i])
    told = bytes(data)
    if clean_up:
        for pattern, content in CLEAN_UP:
            told, offsets = _replaced(told, pattern.encode(), content.encode(), offsets)
    return told.decode(), offsets


def _replaced(data: bytes, pattern: bytes, content: bytes, offsets: list[int]) -> tuple[bytes, list[int]]:
    """Replace a pattern, which begins with a space that goes, and move the offsets with it."""
    parts = data.split(pattern)
    if len(parts) == 1:
        return data, offsets
    begins = [len(part) for part in parts[:-1]]  # place of each match, first between matches, then in the data
    begins = [at + i * len(pattern) for i, at in enumerate(itertools.accumulate(begins))]
    less = len(pattern) - len(content)

    def moved(offset: int) -> int:
        before = bisect_right(begins, offset) - 1  # the last match that begins at or before it
        if before < 0:
            return offset
        inside = offset - begins[before]
        return begins[before] - before * less + min(max(0, inside - 1), len(content)) + max(0, inside - len(pattern))

    return content.join(parts), [moved(offset) for offset in offsets]
