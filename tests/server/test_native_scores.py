"""What the kernels tell of tokens next to the head: as from all logits, whatever is computed beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.catalogue.engines import instruction_sets
from server.checkpoint.tensors import expected_shapes
from server.convert.native_layout import FILE, Layout
from server.engines.base import Judged, Run
from server.engines.native import Choice, NativeEngine
from server.worker.judging import judge
from tests.server.test_native import ODD

SETS = instruction_sets()
WIDE = replace(ODD, vocabulary=1003)
"""Several parts of the head, the last of them with padding."""
RANDOM = np.random.default_rng(8)
IDS = [int(i) for i in RANDOM.integers(0, WIDE.vocabulary, 49)]
NEXT = [*IDS[1:], 0]
MEMBERS = (RANDOM.random(WIDE.vocabulary) < 0.3).astype(np.float32)


def opened(
    folder: Path, precision: str, threads: int = 2, set_name: str | None = None, spoilt: float = 0
) -> NativeEngine:
    """Return an engine of a model in which many tokens are the same as others."""
    random = np.random.default_rng(3)
    weights = {
        name: (random.normal(0, 0.2, shape) + (name.endswith(".weight") and "ln" in name)).astype(np.float32)
        for name, shape in expected_shapes(WIDE).items()
    }
    (table,) = (name for name in weights if name.endswith("wte.weight"))
    weights[table][500:] = weights[table][: WIDE.vocabulary - 500]
    weights[table][3] += spoilt
    folder.mkdir(exist_ok=True)
    Layout(WIDE, weights, precision, lambda *_: None).write(folder)
    return NativeEngine(WIDE, folder / FILE, precision, 4, threads, instruction_set=set_name)


def bits(judged: Judged) -> list[bytes]:
    masses = judged.masses if judged.masses is not None else np.zeros(0)
    return [a.tobytes() for a in (judged.logprobs, judged.ranks, judged.entropies, judged.greedy, masses)]


@pytest.fixture(params=["fp32", "int8"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NativeEngine]:
    engine = opened(tmp_path / "model", request.param)
    yield engine
    engine.close()


def test_it_is_what_all_logits_say(engine: NativeEngine) -> None:
    logits = engine.prefill(0, IDS, 0, list(range(len(IDS))))
    ties = logits.argmax(1)
    tokens = [*NEXT[:20], *(ties[20:40] + 500) % 1003, *NEXT[40:]]  # twins of the likeliest: rank 1, and not greedy
    want = judge(logits, tokens, MEMBERS)
    _, found = engine.judge([Run(1, IDS, 0, (), tokens)], MEMBERS)
    assert found.ranks.tolist() == want.ranks.tolist() and found.greedy.tolist() == want.greedy.tolist()
    np.testing.assert_allclose(found.logprobs, want.logprobs, atol=2e-6)
    np.testing.assert_allclose(found.entropies, want.entropies, atol=1e-5)
    assert found.masses is not None and want.masses is not None
    np.testing.assert_allclose(found.masses, want.masses, atol=1e-5)
    assert any(rank == 1 and token != best for rank, token, best in zip(found.ranks, tokens, found.greedy, strict=True))


def test_company_changes_no_bit(engine: NativeEngine) -> None:
    """Neither other rows, nor chunks, nor logits that are wanted in the same step, nor a set of members."""
    _, whole = engine.judge([Run(0, IDS, 0, (), NEXT)], MEMBERS)
    decoded = engine.decode(IDS[:1], [0])[0].copy()
    engine.judge([Run(1, IDS[:20], 0, (), [])], None)
    runs = [Run(0, IDS[:1], 0, [0]), Run(1, IDS[20:], 20, (), NEXT[20:]), Run(2, IDS[:33], 0, (), NEXT[:33])]
    logits, mixed = engine.judge(runs, MEMBERS)
    assert logits.shape == (1, WIDE.vocabulary) and logits[0].tobytes() == decoded.tobytes()
    assert bits(mixed.part(0, 29)) == bits(whole.part(20, 49)) and bits(mixed.part(29, 62)) == bits(whole.part(0, 33))
    _, last = engine.judge([Run(0, IDS, 0, (), NEXT[-1:])], MEMBERS)
    assert bits(last) == bits(whole.part(48, 49))
    _, without = engine.judge([Run(0, IDS, 0, (), NEXT)], None)
    assert without.masses is None and bits(without)[:4] == bits(whole)[:4]


def test_tokens_are_chosen_from_the_logits_that_are_given(engine: NativeEngine) -> None:
    """Also where a step that judges has come after them, and from that step's own."""
    before = engine.decode(IDS[:1], [0])
    after, _ = engine.judge([Run(1, IDS[:3], 0, [1, 2], NEXT[:3])], None)
    want = [int(row.argmax()) for row in (before[0], *after)]
    assert len(set(want)) == 3
    assert engine.choose(before, [0], [Choice()]) + engine.choose(after, [0, 1], [Choice(), Choice()]) == want
    with pytest.raises(ValueError, match="read-only"):
        after[0, 5] = 100


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_each_instruction_set_and_number_of_threads_gives_the_same_bits(tmp_path: Path, precision: str) -> None:
    found = []
    for name, threads in [(name, 2) for name in SETS] + [(SETS[0], threads) for threads in (1, 3)]:
        engine = opened(tmp_path / "model", precision, threads, name)
        found.append(bits(engine.judge([Run(0, IDS, 0, (), NEXT)], MEMBERS)[1]))
        engine.close()
    assert all(one == found[0] for one in found)


def test_what_is_no_number_is_refused_and_what_does_not_exist_too(tmp_path: Path) -> None:
    engine = opened(tmp_path / "model", "fp32", spoilt=np.nan)
    with pytest.raises(FloatingPointError, match="the logits are not numbers"):
        engine.judge([Run(0, [5, 6], 0, (), [6, 7])], None)
    with pytest.raises(ValueError, match="a token, row or position that there is not"):
        engine.judge([Run(0, [5, 6], 0, (), [6, WIDE.vocabulary])], None)
    engine.close()
