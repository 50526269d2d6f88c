"""Keys and values of finished sequences, by owner and token prefix; the least recently used one leaves first.

Restoring a position costs about a hundredth of computing it, so a page that is continued or regenerated pays for its
new tokens only. An entry is found by its owner alone, or others could learn by the time of an answer what was sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from server.engines.base import KV, Memory

MIN_TOKENS = 8
"""Length of the shortest prefix that is kept: shorter ones are computed again as fast as they are found."""
MAX_ENTRIES = 256
"""Largest number of entries. It bounds the time of a look-up, which compares each entry with the prompt."""


class PrefixCache:
    def __init__(self, max_bytes: int, position_bytes: int) -> None:
        """Make an empty cache; `position_bytes` is the size of the keys and values of one position."""
        self._max_positions = max_bytes // position_bytes
        self._entries: OrderedDict[bytes, tuple[NDArray[np.int64], KV]] = OrderedDict()
        """Entries by the bytes of their owner and their tokens, so that a key begins with those of its first tokens."""
        self.positions = 0
        """Number of positions kept, of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Sequence[int], owner: int = 0) -> KV | None:
        """Return the keys and values of the longest beginning of `ids` that an owner has kept, or None."""
        wanted = np.array(ids, np.int64)  # [tokens]
        best, length = None, MIN_TOKENS - 1
        for key, tokens in self._alike(owner, wanted):
            shared = _shared(tokens, wanted)
            if shared > length:
                best, length = key, shared
        if best is None:
            return None
        self._entries.move_to_end(best)
        return self._entries[best][1].first(length)

    def put(self, ids: Sequence[int], export: Callable[[int, Memory | None], KV], owner: int = 0) -> None:
        """Keep a sequence for its owner.

        `export(positions, spare)` copies its keys and values, into memory of those that have left, and is called only
        if they are kept.
        """
        tokens = np.array(ids, np.int64)  # [tokens]
        if not MIN_TOKENS <= len(tokens) <= self._max_positions:
            return
        spare: Memory | None = None
        for key, known in self._alike(owner, tokens):
            shared = _shared(known, tokens)
            if shared == len(tokens):
                self._entries.move_to_end(key)
                return
            if shared == len(known):
                spare = self._drop(key)  # the new one begins with it
        while self.positions + len(tokens) > self._max_positions or len(self._entries) >= MAX_ENTRIES:
            spare = self._drop(next(iter(self._entries)))
        self._entries[_key(owner, tokens)] = (tokens, export(len(tokens), spare))
        self.positions += len(tokens)

    def _alike(self, owner: int, tokens: NDArray[np.int64]) -> list[tuple[bytes, NDArray[np.int64]]]:
        """Return keys and tokens of an owner's entries whose first MIN_TOKENS tokens are those of `tokens`."""
        head = _key(owner, tokens[:MIN_TOKENS])
        return [(key, known) for key, (known, _) in self._entries.items() if key.startswith(head)]

    def _drop(self, key: bytes) -> Memory | None:
        """Forget an entry; return its memory."""
        tokens, kv = self._entries.pop(key)
        self.positions -= len(tokens)
        return kv.memory


def _key(owner: int, tokens: NDArray[np.int64]) -> bytes:
    return owner.to_bytes(8, "little") + tokens.tobytes()


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the number of tokens with which both sequences begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
