"""The interface that every engine implements.

An engine holds one model's weights and `rows` rows of KV cache. Row r belongs to one sequence; a running batch fills
rows 0..B-1. A position's keys and values are written once, in place, and never move unless `move` is called.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

Logits = NDArray[np.float32]
Hidden = NDArray[np.float32]
"""[tokens, width]: what the last layer norm made of each token, of which the LM head makes logits."""


Memory: TypeAlias = tuple[mmap.mmap, mmap.mmap]
"""Memory of the keys and of the values of one sequence."""


def _memory(size: int, spare: mmap.mmap | None) -> mmap.mmap:
    """Return memory of this process alone, with the pages of `spare`: a new page costs more than to fill it.

    By default mmap shares it with children, where a system has such. Raises: MemoryError.
    """
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        if sys.platform == "linux" and spare is not None:
            with contextlib.suppress(BufferError):  # somebody looks at it yet
                spare.resize(size)
                return spare
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as e:
        raise MemoryError(f"no memory for keys and values: {e}") from None


@dataclass(frozen=True)
class KV:
    """The keys and values of one sequence's first positions, copied out of the rows.

    `keys` and `values` are [layers, heads, positions, head], of what the engine's rows are: float32, float16, or int8
    with the four bytes of a float32 behind each head, its scale.
    """

    keys: NDArray[np.floating | np.signedinteger]
    values: NDArray[np.floating | np.signedinteger]
    memory: Memory | None = None
    """What they lie in, for whoever needs it next; None where that is for nobody else."""

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], dtype: DTypeLike, spare: Memory | None = None) -> KV:
        """Make arrays to fill, in memory that is spare as far as it goes.

        It is not from the heap: there, long-lived arrays of all sizes would leave holes. Raises: MemoryError.
        """
        size = max(1, math.prod(shape)) * np.dtype(dtype).itemsize
        of_keys, of_values = spare or (None, None)
        memory = _memory(size, of_keys), _memory(size, of_values)
        keys, values = (np.frombuffer(part, dtype, math.prod(shape)).reshape(shape) for part in memory)
        return cls(keys, values, memory)

    @property
    def positions(self) -> int:
        return int(self.keys.shape[2])

    def first(self, positions: int) -> KV:
        """Return a view of the first positions."""
        return KV(self.keys[:, :, :positions], self.values[:, :, :positions])


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of one row, on top of its first `past` positions; `wanted` are indices of those whose logits are."""

    row: int
    ids: Sequence[int]
    past: int
    wanted: Sequence[int]
    judged: Sequence[int] = ()
    """Tokens of which it is told how likely they are after the last tokens of the run, as many of these: for a `Judge`
    alone."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What is told of tokens at their places, each [tokens]."""

    logprobs: NDArray[np.float64]
    """Natural log-probabilities."""
    ranks: NDArray[np.int32]
    """1, and the number of greater logits."""
    entropies: NDArray[np.float64]
    """Of the distributions, in nats."""
    greedy: NDArray[np.int32]
    """Tokens with the largest logit, of several the lowest."""
    masses: NDArray[np.float64] | None = None
    """Logarithms of the summed probability of a set of tokens, where one is given."""

    def part(self, first: int, end: int) -> Judged:
        masses = None if self.masses is None else self.masses[first:end]
        part = slice(first, end)
        return Judged(self.logprobs[part], self.ranks[part], self.entropies[part], self.greedy[part], masses)


@runtime_checkable
class Together(Protocol):
    """An engine that can run tokens of several rows in one step, as many as there are of each: it reads weights once.

    So guesses are verified, and prompts are prefilled beside rows that decode.
    """

    def run(self, runs: Sequence[Run]) -> Logits:
        """Run tokens of different rows, each as `prefill` would.

        Returns float32 [all wanted, vocabulary], run after run, valid until the next call. What is not kept of the
        positions is simply written over later.
        """
        ...


@runtime_checkable
class Judge(Protocol):
    """An engine that tells of tokens at their places without giving all logits."""

    def judge(self, runs: Sequence[Run], members: NDArray[np.float32] | None) -> tuple[Logits, Judged]:
        """Run tokens as `Together.run` does, and tell of those that are to be judged, run after run.

        `members`, [vocabulary] of 1 and 0, are the set of tokens whose mass is told. Its memory does not grow with
        tokens times the vocabulary. Raises: FloatingPointError where logits are not numbers.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """An engine that can leave out logits that are not among the largest."""

    best_rows: int
    """Most rows of a step for which it can."""

    def decode(
        self,
        ids: Sequence[int],
        past: Sequence[int],
        hidden: Hidden | None = None,
        best: Sequence[int] | None = None,
    ) -> Logits:
        """Run a step as `Engine.decode` does; `best` says how many of a row's largest logits are needed, 0 for all.

        Others may be -inf, but none that equals the smallest of these. Those that are not have the same bits as ever.
        """
        ...


@runtime_checkable
class Adaptive(Protocol):
    """An engine whose steps do not all take all of its threads."""

    steps: int
    threads_used: int
    """Number of threads of the latest step."""
    steps_threads: int
    """Sum of the numbers of threads over its steps."""


class Engine(Protocol):
    rows: int
    """Number of sequences that can run together."""
    context: int
    """Positions in a row."""
    vocabulary: int
    width: int
    threads: int
    quantised_share: float
    """The share of the weights in matrix products that are stored with less than 16 bits."""

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        """Run a chunk of one sequence's tokens on top of its first `past` positions.

        `wanted` are indices into `ids`; returns float32 [len(wanted), vocabulary], the logits after those tokens.
        Nothing wanted costs no LM head. `hidden`, float32 [len(ids), width], takes the hidden states of all of them.
        """
        ...

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        """Run one token for each of rows 0..len(ids)-1, row r on top of its first `past[r]` positions.

        Returns float32 [len(ids), vocabulary], valid until the next call. `hidden` as in `prefill`.
        """
        ...

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        """Copy positions first..positions-1 of row `source` to row `target`, which holds the same before them."""
        ...

    def export(self, row: int, positions: int, spare: Memory | None = None) -> KV:
        """Copy a row's first positions out, into memory of a KV that nobody has any more, as far as that goes."""
        ...

    def restore(self, row: int, kv: KV) -> None:
        """Write exported positions to the start of a row."""
        ...

    def close(self) -> None:
        """Give the memory back; the engine must not be used any more."""
        ...


class Reference:
    """Common part of the reference engines: one row, which stays where it is, and no prefix cache."""

    rows = 1

    def move(self, source: int, target: int, positions: int, first: int = 0) -> None:
        """Do nothing: there is one row."""

    def export(self, row: int, positions: int, spare: Memory | None = None) -> KV:
        raise NotImplementedError("a reference engine has no prefix cache")

    def restore(self, row: int, kv: KV) -> None:
        raise NotImplementedError("a reference engine has no prefix cache")
