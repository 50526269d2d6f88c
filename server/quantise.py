"""Weights -> int8 blocks of 32, and how much was lost.

A matrix of N outputs by K inputs is cut into blocks of 32 inputs; each block has one float32 scale. Values are stored
unsigned with a zero point of 128, the layout that the `com.microsoft.MatMulNBits` operator reads
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
ZERO_POINT = 128


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix: `values` uint8 [N, ceil(K / 32), 32], `scales` float32 [N, ceil(K / 32)], `inputs` = K."""

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    inputs: int


def int8_blocks(matrix: NDArray[np.float32]) -> Blocks:
    """Quantise float32 [N, K]: symmetric, the largest magnitude of a block becomes 127."""
    outputs, inputs = matrix.shape
    padding = -inputs % BLOCK
    if padding:
        matrix = np.pad(matrix, ((0, 0), (0, padding)))
    blocks = matrix.reshape(outputs, -1, BLOCK)
    scales = np.maximum(blocks.max(axis=2), -blocks.min(axis=2)) / 127
    scales[scales < np.finfo(np.float32).tiny] = 0  # a block of next to nothing: its inverse would overflow
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    rounded = blocks * inverse[:, :, None]
    np.rint(rounded, out=rounded)
    rounded += ZERO_POINT
    return Blocks(rounded.astype(np.uint8), scales.astype(np.float32), inputs)


def dequantise(blocks: Blocks) -> NDArray[np.float32]:
    """Return float32 [N, K]."""
    values = (blocks.values.astype(np.float32) - ZERO_POINT) * blocks.scales[:, :, None]
    return values.reshape(len(values), -1)[:, : blocks.inputs]


def relative_error(matrix: NDArray[np.float32], blocks: Blocks) -> float:
    """How much was lost: root mean square of the difference over that of the matrix (0 is nothing)."""
    norm = float(np.linalg.norm(matrix))
    return float(np.linalg.norm(dequantise(blocks) - matrix)) / norm if norm else 0.0
