"""Contexts of few tokens: scores like those of transformers, texts up to the last place, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from protocol import messages as m
from protocol.errors import BadModel
from server.catalogue.architecture import Architecture, read_architecture
from server.engines.base import Engine
from server.engines.load import load_engine
from server.link import Work
from tests.server.test_weights import copy_demo
from tests.server.test_worker import Loop

CONTEXT = 8


@dataclass(frozen=True)
class Narrow:
    """A model with a context of CONTEXT tokens: in an engine, and as transformers computes it."""

    engine: Engine
    arch: Architecture
    model: Any


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a maker of folders: of a model with so small a context, the vocabulary of demo and its tokenizer."""

    def folder(context: int) -> Path:
        made = copy_demo(
            tmp_path_factory.mktemp("models") / "small", n_layer=1, n_head=2, n_embd=16, n_positions=context
        )
        torch.manual_seed(4)
        model: Any = GPT2LMHeadModel
        model(GPT2Config.from_pretrained(made, initializer_range=0.5)).save_pretrained(made)
        return made

    return folder


def opened(folder: Path, cache: Path, name: str) -> tuple[Engine, Architecture]:
    arch = read_architecture(folder)
    return load_engine(folder, arch, name, "fp32", 2, 1, cache, 1 << 30, lambda *_: None).engine, arch


def asked(engine: Engine, arch: Architecture, request: m.Generate | m.Score) -> Any:
    """Return the reply of a worker."""
    loop = Loop(engine=engine, arch=arch)
    loop.worker.take(Work(id=1, group=0, request=request))
    loop.turn(200)
    (reply,) = loop.link.sent
    return reply


@pytest.fixture(scope="module", params=["native", "onnx"])
def narrow(make: Callable[[int], Path], cache: Path, request: pytest.FixtureRequest) -> Iterator[Narrow]:
    folder = make(CONTEXT)
    engine, arch = opened(folder, cache, request.param)
    yield Narrow(engine, arch, GPT2LMHeadModel.from_pretrained(folder).eval())
    engine.close()


def sliding(model: Any, ids: list[int], stride: int) -> list[float]:
    """Return the log-probabilities of transformers' docs/perplexity.md, of all tokens but the first."""
    found = []
    previous = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + CONTEXT, len(ids))
        new = end - previous - (begin == 0)  # nothing comes before the first
        with torch.inference_mode():
            logs = torch.log_softmax(model(torch.tensor([ids[begin:end]])).logits[0].double(), -1)
        found += [float(logs[at - 1, ids[begin + at]]) for at in range(end - begin - new, end - begin)]
        previous = end
        if end == len(ids):
            break
    return found


@pytest.mark.parametrize("stride", [None, 1, 3, CONTEXT - 1, CONTEXT])
def test_scores_are_those_of_the_sliding_window_of_transformers(narrow: Narrow, stride: int | None) -> None:
    """At a stride of the whole context every token has one before it too, as with windows that overlap by one."""
    step = min(stride or CONTEXT // 2, CONTEXT - 1)
    lengths = {2, *(n + i for n in (CONTEXT, CONTEXT + step, CONTEXT + 2 * step, 3 * CONTEXT) for i in (-1, 0, 1))}
    for length in sorted(lengths):
        ids = [(7 * i * i + 11) % 4096 for i in range(length)]
        got = asked(narrow.engine, narrow.arch, m.Score(ids=ids, stride=stride, bos="never"))
        assert isinstance(got, m.Scored), got
        assert got.ids == ids and got.logprobs[0] is None
        assert got.logprobs[1:] == pytest.approx(sliding(narrow.model, ids, step), abs=1e-4), length


def test_the_default_stride_goes_with_the_context(narrow: Narrow) -> None:
    assert CONTEXT // 2 < m.STRIDE
    ids = list(range(1, 40))
    scores = [
        asked(narrow.engine, narrow.arch, m.Score(ids=ids, stride=stride, bos="never")).logprobs
        for stride in (None, CONTEXT // 2)
    ]
    assert scores[0] == scores[1]
    refused = asked(narrow.engine, narrow.arch, m.Score(ids=ids, stride=CONTEXT + 1))
    assert (refused.code, refused.message) == (
        "bad_request", f"score: a stride of {CONTEXT + 1} is more than the context of {CONTEXT} tokens, its limit",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["native", "onnx"])
@pytest.mark.parametrize("context", [2, 32])
def test_texts_fill_a_small_context(make: Callable[[int], Path], cache: Path, name: str, context: int) -> None:
    folder = make(context)
    engine, arch = opened(folder, cache, name)
    fields: dict[str, Any] = {"strategy": "greedy", "ignore_eos": True}
    prompt = [5, 6, 7][: context - 1]
    most = context - len(prompt)
    got = asked(engine, arch, m.Generate(prompt_ids=prompt, max_new_tokens=most, **fields))
    model: Any = GPT2LMHeadModel.from_pretrained(folder)
    want = model.generate(torch.tensor([prompt]), max_new_tokens=most, do_sample=False, eos_token_id=None)
    assert got.ids == want[0, len(prompt) :].tolist()
    cut = asked(engine, arch, m.Generate(prompt_ids=[9] * 40 + prompt, max_new_tokens=most, truncate="left", **fields))
    assert cut.ids == got.ids and cut.prompt_truncated == 40
    for new, says in (
        (context, f"max_new_tokens must be at most {context - 1} with a context of {context} tokens, got {context}"),
        (1, f"the prompt has {context} tokens and max_new_tokens is 1, together more than the context of {context}"),
    ):
        refused = asked(engine, arch, m.Generate(prompt_ids=[5] * context, max_new_tokens=new, **fields))
        assert refused.code == "too_long" and refused.message.startswith(says)
    scored = asked(engine, arch, m.Score(ids=[5, 6, 7, 8]))
    assert len(scored.logprobs) == 4 and all(p < 0 for p in scored.logprobs[1:])
    engine.close()


def test_a_context_of_one_token_is_refused(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "one", n_positions=1)
    with pytest.raises(BadModel, match="n_positions=1; a context must have 2 tokens or more"):
        read_architecture(folder)
