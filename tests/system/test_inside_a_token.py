"""Log-probabilities, scores and tokens, through a real daemon, against transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2LMHeadModel

from protocol import Client
from protocol.errors import BadRequest
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tokenizer import read_tokenizer
from server.worker.text import Text

PROMPT = "Shall I compare thee"
ARCH = read_architecture(DEMO_FOLDER)
TEXT = Text(read_tokenizer(DEMO_FOLDER), ARCH)


def test_log_probabilities(client: Client) -> None:
    stream = client.stream(PROMPT, seed=3, max_new_tokens=30, logprobs=5)
    pieces = list(stream)
    result = stream.result
    assert [p for piece in pieces for p in piece.logprobs] == result.logprobs
    assert all(len(piece.logprobs) == len(piece.ids) for piece in pieces)
    assert len(result.logprobs) == len(result.ids) == 30
    for token, told in zip(result.ids, result.logprobs, strict=True):
        assert len(told.top) == 5 and told.logprob <= 0
        assert [a.logprob for a in told.top] == sorted((a.logprob for a in told.top), reverse=True)
        for alternative in told.top:
            assert alternative.id != token or alternative.logprob == told.logprob
    assert result.ids == client.generate(PROMPT, seed=3, max_new_tokens=30).ids
    greedy = client.generate(PROMPT, strategy="greedy", logprobs=1)
    assert [told.top[0].id for told in greedy.logprobs] == greedy.ids
    assert "".join(told.top[0].text for told in greedy.logprobs) == greedy.text
    assert [told.text for told in greedy.logprobs] == [told.top[0].text for told in greedy.logprobs]


@pytest.fixture
def fp32(client: Client) -> Iterator[None]:
    """Another precision, which is gone again also where a test fails: the shared daemon's int8 is the only one."""
    client.load("demo", precision="fp32")
    yield
    client.unload("demo", precision="fp32")


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("stride", [1024, 512, 100])
def test_scores_are_those_of_the_sliding_window_of_transformers(client: Client, stride: int) -> None:
    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    text = "When forty winters shall besiege thy brow,\nAnd dig deep trenches in thy beauty's field,\n" * 60
    ids = TEXT.encode(text)
    assert 1200 < len(ids) < 3000
    expected, scored = [math.nan] * len(ids), 1
    for begin in range(0, len(ids), min(stride, 1023)):  # windows that only touch would leave one token out each
        window = torch.tensor([ids[begin : begin + 1024]])
        with torch.inference_mode():
            logs = torch.log_softmax(model(window).logits[0].double(), -1)
        for i in range(max(scored, begin + 1), begin + window.shape[1]):
            expected[i] = float(logs[i - begin - 1, ids[i]])
        scored = begin + window.shape[1]
        if scored >= len(ids):
            break
    got = client.score(text, precision="fp32", stride=stride, bos="never")
    assert got.ids == ids and got.logprobs[0] is None
    assert [p for p in got.logprobs if p is not None] == pytest.approx(expected[1:], abs=2e-4)
    loss = -sum(expected[1:])
    assert got.perplexity == pytest.approx(math.exp(loss / (len(ids) - 1)), rel=1e-4)
    first = client.tokenize(text, precision="int8").offsets[1]
    assert got.bits_per_byte == pytest.approx(loss / math.log(2) / (len(text) - first), rel=1e-4)
    assert client.score(ids=ids[:50], precision="fp32", bos="never").logprobs[1:] == pytest.approx(
        expected[1:50], abs=2e-4
    )


def test_what_cannot_be_scored_is_refused(client: Client) -> None:
    for wrong, says in (
        ({"text": ""}, "at least 1 token, got none"),
        ({"ids": [5], "bos": "never"}, "at least 2 tokens"),
        ({"text": "a b c", "stride": 2000}, "a stride of 2000 is more than the context of 1024 tokens"),
        ({}, "exactly one"),
    ):
        with pytest.raises(BadRequest, match=says):
            client.score(**wrong)


def test_scoring_goes_on_beside_streams(client: Client) -> None:
    alone = client.score("to be or not to be " * 300)
    with client.stream("x", max_new_tokens=1000, ignore_eos=True) as stream:
        next(stream)
        assert client.score("to be or not to be " * 300).logprobs == pytest.approx(alone.logprobs, abs=1e-3)
        list(stream)
    assert len(stream.result.ids) == 1000


@pytest.mark.parametrize("text", ["Shall I compare thee", "naïve – 汉字 🙂\n", "", "a<|endoftext|>b"])
def test_tokenize_both_ways(client: Client, text: str) -> None:
    told = client.tokenize(text)
    data = text.encode()
    assert len(told.offsets) == len(told.ids) + 1 and told.offsets[0] == 0 and told.offsets[-1] == len(data)
    assert told.offsets == sorted(told.offsets)
    back = client.tokenize(ids=told.ids)
    assert (back.text, back.offsets) == (text, told.offsets)
    with pytest.raises(BadRequest, match="must be 0 to 4095, got 4096"):
        client.tokenize(ids=[4096])
    with pytest.raises(BadRequest, match="exactly one"):
        client.tokenize()
