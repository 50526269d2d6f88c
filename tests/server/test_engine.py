"""Every engine against transformers, on the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.engines.base import Engine
from server.engines.load import load_engine

ARCH = read_architecture(DEMO_FOLDER)
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, ARCH.vocabulary, 1024).tolist()
TOLERANCE = 1e-4


def make(cache: Path, name: str, precision: str, rows: int) -> Engine:
    return load_engine(DEMO_FOLDER, ARCH, name, precision, rows, 1, cache, 1 << 30, lambda *_: None).engine


@pytest.fixture(scope="module", params=["native", "onnx"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(cache: Path, name: str) -> Iterator[Engine]:
    engine = make(cache, name, "fp32", 4)
    yield engine
    engine.close()


def expected(reference: GPT2LMHeadModel, ids: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.inference_mode():
        return np.asarray(reference(torch.tensor([ids])).logits[0].numpy())


def test_logits_of_a_full_context(engine: Engine, reference: GPT2LMHeadModel) -> None:
    ours = engine.prefill(0, IDS, 0, list(range(len(IDS))))
    assert np.abs(ours - expected(reference, IDS)).max() < TOLERANCE


def test_chunks_and_steps_are_the_same_as_all_at_once(engine: Engine, reference: GPT2LMHeadModel) -> None:
    want = expected(reference, IDS[:60])
    assert engine.prefill(0, IDS[:20], 0, []).shape == (0, ARCH.vocabulary)
    chunk = engine.prefill(0, IDS[20:50], 20, [0, 29])
    assert np.abs(chunk - want[[20, 49]]).max() < TOLERANCE
    for i in range(50, 60):
        assert np.abs(engine.decode([IDS[i]], [i])[0] - want[i]).max() < TOLERANCE


def test_a_batch_of_different_lengths(engine: Engine, reference: GPT2LMHeadModel) -> None:
    lengths = [5, 300, 41, 1023]
    for row, n in enumerate(lengths):
        engine.prefill(row, IDS[row : row + n] if row + n <= 1024 else IDS[:n], 0, [])
    prompts = [IDS[row : row + n] if row + n <= 1024 else IDS[:n] for row, n in enumerate(lengths)]
    logits = engine.decode([7, 8, 9, 10], lengths)
    for row, prompt in enumerate(prompts):
        assert np.abs(logits[row] - expected(reference, [*prompt, 7 + row])[-1]).max() < TOLERANCE


def test_rows_move_and_can_be_taken_out_and_put_back(engine: Engine, reference: GPT2LMHeadModel) -> None:
    want = expected(reference, IDS[:31])[-1]
    engine.prefill(2, IDS[:30], 0, [])
    engine.move(2, 0, 30)
    assert np.abs(engine.decode([IDS[30]], [30])[0] - want).max() < TOLERANCE
    kv = engine.export(0, 30)
    assert kv.positions == 30
    assert kv.keys.nbytes + kv.values.nbytes == ARCH.row_bytes("onnx", "fp32") * 30 // 1024
    engine.prefill(0, IDS[500:600], 0, [])
    engine.restore(0, kv)
    assert np.abs(engine.decode([IDS[30]], [30])[0] - want).max() < TOLERANCE


def test_hidden_states_of_chunks_and_steps(engine: Engine, reference: GPT2LMHeadModel) -> None:
    with torch.inference_mode():
        want = reference(torch.tensor([IDS[:31]]), output_hidden_states=True).hidden_states[-1][0].numpy()
    hidden = np.zeros((20, ARCH.width), np.float32)
    engine.prefill(0, IDS[:20], 0, [19], hidden)
    assert np.abs(hidden - want[:20]).max() < TOLERANCE
    engine.prefill(0, IDS[20:30], 20, [], hidden[:10])
    assert np.abs(hidden[:10] - want[20:30]).max() < TOLERANCE
    engine.prefill(1, IDS[:30], 0, [])
    engine.decode([IDS[30]] * 2, [30] * 2, hidden[:2])
    assert np.abs(hidden[:2] - want[30]).max() < TOLERANCE
    before = hidden.copy()
    engine.decode([1, 2], [31, 31])  # what was asked for once is not written to again
    np.testing.assert_array_equal(hidden, before)


def test_only_the_positions_after_a_common_ancestor_move(engine: Engine, reference: GPT2LMHeadModel) -> None:
    for row, last in ((0, 7), (1, 9)):
        engine.prefill(row, [*IDS[:20], *[last] * 5], 0, [])
    engine.move(1, 0, 25, 20)
    want = expected(reference, [*IDS[:20], *[9] * 5, 3])[-1]
    assert np.abs(engine.decode([3], [25])[0] - want).max() < TOLERANCE


def test_greedy_text_is_that_of_transformers(engine: Engine, reference: GPT2LMHeadModel) -> None:
    prompt = IDS[:8]
    with torch.inference_mode():
        want = reference.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=200,
            min_new_tokens=200,
            pad_token_id=0,
            eos_token_id=None,
        )
    ids = list(prompt)
    logits = engine.prefill(0, prompt, 0, [7])
    for _ in range(200):
        ids.append(int(logits[0].argmax()))
        logits = engine.decode([ids[-1]], [len(ids) - 1])
    assert ids == want[0].tolist()


@pytest.mark.parametrize(("precision", "bound"), [("int8", 2e-3), ("int4", 6e-2)])
def test_quantised_logits_stay_close(
    cache: Path, name: str, reference: GPT2LMHeadModel, precision: str, bound: float
) -> None:
    engine = make(cache, name, precision, 1)
    ids = IDS[:200]
    want = torch.log_softmax(torch.tensor(expected(reference, ids)), -1)
    got = torch.log_softmax(torch.tensor(engine.prefill(0, ids, 0, list(range(len(ids))))), -1)
    divergence = (want.exp() * (want - got)).sum(-1).mean()
    assert 0 < divergence < bound, "mean Kullback-Leibler divergence, nats"
    engine.close()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_logits_do_not_depend_on_the_batch(cache: Path, name: str, precision: str) -> None:
    engine = make(cache, name, precision, 3)
    for row in range(3):
        engine.prefill(row, IDS[row * 50 : row * 50 + 40], 0, [])
    together = engine.decode([1, 2, 3], [40, 40, 40])[0].copy()
    alone = engine.decode([1], [40])[0]
    assert np.abs(together - alone).max() < 1e-4
    engine.close()


def test_a_closed_engine_says_so(cache: Path, name: str) -> None:
    engine = make(cache, name, "int8", 1)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.prefill(0, [1], 0, [0])
