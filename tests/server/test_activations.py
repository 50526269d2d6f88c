"""The native engine's activations, on each instruction set, against transformers' own of every name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.activations import ACT2FN

from server.catalogue.config_keys import ACTIVATIONS
from server.catalogue.engines import instruction_sets
from server.convert.native_layout import pack
from server.engines import native

SETS = instruction_sets()
REFUSED = {"gelu_10", "laplace", "leaky_relu", "linear", "prelu", "relu2", "relu6", "sigmoid", "xielu"}
SMALL = np.geomspace(1e-6, 90, 3200)
POINTS = np.concatenate([np.linspace(-12, 12, 9600), SMALL, -SMALL]).astype(np.float32).reshape(-1, 32)
Floats = NDArray[np.float32]


def apply(instruction_set: str, activation: str, x: Floats) -> Floats:
    """Return what the native engine makes of a product with the unit matrix."""
    unit, y = np.ascontiguousarray(pack(np.eye(32, dtype=np.float32), 32)), np.empty_like(x)
    code = native.library().gpt2d_matmul(
        instruction_set.encode(), 32, 32, 32, unit.ctypes.data, len(x), native.ACTIVATIONS.index(activation),
        x.ctypes.data, y.ctypes.data,
    )  # fmt: skip
    assert code == 0
    return y


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_transformers(name: str) -> None:
    exact = ACT2FN[name](torch.tensor(POINTS).double()).numpy()
    made = {one: apply(one, ACTIVATIONS[name], POINTS) for one in SETS}
    theirs = np.abs(ACT2FN[name](torch.tensor(POINTS)).numpy() - exact).max()
    for one in SETS:
        error = np.abs(made[one] - exact)
        assert (error / np.maximum(1, np.abs(POINTS))).max() < 2e-7 and error.max() < max(3 * theirs, 6e-7), one
        near = np.abs(POINTS) < 0.5  # where all of the result is small, so is its error
        assert (error[near] <= 6e-7 * np.abs(exact[near])).all(), one
        np.testing.assert_array_equal(made[one], made["plain"], one)


@pytest.mark.parametrize("one", SETS)
@pytest.mark.parametrize("name", native.ACTIVATIONS)
def test_what_is_not_a_number_stays_so(one: str, name: str) -> None:
    assert np.isnan(apply(one, name, np.full((3, 32), np.nan, np.float32))).all()


def test_every_activation_of_transformers_is_computed_or_refused() -> None:
    """One that transformers gets is looked at before this passes again."""
    assert set(ACT2FN) == set(ACTIVATIONS) | REFUSED
    assert set(native.ACTIVATIONS) == set(ACTIVATIONS.values())
