"""Words of a text through a real daemon, against transformers and the formulas of the papers."""

from __future__ import annotations

import math
import queue
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from protocol import Client, messages as m
from protocol.connection import Event
from scripts.daemon import Daemon
from server.catalogue.catalogue import DEMO_FOLDER

TOKENIZER = cast("Any", PreTrainedTokenizerFast)(tokenizer_file=str(DEMO_FOLDER / "tokenizer.json"))
PIECES = [TOKENIZER.decode([token]) for token in range(len(TOKENIZER))]
END: int = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
BEGINS = torch.tensor([piece[:1] in {*" \t\n\v\f\r"} or token == END for token, piece in enumerate(PIECES)])
FP32: dict[str, Any] = {"model": "demo", "precision": "fp32"}
TEXTS = [
    "The old man the boat.",
    "Shall I compare thee to a summer's day?\nThou art more lovely, and more temperate:\n\n",
    "O, what a naïve café — “quotes” 汉字 🙂\u00a0end.",
    " word",
]


@pytest.fixture(scope="module")
def asked(shared_daemon: Daemon) -> Iterator[Client]:
    with Client(shared_daemon.endpoint) as client:
        client.load(**FP32)
        yield client
        client.unload(**FP32)


@pytest.fixture(scope="module")
def model() -> Any:
    return GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()


def logs_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each token, in float64."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def by_hand(logs: torch.Tensor, ids: list[int], begins_inside: bool = False) -> list[float]:
    """Log-probabilities of the words of tokens: logs[i] is where ids[i] comes from, the last what follows."""
    text_before = ""
    starts: list[int] = []
    for i, token in enumerate(ids):
        if not text_before.strip() or (BEGINS[token] and not text_before[-1:].isspace()):
            starts += [i] if text_before.strip() or not starts else []
            text_before = ""
        text_before += PIECES[token]
    mass = logs.masked_fill(~BEGINS, -math.inf).logsumexp(-1)
    values = []
    for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
        if not TOKENIZER.decode(ids[first:last]).strip():
            continue
        given = mass[first] if BEGINS[ids[first]] else torch.log1p(-mass[first].exp())
        own = sum(float(logs[i, ids[i]]) for i in range(first, last))
        values.append(own + float(mass[last] - (given if first or not begins_inside else 0)))
    return values


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_the_papers(asked: Client, model: Any, text: str) -> None:
    told = asked.score(text, unit="word", **FP32)
    logs = logs_of(model, [END, *told.ids])
    own = [float(logs[i, token]) for i, token in enumerate(told.ids)]
    assert told.logprobs == pytest.approx(own, abs=1e-3) and told.words is not None
    assert told.words.texts == re.findall(r"[^ \n]+", text)
    places = zip(told.words.starts, told.words.ends, strict=True)
    assert [text[begin:end] for begin, end in places] == told.words.texts
    assert told.words.logprobs == pytest.approx(by_hand(logs, told.ids), abs=1e-3)
    assert all(value < 0 for value in told.words.logprobs if value is not None)


def test_words_of_a_text_longer_than_the_context(asked: Client, model: Any) -> None:
    """Each by the window that scored its first token; what parts two windows is a word's own."""
    text = "When forty winters shall besiege thy brow, and dig deep trenches in thy beauty's field, " * 60
    told = asked.score(text, unit="word", stride=512, **FP32)
    assert 1024 < len(told.ids) < 2000 and told.words is not None and told.words.texts == text.split()
    ids = [END, *told.ids]
    first, second = logs_of(model, ids[:1024]), logs_of(model, ids[512:])
    logs = torch.cat([first[:1023], second[1023 - 512 :]])  # what the first window did not score is the second one's
    assert told.words.logprobs == pytest.approx(by_hand(logs, told.ids), abs=1e-3)


def test_words_after_a_context(asked: Client, model: Any) -> None:
    """The rest of a word whose beginning is in the context, and without anything before the first token."""
    passages = [m.Passage(text="pare thee", context="Shall I com"), m.Passage(text="thee and me")]
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    asked.connection.submit(m.Score(texts=passages, bos="never", unit="word", **FP32), events.put, 60)
    texts = [events.get(timeout=60) for _ in passages]
    found = {one.index: one for one in texts if isinstance(one, m.ScoredText)}
    rest, plain = (found[i].words for i in range(2))
    assert rest is not None and plain is not None and (rest.texts, plain.texts[0]) == (["pare", "thee"], "thee")
    lead = TOKENIZER.encode("Shall I com")
    logs = logs_of(model, [*lead, *found[0].ids])[len(lead) - 1 :]
    assert rest.logprobs == pytest.approx(by_hand(logs, found[0].ids, begins_inside=True), abs=1e-3)
    assert plain.logprobs[0] is None and None not in plain.logprobs[1:]
