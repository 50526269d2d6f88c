#!/usr/bin/env python3
"""Count the tokens that differ where the head is read in two passes, and not once: there are none.

    python -m scripts.head
    python -m scripts.head --like gpt2 --tokens 5000 --top-k 1 --seed 3

Each step of two sequences is computed both ways: whatever the sampler may choose from must have the same bits, and so
the tokens drawn are the same. --like has made-up weights of these shapes, in which some channels of the last norm and
of the head are 50 times as large as the others, as in real models. Two passes are taken also where they are slower.
Each --seed gives other texts of the same model, so that many tokens can be counted in pieces.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.catalogue.architecture import PUBLISHED, Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tensors import Weights, expected_shapes
from server.convert.native_layout import FILE, Layout, Tensors
from server.engines.native import Choice, NativeEngine

ROWS = 2
OUTLIER, OUTLIERS = 50, 6
"""How much larger the channels of some made-up weights are, and how many there are of them."""


@dataclass(frozen=True)
class Found:
    """`read`: mean share of the head that the second pass read, where there was one, and how many steps had none."""

    tokens: int
    different: int
    read: float
    whole: int


def choice(top_k: int) -> Choice:
    """Return the default sampler's settings for a token, or those of the likeliest one where `top_k` is 1."""
    return Choice(top_p=1, typical_p=1, repetition=1, top_k=top_k if top_k > 1 else 0, temperature=float(top_k > 1))


def compare(engine: NativeEngine, tokens: int, top_k: int, seed: int = 0) -> Found:
    """Write texts from random beginnings, up to the context each, in rows that step together."""
    rng = np.random.default_rng(seed)
    rows, drawn = list(range(min(ROWS, engine.rows))), choice(top_k)
    different = steps = whole = 0
    read = []
    ids: list[int] = []
    engine.always_two_passes(True)
    while steps * len(rows) < tokens:
        past = steps % engine.context
        if past == 0:
            ids = [int(token) for token in rng.integers(0, engine.vocabulary, len(rows))]
        logits = engine.decode(ids, [past] * len(rows), best=[top_k] * len(rows)).copy()  # [rows, vocabulary]
        read.append(16 * engine.strips_read / engine.vocabulary)
        whole += not read[-1]
        expected = engine.decode(ids, [past] * len(rows)).copy()
        different += sum(not same(*pair, top_k) for pair in zip(logits, expected, strict=True))
        drawn.uniform = float(rng.random())
        ids = engine.choose(expected, rows, [drawn] * len(rows))
        different += sum(a != b for a, b in zip(ids, engine.choose(logits, rows, [drawn] * len(rows)), strict=True))
        steps += 1
    engine.always_two_passes(False)
    return Found(steps * len(rows), different, float(np.mean(read)), whole)


def same(logits: NDArray[np.float32], expected: NDArray[np.float32], top_k: int) -> bool:
    """Return True if the `top_k` largest logits, and what equals the last of them, are there with the same bits."""
    kept = expected >= np.partition(expected, -top_k)[-top_k]
    return bool(np.array_equal(logits[kept], expected[kept]))


def made_up(arch: Architecture, seed: int = 0) -> Tensors:
    """Return random weights with some channels that are far larger than the others."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (rng.normal(0, 0.02, shape) + (name.endswith(".weight") and "ln" in name)).astype(np.float32)
        for name, shape in expected_shapes(arch).items()
    }
    large = rng.choice(arch.width, OUTLIERS, replace=False)
    weights["ln_f.weight"][large] *= OUTLIER
    weights["wte.weight"][:, large[: OUTLIERS // 2]] *= OUTLIER
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", choices=list(PUBLISHED), help="made-up weights of these shapes (default: demo)")
    parser.add_argument("--precision", choices=["int8", "int4"], default="int8", help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--top-k", type=int, default=50, help="1: the likeliest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts' beginnings and draws (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args(arguments)
    arch = PUBLISHED[args.like] if args.like else read_architecture(DEMO_FOLDER)
    weights = made_up(arch) if args.like else Weights(DEMO_FOLDER, arch)
    with tempfile.TemporaryDirectory() as folder:
        Layout(arch, weights, args.precision, lambda *_: None).write(Path(folder))
        engine = NativeEngine(arch, Path(folder, FILE), args.precision, ROWS, args.threads)
    found = compare(engine, args.tokens, args.top_k, args.seed)
    print(f"{found.tokens} tokens, {found.different} differ; the second pass read {found.read:.1%} of the head")
    sys.exit(found.different > 0)


if __name__ == "__main__":
    main()
