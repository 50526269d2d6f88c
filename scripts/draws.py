#!/usr/bin/env python3
"""Compare the tokens that the native kernels choose with those of NumPy, for each kind of setting.

    python -m scripts.draws                             a million draws of each kind, about a minute each
    python -m scripts.draws --draws 10000 top_p typical
    python -m scripts.draws --set avx2

The distributions are flat, ordinary, and as a model's, whose logits fall with the logarithm of the rank; of half of
them many logits are equal. Kernels and NumPy compute e^x each in its own way, which may differ in the last bit and in
rare cases decide: such a token is counted apart, and NumPy must choose it, too, when its weights are moved by as much.
Ends with an error if any other token differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Generate
from server.catalogue.engines import instruction_sets
from server.engines import native
from server.worker import sampling
from server.worker.processors import Processors
from server.worker.sampling import Sampler, candidates, invert
from server.worker.softmax import softmax

KINDS: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 0.8},
    "top_k": {"top_k": 50},
    "many_k": {"top_k": 2000, "top_p": 0.95},
    "top_p": {"top_p": 0.9},
    "top_k_p": {"top_k": 50, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "top_min_p": {"top_p": 0.9, "min_p": 0.02, "temperature": 0.7},
    "typical": {"typical_p": 0.9},
    "top_typical": {"top_p": 0.95, "typical_p": 0.2},
    "changed": {
        "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "logit_bias": [(token, 2.0) for token in range(100)], "no_repeat_ngram_size": 2, "min_new_tokens": 100,
    },
}  # fmt: skip
DRAWS = 100
"""Draws from one distribution."""
SMALL, LARGE = 3000, 50257
"""Sizes of vocabularies; one distribution in ten is large."""
LAST_BIT = 3e-7
"""Largest relative difference of two ways to compute e^x with 24 bits."""
Logits = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--draws", type=int, default=1_000_000, help="of each kind (default: %(default)s)")
    parser.add_argument("--set", choices=instruction_sets(), default=instruction_sets()[0], help="instruction set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    wrong = 0
    for kind in args.kinds or KINDS:
        rounded, others = compare(kind, args.draws, args.set, args.seed)
        wrong += others
        print(f"{kind}: {args.draws:,} draws, {rounded} decided by a last bit, {others} different", flush=True)
    sys.exit(f"{wrong} tokens are not NumPy's" if wrong else 0)


def compare(kind: str, draws: int, instruction_set: str, seed: int = 0) -> tuple[int, int]:
    """Return how many of the draws a last bit decided, and how many others differ."""
    request = Generate(prompt="", **{"strategy": "sample", "top_k": 0, **KINDS[kind]})
    rounded = others = 0
    for first in range(0, draws, DRAWS):
        number = seed * 1_000_000 + first // DRAWS
        logits = distribution(number, LARGE if number % 10 == 9 else SMALL)
        uniforms = np.random.default_rng(number).random(min(DRAWS, draws - first))
        different = differences(request, logits, uniforms, instruction_set, history(number))
        rounded += sum(of_a_last_bit for *_, of_a_last_bit in different)
        others += sum(not of_a_last_bit for *_, of_a_last_bit in different)
    return rounded, others


def distribution(number: int, size: int) -> Logits:
    """Return float32 [size], by its number flat, ordinary or steep, and of even numbers with many equals."""
    rng = np.random.default_rng(number)
    logits = rng.standard_normal(size) * (0.5, 3.0, 0.3)[number % 3]
    if number % 3 == 2:
        logits -= 1.2 * np.log(2 + rng.permutation(size))
    if number % 2 == 0:
        logits = np.round(logits * 8) / 8
    return logits.astype(np.float32)


def history(number: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(number).integers(0, 50, 60)]


def differences(
    request: Generate, logits: Logits, uniforms: NDArray[np.float64], instruction_set: str, ids: list[int]
) -> list[tuple[float, int, int, bool]]:
    """Compare draws from float32 [vocabulary], after the tokens `ids`, half of which are the prompt.

    Returns (random number, the kernels' token, NumPy's, whether a last bit decided) where they differ.
    """
    processors, others = (Processors(request, len(ids) // 2, [0], []) for _ in range(2))
    sampler = Sampler(request, 0, processors)  # what it chooses by lives as long as it does
    choice = sampler.choice(ids)
    choices = [native.Choice.from_buffer_copy(choice) for _ in uniforms]
    for one, uniform in zip(choices, uniforms.tolist(), strict=True):
        one.uniform = uniform
    rows = np.repeat(logits[None], len(choices), 0)
    tokens = native.choose(rows, range(len(choices)), choices, instruction_set=instruction_set)
    processed = others.apply(logits, ids)
    kept, weights = candidates(processed, request)
    found: list[tuple[float, int, int, bool]] = []
    for uniform, token in zip(uniforms.tolist(), tokens, strict=True):
        wanted = int(kept[invert(weights, uniform)])
        if token != wanted:
            found.append((uniform, token, wanted, _of_a_last_bit(request, processed, uniform, token)))
    return found


def _of_a_last_bit(request: Generate, logits: Logits, uniform: float, token: int) -> bool:
    """Return True if NumPy chooses that token, too, with weights that differ by a last bit."""
    rng = np.random.default_rng(0)

    def moved(logits: Logits, temperature: float) -> NDArray[np.float32]:
        values, places = np.unique(logits, return_inverse=True)  # what is equal stays so
        weights = softmax(values, temperature)
        return (weights * (1 + rng.uniform(-LAST_BIT, LAST_BIT, len(weights)))).astype(np.float32)[places]

    with patch.object(sampling, "softmax", moved):
        tried = (candidates(logits, request) for _ in range(200))
        return any(int(kept[invert(weights, uniform)]) == token for kept, weights in tried)


if __name__ == "__main__":
    main()
