"""Weights -> the bytes that the native kernels read, in the order and layout that `server/kernels/src/ops.h` describes.

A matrix of N outputs by K inputs, both padded to 32, lies in panels of 32 outputs, and these in blocks of 32 inputs:
what one register holds lies together, and a product reads one stream from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.catalogue.architecture import Architecture
from server.catalogue.engines import BITS, BLOCK, HEAD_BITS
from server.convert.quantise import Blocks, block_sums, quantise

PANEL, STRIP = 32, 16
ALIGNED = 64
COARSE_OUTPUTS = 256 * PANEL
"""Outputs of a head that are made coarse at a time: some 25 MB of gpt2's."""
FILE = "native.bin"

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Of a layer, in the order of the file."""

Matrix = NDArray[np.float32]
Tensors = Mapping[str, Matrix]
Bytes = NDArray[np.uint8]


def head_bits(precision: str) -> int:
    """Bits of the token table and the LM head."""
    return BITS[precision] if precision == "fp32" else HEAD_BITS


class Layout:
    """A model's weights in the kernels' layout; `write` streams them into a folder."""

    def __init__(
        self,
        arch: Architecture,
        weights: Tensors,
        precision: str,
        progress: Callable[[int, int], None],
        rounded: Callable[[str, Matrix], Blocks] | None = None,
    ) -> None:
        """`progress(done, total)` counts layers.

        `rounded` quantises a layer's matrix of that name, [N, K], in their order; None: each weight by itself.
        """
        self._rounded = rounded
        self._arch = arch
        self._weights = weights
        self._precision = precision
        self._progress = progress

    def write(self, folder: Path) -> None:
        """Write FILE into a folder. Raises: OSError."""
        with (folder / FILE).open("wb") as stream:
            for part in self._parts():
                raw = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                stream.write(raw.data)
                stream.write(bytes(-len(raw) % ALIGNED))

    def _parts(self) -> Iterator[NDArray[np.generic]]:
        w, layers = self._weights, self._arch.layers
        bits = BITS[self._precision]
        yield _padded(w["wpe.weight"], PANEL)
        for i in range(layers):
            for norm, matrices in (("ln_1", MATRICES[:2]), ("ln_2", MATRICES[2:])):
                yield from self._norm(f"h.{i}.{norm}")
                for name in matrices:
                    yield self._matrix(f"h.{i}.{name}.weight", bits)
                    yield _padded(w[f"h.{i}.{name}.bias"], PANEL)
            self._progress(i + 1, layers + 1)
        yield from self._norm("ln_f")
        yield from self._head(w)
        self._progress(layers + 1, layers + 1)

    def _matrix(self, name: str, bits: int) -> NDArray[np.generic]:
        matrix = self._weights[name].T
        return pack_blocks(self._rounded(name, matrix)) if self._rounded else pack(matrix, bits)

    def _head(self, w: Tensors) -> Iterator[NDArray[np.generic]]:
        """Yield the token table, the LM head where that is another, and of a quantised head its coarse half."""
        table, head = w["wte.weight"], w.get("lm_head.weight")
        bits = head_bits(self._precision)
        if bits == BITS["fp32"]:
            yield pack(table, bits)
            if head is not None:
                yield pack(head, bits)
            return
        blocks = quantise(np.ascontiguousarray(table), bits)
        yield pack_strips(blocks)
        if head is not None:
            blocks = quantise(np.ascontiguousarray(head), bits)
            yield pack_strips(blocks)
        coarse, norms = coarse_head(blocks)
        yield pack_blocks(coarse)
        yield norms

    def _norm(self, name: str) -> Iterator[NDArray[np.float32]]:
        yield _padded(self._weights[f"{name}.weight"], PANEL)
        yield _padded(self._weights[f"{name}.bias"], PANEL)


def coarse_head(blocks: Blocks) -> tuple[Blocks, NDArray[np.float16]]:
    """Quantise a head of 8 bits once more, to 4; return that, and a bound of what it leaves out.

    That is for each panel and block the largest norm of the differences of an output's 32 weights as a share of its
    scale, rounded up: [panels, blocks].
    """
    outputs, count = blocks.scales.shape
    values, scales = [], []
    norms = []
    for first in range(0, outputs, COARSE_OUTPUTS):
        part = slice(first, first + COARSE_OUTPUTS)
        exact = (blocks.values[part].astype(np.float32) - 128) * _stored(blocks.scales[part])  # [part, count, 32]
        coarse = quantise(exact.reshape(len(exact), -1), 4)
        nibbles = np.stack([coarse.values & 15, coarse.values >> 4], axis=-1).reshape(exact.shape)
        exact -= (nibbles.astype(np.float32) - 8) * _stored(coarse.scales)
        values.append(coarse.values)
        scales.append(coarse.scales)
        left_out = np.sqrt(block_sums(exact * exact), dtype=np.float64)
        scale = np.abs(_stored(coarse.scales)[:, :, 0], dtype=np.float64)
        unknown = np.where(left_out == 0, 0.0, np.inf)  # such a head is read whole
        norms.append(np.divide(left_out, scale, out=unknown, where=np.isfinite(left_out) & (scale > 0)))
    largest = np.pad(np.concatenate(norms), [(0, -outputs % PANEL), (0, 0)]).reshape(-1, PANEL, count).max(axis=1)
    up = np.nextafter(largest.astype(np.float16), np.float16(np.inf))  # what rounding took away, and more
    return Blocks(4, np.concatenate(values), np.concatenate(scales), blocks.inputs), up


def _stored(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales as the kernels read them, for each weight of a block."""
    return scales.astype(np.float16).astype(np.float32)[:, :, None]


def pack(matrix: NDArray[np.float32], bits: int) -> NDArray[np.generic]:
    """Lay out float32 [N, K] with 32 (float), 8 or 4 bits (quantised here)."""
    outputs = -(-len(matrix) // PANEL) * PANEL
    if bits == 32:
        whole = np.zeros((outputs, -(-matrix.shape[1] // BLOCK) * BLOCK), np.float32)
        whole[: len(matrix), : matrix.shape[1]] = matrix
        return whole.reshape(-1, PANEL, whole.shape[1]).transpose(0, 2, 1)
    return pack_blocks(quantise(np.ascontiguousarray(matrix), bits))


def pack_blocks(blocks: Blocks) -> Bytes:
    """Lay out a quantised matrix: uint8 [panels, blocks, 32 * 32 * bits / 8 + 64]."""
    values, scales = _whole_panels(blocks)
    count, bits = scales.shape[1], blocks.bits
    if bits == 4:  # the low nibbles of four bytes are four inputs that follow each other, the high ones the next four
        single = np.stack([values & 15, values >> 4], axis=-1).reshape(len(values), count, 4, 2, 4)
        values = single[:, :, :, 0] | single[:, :, :, 1] << np.uint8(4)
    panels = len(values) // PANEL
    body = values.reshape(panels, PANEL, count, bits, 4).transpose(0, 2, 3, 1, 4).reshape(panels, count, -1)
    tail = np.ascontiguousarray(scales.reshape(panels, PANEL, count).transpose(0, 2, 1)).view(np.uint8)
    return np.concatenate([body, tail], axis=2)


def pack_strips(blocks: Blocks) -> Bytes:
    """Lay out a head of 8 bits so that each strip of 16 outputs lies by itself: uint8 [strips, blocks * 544]."""
    values, scales = _whole_panels(blocks)
    strips, count = len(values) // STRIP, scales.shape[1]
    body = values.reshape(strips, STRIP, count, 8, 4).transpose(0, 2, 3, 1, 4).reshape(strips, -1)
    tail = np.ascontiguousarray(scales.reshape(strips, STRIP, count).transpose(0, 2, 1)).reshape(strips, -1)
    return np.concatenate([body, tail.view(np.uint8)], axis=1)


def _whole_panels(blocks: Blocks) -> tuple[Bytes, NDArray[np.float16]]:
    """Return values and scales of as many outputs as whole panels have; those that it adds are 0."""
    values, scales = blocks.values, blocks.scales.astype(np.float16)
    zero = 1 << (blocks.bits - 1)
    if missing := -len(values) % PANEL:
        fill = zero if blocks.bits == 8 else zero | zero << 4
        values = np.concatenate([values, np.full((missing, *values.shape[1:]), fill, np.uint8)])
        scales = np.concatenate([scales, np.zeros((missing, scales.shape[1]), np.float16)])
    return values, scales


def _padded(array: NDArray[np.float32], to: int) -> NDArray[np.float32]:
    """Zeros after the last axis, up to a multiple."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % to)])
