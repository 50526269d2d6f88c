"""Every logit and score keeps its bits: digests that were made once hold on each instruction set and after each change.

A change of a sum's order changes what a seed writes. If one is meant, docs/kernels.md ("The order of every sum") says
so first, and the digests that a failure prints replace those in tests/data/digests.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.catalogue.architecture import Architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import instruction_sets
from server.checkpoint.tensors import Weights
from server.convert.native_layout import FILE, Layout
from server.engines.base import Run
from server.engines.native import NativeEngine
from tests.server.test_native import ARCH, ODD, OTHER, make

KEPT = Path(__file__).parent.parent / "data" / "digests.json"
SETS = instruction_sets()
MODELS = {"demo": ARCH, "odd": ODD, "other": OTHER}
LONG = 40


def requests(engine: NativeEngine, arch: Architecture) -> Iterator[tuple[str, bytes]]:
    """Yield the logits of a prompt, of chunks, of steps of 1 to 9 rows and of verified guesses."""
    ids = [int(i) for i in np.random.default_rng(5).integers(0, arch.vocabulary, LONG)]
    yield "prompt", engine.prefill(0, ids, 0, list(range(LONG))).tobytes()
    pasts = []
    for row in range(engine.rows):
        past = 1 + row * 4
        for first in range(0, past, 7):
            logits = engine.prefill(row, ids[first : min(past, first + 7)], first, [0])
        yield f"chunks of row {row}", logits.tobytes()
        pasts.append(past)
    for rows in range(1, engine.rows + 1):
        yield f"a step of {rows}", engine.decode(ids[:rows], pasts[:rows]).tobytes()
    guessed = [Run(row, part, pasts[row], range(len(part))) for row, part in enumerate((ids[:4], ids[4:5], ids[5:8]))]
    yield "guesses", engine.run(guessed).tobytes()
    members = (np.arange(arch.vocabulary) % 3 == 0).astype(np.float32)
    _, told = engine.judge([Run(0, ids, 0, (), ids[1:])], members)
    assert told.masses is not None
    arrays = (told.logprobs, told.ranks, told.entropies, told.greedy, told.masses)
    yield "scores", b"".join(array.tobytes() for array in arrays)


def _name(model: str, precision: str, cache: str) -> str:
    return f"{model} {precision}" + (" with a cache of int8" if cache == "int8" else "")


@pytest.mark.parametrize(
    ("precision", "cache"), [("fp32", "fp32"), ("int8", "fp16"), ("int4", "fp16"), ("int8", "int8"), ("int4", "int8")]
)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SETS)
def test_every_logit_keeps_its_bits(tmp_path: Path, name: str, model: str, precision: str, cache: str) -> None:
    arch = MODELS[model]
    if model == "demo":
        Layout(arch, Weights(DEMO_FOLDER, arch), precision, lambda *_: None).write(tmp_path)
        engine = NativeEngine(arch, tmp_path / FILE, precision, 9, 2, cache=cache, instruction_set=name)
    else:
        engine = make(tmp_path, arch, precision, rows=9, cache=cache, instruction_set=name)
    found = {what: hashlib.sha256(logits).hexdigest()[:16] for what, logits in requests(engine, arch)}
    engine.close()
    kept = json.loads(KEPT.read_text(encoding="utf-8"))[_name(model, precision, cache)]
    assert found == kept, json.dumps(found)
