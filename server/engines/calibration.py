"""int4 that is nearly int8: weights rounded so that their errors cancel each other out for what the model really sees.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), in kernels/src/calibrate.cpp. What the model sees is taken
from texts that it writes itself, or from a given one, with the int8 engine; nothing here depends on the number of
threads or on how NumPy multiplies, so that the same model becomes the same bytes: what is summed are whole numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.catalogue.architecture import CALIBRATION_TEXT, CALIBRATION_TOKENS, Architecture
from server.catalogue.engines import BLOCK, SOURCE_FILE
from server.convert.native_layout import MATRICES, Layout, Matrix, Tensors
from server.convert.quantise import Blocks
from server.engines.native import Choice, NativeEngine, Quantised, library

Count = Callable[[int, int], None]
SEED = 24
LEVELS = 2047
"""Largest whole number that an input becomes, of 12 bits: the sum of 2^31 products of two of them is exact."""
STRIPE = 256
"""Columns of the products that one thread sums up at a time."""
TOGETHER = 2048
"""Tokens whose inputs are whole numbers at the same time."""
NO_NUMBERS = "the model's layers make numbers that it cannot be calibrated with"


def write_texts(engine: NativeEngine, arch: Architecture, progress: Count) -> list[list[int]]:
    """Let the model write CALIBRATION_TOKENS tokens, in texts that each have random numbers of their own.

    Raises: FloatingPointError where it computes what is not a number.
    """
    assert arch.start is not None  # noqa: S101 - `calibrate_model` refuses others
    length = min(arch.context, CALIBRATION_TEXT)
    count = -(-CALIBRATION_TOKENS // length)
    texts: list[list[int]] = []
    for begin in range(0, count, engine.rows):
        some = range(begin, min(begin + engine.rows, count))
        rows = range(len(some))
        random = np.stack([np.random.default_rng((SEED, number)).random(length) for number in some])
        choices = [Choice(top_p=1, typical_p=1, temperature=1, repetition=1) for _ in rows]
        written = [[arch.start] for _ in rows]
        for past in range(length - 1):
            logits = engine.decode([text[-1] for text in written], [past] * len(rows))
            for choice, uniform in zip(choices, random[:, past], strict=True):
                choice.uniform = uniform
            tokens = engine.choose(logits, rows, choices)
            if min(tokens) < 0:
                raise FloatingPointError(NO_NUMBERS)
            for text, token in zip(written, tokens, strict=True):
                text.append(token)
            progress(begin * length + (past + 2) * len(rows), count * length)
        texts += written
    return texts


def in_windows(ids: Sequence[int], context: int) -> list[list[int]]:
    """Return a text's first CALIBRATION_TOKENS tokens in windows of a context."""
    ids = ids[:CALIBRATION_TOKENS]
    return [list(ids[begin : begin + context]) for begin in range(0, len(ids), context)]


@dataclass(frozen=True)
class Calibrated:
    """The native engine's int4 of a model, rounded for the inputs that its layers have in some texts."""

    arch: Architecture
    weights: Tensors
    engine: NativeEngine
    """The same model at int8."""
    texts: Sequence[Sequence[int]]
    source: str
    """Says which texts."""
    progress: Count
    """Counts layers."""

    def write(self, folder: Path) -> None:
        """Write the kernels' file into a folder. Raises: OSError, MemoryError, FloatingPointError."""
        inputs = _Inputs(self)
        Layout(self.arch, self.weights, "int4", self.progress, inputs.rounded).write(folder)
        (folder / SOURCE_FILE).write_text(self.source, encoding="utf-8")


class _Inputs:
    """What each layer's matrices are multiplied by, for one layer after the other."""

    def __init__(self, of: Calibrated) -> None:
        arch = of.arch
        self._engine = of.engine
        self._texts = of.texts
        tokens = sum(map(len, of.texts))
        width, inner = (-(-n // BLOCK) * BLOCK for n in (arch.width, arch.inner))
        self._x = np.zeros((tokens, width), np.float32)
        self._seen: list[Quantised] = [
            (np.empty((tokens, n), np.int8), np.empty((tokens, n // BLOCK), np.float32))
            for n in (width, width, width, inner)
        ]
        for part, text in self._parts():
            places = of.weights["wpe.weight"][: len(text)]
            self._x[part, : arch.width] = of.weights["wte.weight"][text] + places
        self._layers = 0

    def rounded(self, name: str, matrix: Matrix) -> Blocks:
        """Quantise the next matrix, [N, K]. Raises: MemoryError, FloatingPointError."""
        layer, short = name.removeprefix("h.").removesuffix(".weight").split(".", 1)
        if int(layer) == self._layers:
            self._observe()
        values, scales = self._seen[MATRICES.index(short)]
        products = multiply(values, scales, self._engine.threads)
        return calibrate(matrix, products, self._engine.threads)

    def _observe(self) -> None:
        for part, text in self._parts():
            seen = [(q[part], scales[part]) for q, scales in self._seen]
            self._engine.observe(self._layers, [0] * len(text), range(len(text)), self._x[part], seen)
        self._layers += 1

    def _parts(self) -> Iterator[tuple[slice, Sequence[int]]]:
        """Yield where each text's tokens are, and the text."""
        begin = 0
        for text in self._texts:
            yield slice(begin, begin + len(text)), text
            begin += len(text)


def multiply(values: NDArray[np.int8], scales: NDArray[np.float32], threads: int) -> NDArray[np.float64]:
    """Return the sum of x x^T over rows x, [K, K], in units of x's largest magnitude / LEVELS, squared.

    Every x is a whole number of these units, so that each sum is exact, whatever its order.
    """
    inputs = values.shape[1]
    largest = np.abs(values.reshape(len(values), -1, BLOCK)).max(axis=2) * scales
    unit = np.float32(largest.max() / LEVELS)
    factors = scales / unit if unit > 0 else np.zeros_like(scales)
    products = np.zeros((inputs, inputs))
    for begin in range(0, len(values), TOGETHER):
        part = slice(begin, begin + TOGETHER)
        blocks = values[part].reshape(-1, inputs // BLOCK, BLOCK) * factors[part, :, None]
        whole = np.rint(blocks).astype(np.float64).reshape(-1, inputs)

        def add(first: int, whole: NDArray[np.float64] = whole) -> None:
            stripe = slice(first, first + STRIPE)
            products[stripe, first:] += whole[:, stripe].T @ whole[:, first:]

        with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of the interpreter's lock in a product
            list(pool.map(add, range(0, inputs, STRIPE)))
    for first in range(0, inputs, STRIPE):
        products[first:, first : first + STRIPE] = products[first : first + STRIPE, first:].T
    return products


def calibrate(matrix: Matrix, products: NDArray[np.float64], threads: int) -> Blocks:
    """Round [N, K] to 4 bits for inputs with these products, [K, K] with K padded to BLOCK.

    Raises: MemoryError, FloatingPointError where they are those of no inputs.
    """
    outputs, inputs = len(matrix), len(products)
    weights = np.zeros((outputs, inputs), np.float32)
    weights[:, : matrix.shape[1]] = matrix
    values = np.empty((outputs, inputs), np.uint8)
    scales = np.empty((outputs, inputs // BLOCK), np.float16)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (products, weights, values, scales)]
    code = library().gpt2d_calibrate(outputs, inputs, *addresses[:2], threads, *addresses[2:])
    if code == -2:
        raise MemoryError("calibrating ran out of memory")
    if code:
        raise FloatingPointError(NO_NUMBERS)
    blocks = values.reshape(outputs, -1, BLOCK)
    packed: NDArray[np.uint8] = blocks[:, :, 0::2] | blocks[:, :, 1::2] << np.uint8(4)
    return Blocks(4, packed, scales.astype(np.float32), matrix.shape[1])
