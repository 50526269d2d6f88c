"""What a precision costs: the figures against a computation of their own, and where they are kept."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from protocol import messages as m
from protocol.errors import BadRequest
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.files import WEIGHTS_FILE
from server.catalogue.notes import named_after
from server.catalogue.records import Records
from server.checkpoint.tensors import Weights
from server.checkpoint.tokenizer import read_tokenizer
from server.engines.base import Engine, Logits
from server.engines.load import load_engine
from server.engines.torch import TorchEngine
from server.worker.fidelity import check, compare, greedy
from server.worker.text import Text

ARCH = read_architecture(DEMO_FOLDER)
TEXT = Text(read_tokenizer(DEMO_FOLDER), ARCH)
VERSE = (
    "When in disgrace with fortune and men's eyes\nI all alone beweep my outcast state,\n"
    "And trouble deaf heaven with my bootless cries,\nAnd look upon myself, and curse my fate,\n"
    "Wishing me like to one more rich in hope,\nFeatured like him, like him with friends possessed,\n"
    "Desiring this man's art, and that man's scope,\nWith what I most enjoy contented least;\n"
)
IDS = TEXT.encode(VERSE)


def load(precision: str, cache: Path) -> Engine:
    return load_engine(DEMO_FOLDER, ARCH, "onnx", precision, 1, 1, cache, 1 << 30, lambda *_: None).engine


@pytest.fixture(scope="module")
def full(cache: Path) -> Engine:
    return load("fp32", cache)


def test_against_itself_nothing_is_lost(full: Engine) -> None:
    steps: list[tuple[int, int]] = []
    same = compare(full, full, IDS, lambda done, total: steps.append((done, total)))
    assert (
        same.kl_mean == same.kl_p99 == 0 and same.top1_agreement == 1 and same.perplexity == same.reference_perplexity
    )
    assert same.greedy_tokens == same.greedy_limit == 64 and same.tokens == len(IDS) and same.tok_s > 0
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]


def test_the_figures_are_those_of_transformers_and_of_the_definition(full: Engine, cache: Path) -> None:
    """Perplexity by transformers' own loss; the divergence by its definition, with torch."""
    small = load("int4", cache)
    told = compare(small, full, IDS, lambda *_: None)
    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert told.reference_perplexity == pytest.approx(
            float(model(torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.exp()), rel=1e-4
        )
        want = model(torch.tensor([IDS])).logits[0, :-1].double().log_softmax(-1)
    got = torch.tensor(small.prefill(0, IDS, 0, range(len(IDS) - 1))).double().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(got, want, log_target=True, reduction="none").sum(-1)
    assert told.kl_mean == pytest.approx(float(divergence.mean()), rel=0.02)
    assert told.kl_p99 == pytest.approx(float(divergence.quantile(0.99)), rel=0.05)
    assert told.top1_agreement == pytest.approx(float((got.argmax(-1) == want.argmax(-1)).double().mean()), abs=0.02)
    assert told.perplexity == pytest.approx(float((-got[range(len(IDS) - 1), IDS[1:]].mean()).exp()), rel=0.01)
    assert 0 < told.greedy_tokens < 64


def test_a_long_text_is_compared_in_windows(full: Engine) -> None:
    ids = (IDS * 20)[: ARCH.context + 500]
    asked: list[tuple[int, int]] = []

    class Watched(TorchEngine):
        def prefill(
            self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: object = None
        ) -> Logits:
            asked.append((past, len(wanted)))
            return full.prefill(row, ids, past, wanted)

    watched = Watched(ARCH, Weights(DEMO_FOLDER, ARCH), "fp32", 2)
    watched.decode = full.decode  # type: ignore[method-assign]
    compare(full, watched, ids, lambda *_: None)
    assert sum(count for _, count in asked) == len(ids) - 2 + 8  # no successor at the end of either window; 8 prompts
    assert max(past for past, _ in asked) < ARCH.context


def test_too_little_is_refused() -> None:
    with pytest.raises(BadRequest, match="must have at least 64 tokens, got 5"):
        check(IDS[:5], 1024)
    with pytest.raises(BadRequest, match="must be at least 8 tokens, it is 4"):
        check(IDS, 4)


def test_greedy_is_transformers_greedy(full: Engine) -> None:
    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    want = model.generate(
        torch.tensor([IDS[:20]]),
        do_sample=False,
        max_new_tokens=30,
        min_new_tokens=30,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert greedy(full, IDS[:20], 30)[0] == want[0, 20:].tolist()


FIDELITY = msgspec.convert(
    dict.fromkeys(m.Fidelity.__struct_fields__, 1) | {"held_out": True, "calibrated": False}, m.Fidelity
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"one")
    return tmp_path


def records(folder: Path, **changed: Any) -> Records:
    return Records(folder / "cache", folder, dataclasses.replace(ARCH, **changed))


def test_a_record_holds_while_the_model_does(folder: Path) -> None:
    assert records(folder).found() == {}
    records(folder).add("native", "int4", "int8", FIDELITY)
    records(folder).add("torch", "int8", "fp32", FIDELITY)
    assert records(folder).found() == {"native/int4/int8": FIDELITY, "torch/int8/fp32": FIDELITY}
    assert records(folder, heads=8).found() == {}
    measured = records(folder)
    os.utime(folder / WEIGHTS_FILE, (1, 1))
    measured.add("native", "fp32", "fp32", FIDELITY)  # what ran while the file was changed is of the one before
    assert records(folder).found() == {}


def test_a_record_is_dropped_whatever_the_cache(folder: Path) -> None:
    for precision, cache in (("int4", "int8"), ("int4", "fp16"), ("int8", "int8")):
        records(folder).add("native", precision, cache, FIDELITY)
    records(folder).drop("native", "int4")
    assert records(folder).found() == {"native/int8/int8": FIDELITY}


def test_a_damaged_record_is_none(folder: Path) -> None:
    records(folder).add("native", "int4", "int8", FIDELITY)
    (kept,) = (folder / "cache").iterdir()
    whole = kept.read_bytes()
    for damage in (whole[:-9], whole[:-9] + np.random.default_rng(0).bytes(9), b"", b"[]"):
        kept.write_bytes(damage)
        assert records(folder).found() == {}


def test_a_folder_that_cannot_be_written_leaves_no_draft(folder: Path) -> None:
    (folder / "cache").mkdir()
    place = folder / "cache" / named_after(folder / WEIGHTS_FILE, folder, ".fidelity").name
    place.mkdir()  # where the record should be
    with pytest.raises(OSError):
        records(folder).add("native", "int4", "int8", FIDELITY)
    assert list((folder / "cache").iterdir()) == [place] and records(folder).found() == {}
