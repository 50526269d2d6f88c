"""The reference engines: what transformers gives, through our interface."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from protocol import messages as m
from server.catalogue import DEMO_FOLDER, WEIGHTS_FILE, read_architecture
from server.engines.torch import TorchEngine
from server.weights import Weights
from tests.server.test_worker import Loop

ARCH = read_architecture(DEMO_FOLDER)
WEIGHTS = Weights(DEMO_FOLDER / WEIGHTS_FILE, ARCH)
IDS = np.random.default_rng(3).integers(1, ARCH.vocabulary, 80).tolist()


@pytest.fixture(scope="module")
def want() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy())


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.5), ("int8", 0.8)])
def test_chunks_steps_and_a_second_sequence(precision: str, bound: float, want: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    engine = TorchEngine(ARCH, DEMO_FOLDER, WEIGHTS, precision, 2)
    for _ in range(2):  # the second time on top of what the first left
        assert engine.prefill(0, IDS[:30], 0, []).shape == (0, ARCH.vocabulary)
        got = engine.prefill(0, IDS[30:70], 30, [0, 39])
        assert np.abs(got - want[[30, 69]]).max() < bound
        steps = np.concatenate([engine.decode([IDS[i]], [i]) for i in range(70, 80)])
        assert np.abs(steps - want[70:]).max() < bound
    assert (engine.quantised_share > 0.99) == (precision == "int8")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.decode([1], [0])


def test_a_reference_serves_requests_one_after_the_other() -> None:
    loop = Loop(engine=TorchEngine(ARCH, DEMO_FOLDER, WEIGHTS, "fp32", 2), name="torch")
    for i in (1, 2):
        loop.ask(i, prompt_ids=IDS[:40], strategy="greedy", max_new_tokens=8, n=2)
    loop.ask(3, prompt_ids=IDS[:40], strategy="sample", seed=1, logprobs=2, max_new_tokens=8)
    loop.turn(100)
    first, second, third = loop.link.sent
    assert isinstance(first, m.Generated) and isinstance(second, m.Generated) and isinstance(third, m.Generated)
    assert first.ids == second.ids == first.others[0].ids and len(third.logprobs) == 8
    loop.ask(4, prompt_ids=[1], strategy="beam")
    refusal = loop.link.sent[-1]
    assert isinstance(refusal, m.Failure) and "has 1" in refusal.message


def test_without_its_libraries_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['transformers'] = None; import server.engines.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ImportError: engine torch needs torch and transformers" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr
