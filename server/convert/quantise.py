"""Weights -> int8 or int4 blocks of 32.

A matrix of N outputs by K inputs is cut into blocks of 32 inputs; each block has one float32 scale. Values are stored
unsigned with a zero point of half their range, two 4-bit values a byte with the first in the low half: the layout that
the `com.microsoft.MatMulNBits` operator reads
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.catalogue.engines import BLOCK

INT4_SHRINKS = (8 / 7, 1.0, 0.94, 0.88, 0.82, 0.76)
"""Scales tried for each int4 block, as shares of the one at which its largest magnitude becomes -8.

8 / 7 is plain rounding to -7..7.
"""
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix of N outputs by K inputs."""

    bits: int
    values: NDArray[np.uint8]  # [N, ceil(K / 32), 32 * bits / 8]
    scales: NDArray[np.float32]  # [N, ceil(K / 32)]
    inputs: int
    """K."""


def quantise(matrix: NDArray[np.float32], bits: int) -> Blocks:
    """Quantise float32 [N, K] to 8 or 4 bits.

    8 bits: symmetric, the largest magnitude of a block becomes 127. 4 bits: the scale of each block is the one of
    several candidates that has the least mean squared error, each refitted to its rounded values by least squares.
    """
    outputs, inputs = matrix.shape
    padding = -inputs % BLOCK
    blocks = (np.pad(matrix, ((0, 0), (0, padding))) if padding else matrix).reshape(outputs, -1, BLOCK)
    one = _int8 if bits == 8 else _int4
    pieces = np.array_split(blocks, max(1, min(outputs, blocks.size >> 18)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter's lock in the loops that count
        done = list(pool.map(one, pieces))
    return Blocks(bits, np.concatenate([v for v, _ in done]), np.concatenate([s for _, s in done]), inputs)


def _int8(blocks: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    scales = np.maximum(blocks.max(axis=2), -blocks.min(axis=2)) / np.float32(127)
    rounded = np.rint(blocks * _inverse(scales)[:, :, None])
    rounded += 128
    return rounded.astype(np.uint8), scales


def _int4(blocks: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    # The largest magnitude becomes -8, the end of the range that has one step more.
    reach = np.where(high > -low, high, low) / np.float32(-8)
    best_error = np.full(reach.shape, np.inf, np.float32)
    best_scale, best_values = np.zeros_like(reach), np.zeros(blocks.shape, np.int8)
    for shrink in INT4_SHRINKS:
        scale = reach * np.float32(shrink)
        values = np.rint(blocks * _inverse(scale)[:, :, None])
        np.clip(values, -8, 7, out=values)
        squares = block_sums(values * values)
        scale = block_sums(values * blocks) * _inverse(squares)  # least squares for these values
        # |w - s q|^2 without |w|^2, which all candidates share.
        error = -scale * scale * squares
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = scale[better]
        best_values[better] = values[better].astype(np.int8)
    unsigned = (best_values + 8).astype(np.uint8)
    packed: NDArray[np.uint8] = unsigned[:, :, 0::2] | unsigned[:, :, 1::2] << np.uint8(4)
    return packed, best_scale


def block_sums(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add up each block of [N, ceil(K / 32), 32] in a tree of its own: NumPy's order depends on the processor."""
    sums = np.ascontiguousarray(blocks.reshape(-1, BLOCK).T)
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return sums.reshape(blocks.shape[:2])


def _inverse(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / x, and 0 where x is too small to have an inverse."""
    return np.divide(1, x, out=np.zeros_like(x), where=np.abs(x) >= TINY)
