"""The reference engines: what transformers gives, through our interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from protocol import messages as m
from protocol.errors import LoadFailed
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tensors import Weights
from server.engines.base import Engine
from server.engines.optimum import Export, OptimumEngine, quantisation
from server.engines.torch import TorchEngine
from tests.server.test_worker import Loop

ARCH = read_architecture(DEMO_FOLDER)
WEIGHTS = Weights(DEMO_FOLDER, ARCH)
IDS = np.random.default_rng(3).integers(1, ARCH.vocabulary, 80).tolist()


@pytest.fixture(scope="module")
def want() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy())


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.5), ("int8", 0.8)])
def test_chunks_steps_and_a_second_sequence(
    precision: str, bound: float, want: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    engine = TorchEngine(ARCH, WEIGHTS, precision, 1)
    run(engine, want, bound)
    assert (engine.quantised_share > 0.99) == (precision == "int8")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.decode([1], [0])


def run(engine: Engine, want: np.ndarray[tuple[int, ...], np.dtype[np.float32]], bound: float) -> None:
    for _ in range(2):  # the second time on top of what the first left
        assert engine.prefill(0, IDS[:30], 0, []).shape == (0, ARCH.vocabulary)
        got = engine.prefill(0, IDS[30:70], 30, [0, 39])
        assert np.abs(got - want[[30, 69]]).max() < bound
        steps = np.concatenate([engine.decode([IDS[i]], [i]) for i in range(70, 80)])
        assert np.abs(steps - want[70:]).max() < bound


@pytest.mark.parametrize(("precision", "bound", "share"), [("fp32", 1e-4, 0), ("int8", 1.2, 1)])
def test_optimum(
    precision: str, bound: float, share: float, want: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    Export(ARCH, WEIGHTS, precision, lambda done, total: steps.append((done, total))).write(tmp_path)
    assert steps[-1] == (len(steps) - 1, len(steps) - 1)
    assert {file.name for file in tmp_path.iterdir()} >= {"model.onnx", "config.json", "quantised_share"}
    engine = OptimumEngine(ARCH, tmp_path, 1)
    run(engine, want, bound)
    assert engine.quantised_share == share
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.decode([1], [0])


def test_the_quantisation_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert str(quantisation().weights_dtype) == "QInt8"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_vnni_supported", "_is_avx512_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert str(quantisation().weights_dtype) == "QUInt8"  # AVX2 multiplies unsigned weights


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own: what torch has found is remembered."""
    code = """
from server.catalogue.architecture import *
from server.catalogue.architecture import *
from server.catalogue.catalogue import *
from server.checkpoint.tensors import Weights
from server.engines.torch import TorchEngine
arch = read_architecture(DEMO_FOLDER)
TorchEngine(arch, Weights(DEMO_FOLDER, arch), "fp32", 1, compiled=True).warm_up()
"""
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {
        "PATH": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert "LoadFailed: torch.compile failed" in done.stderr and "Debian: g++" in done.stderr, done.stderr


def test_a_path_with_a_space_is_named_where_torch_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes its compiler's command of words without quotes, of its own folder and of the cache."""
    engine = TorchEngine(ARCH, WEIGHTS, "fp32", 1, compiled=True)

    def fail(*_: object) -> None:
        raise RuntimeError("CppCompileError: C++ compile error\n\nCommand:\ng++ ...")

    monkeypatch.setattr(engine, "decode", fail)
    for variable, path in (("", "/home/me/a gpt2d/.venv/torch/__init__.py"), ("/home/me/a cache", "/opt/torch.py")):
        monkeypatch.setattr(torch, "__file__", path)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", variable)
        with pytest.raises(LoadFailed, match="compile error; it cannot use a path with a space") as failed:
            engine.warm_up()
        assert (variable or path) in str(failed.value)


def test_a_reference_serves_requests_one_after_the_other() -> None:
    loop = Loop(engine=TorchEngine(ARCH, WEIGHTS, "fp32", 1), name="torch")
    for i in (1, 2):
        loop.ask(i, prompt_ids=IDS[:40], strategy="greedy", max_new_tokens=8, n=2)
    loop.ask(3, prompt_ids=IDS[:40], strategy="sample", seed=1, logprobs=2, max_new_tokens=8)
    loop.turn(100)
    first, second = loop.link.sent[:2]
    third = loop.link.sent[2]
    assert isinstance(first, m.Generated) and isinstance(second, m.Generated) and isinstance(third, m.Generated)
    assert first.ids == second.ids == first.others[0].ids and len(third.logprobs) == 8
    loop.ask(4, prompt_ids=[1], strategy="beam")
    refusal = loop.link.sent[-1]
    assert isinstance(refusal, m.Failure) and "has 1" in refusal.message


@pytest.mark.parametrize(
    ("engine", "missing", "says"),
    [
        ("torch", "transformers", "engine torch needs torch and transformers"),
        ("optimum", "torch", "engine torch needs torch and transformers"),
        ("optimum", "optimum.onnxruntime", "engine optimum needs optimum and optimum-onnx"),
    ],
)
def test_without_its_libraries_it_says_what_to_install(engine: str, missing: str, says: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; import server.engines.{engine}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"ImportError: {says}" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr
