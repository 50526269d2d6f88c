"""Blocks -> the matrix that the kernels compute with, to compare them with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.catalogue.engines import BLOCK
from server.convert.quantise import Blocks


def dequantise(blocks: Blocks) -> NDArray[np.float32]:
    """Return float32 [N, K]."""
    values = blocks.values
    if blocks.bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], BLOCK)
    centred = (values.astype(np.float32) - (1 << (blocks.bits - 1))) * blocks.scales[:, :, None]
    return centred.reshape(len(centred), -1)[:, : blocks.inputs]
