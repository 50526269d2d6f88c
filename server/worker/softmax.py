"""Logits -> weights and log-probabilities, with sums in float64."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engines.base import Logits

Weights = NDArray[np.float32]
Float = TypeVar("Float", np.float32, np.float64)


def softmax(logits: Logits, temperature: float) -> Weights:
    """Return weights in proportion to the probabilities, the largest 1.  # [vocabulary]

    Raises: FloatingPointError if there is no distribution, since logits are NaN or all minus infinity.
    """
    highest = logits.max()
    if not np.isfinite(highest):
        raise FloatingPointError("the logits are not numbers")
    weights: Weights = np.exp((logits - highest) / np.float32(temperature))
    return weights


def log_softmax(logits: NDArray[Float]) -> NDArray[Float]:
    """Return the natural log-probabilities over the last axis, in the precision of the logits.  # [..., vocabulary]

    Raises: as `softmax`.
    """
    shifted = logits - _highest(logits)
    result: NDArray[Float] = shifted - _log_sum(shifted).astype(logits.dtype)
    return result


def log_totals(logits: Logits) -> NDArray[np.float64]:
    """Return what makes a log-probability of a logit of its row of [rows, vocabulary], subtracted from it.  # [rows]

    Raises: as `softmax`.
    """
    highest = _highest(logits)
    result: NDArray[np.float64] = (_log_sum(logits - highest) + highest)[:, 0]
    return result


def _highest(logits: NDArray[Float]) -> NDArray[Float]:
    """Return the largest logit of each row.  # [..., 1]"""
    highest: NDArray[Float] = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(highest).all():
        raise FloatingPointError("the logits are not numbers")
    return highest


def _log_sum(shifted: NDArray[Float]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of exponentials, none of which overflows.  # [..., 1]"""
    result: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    return result
