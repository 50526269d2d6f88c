"""Models with other tokenizers than GPT-2's, through a real daemon: streamed and at the end, as transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from protocol import Client
from protocol.errors import BadRequest
from scripts.daemon import Daemon
from tests.server.tokenizer_kinds import KINDS

MODELS = {"uer": "[CLS]", "Metaspace BPE": "<s>"}
"""Names of models, which are those of their tokenizers' kinds, and what stands before every text."""
PROMPTS = ["hello wo", "你好，é", "", "hello<s>[SEP]a"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[tuple[Client, Path]]:
    """A client of a daemon with a model of random weights for each kind of tokenizer, and these models' folder."""
    home = tmp_path_factory.mktemp("texts")
    for name in MODELS:
        folder = home / "models" / name
        folder.mkdir(parents=True)
        KINDS[name](folder)
        torch.manual_seed(1)
        rows = len(tokenizer_of(folder)) - 1  # the last token is one that the model does not have
        make: Any = GPT2Config
        config = make(
            vocab_size=rows, n_layer=1, n_head=2, n_embd=16, n_positions=96, bos_token_id=None, eos_token_id=None
        )
        model: Any = GPT2LMHeadModel
        model(config).save_pretrained(folder)
    daemon = Daemon(home, "--cache-dir", str(cache))
    with Client(daemon.endpoint) as client:
        for name in MODELS:
            client.load(name, engine="onnx", precision="fp32")
        yield client, home / "models"
    daemon.kill()


def tokenizer_of(folder: Path) -> Any:
    auto: Any = AutoTokenizer
    return auto.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_text_of_a_stream_is_that_of_transformers(texts: tuple[Client, Path], name: str, prompt: str) -> None:
    client, models = texts
    judge = tokenizer_of(models / name)
    before = [judge.convert_tokens_to_ids(MODELS[name])]
    ids = client.tokenize(prompt, model=name).ids
    assert ids == before + judge(prompt, add_special_tokens=False).input_ids
    for more in ({"top_k": 0, "temperature": 5.0, "seed": 3}, {"strategy": "beam", "n": 2}, {"strategy": "greedy"}):
        stream = client.stream(prompt, model=name, max_new_tokens=40, **more)
        pieces = [piece.text for piece in stream if piece.index == 0]
        result = stream.result
        whole = judge.decode(ids + result.ids, skip_special_tokens=True)
        beginning = judge.decode(ids, skip_special_tokens=True)
        assert whole.startswith(beginning) and len(result.ids) == 40
        assert "".join(pieces) == result.text == whole.removeprefix(beginning)


@pytest.mark.parametrize("name", MODELS)
def test_names_of_special_tokens(texts: tuple[Client, Path], name: str) -> None:
    client, models = texts
    judge = tokenizer_of(models / name)
    prompt, token = f"a{MODELS[name]}b", judge.convert_tokens_to_ids(MODELS[name])
    plain = client.tokenize(prompt, model=name, specials=False)
    assert plain.ids == [token, *judge(prompt, add_special_tokens=False, split_special_tokens=True).input_ids]
    assert len(plain.ids) > len(client.tokenize(prompt, model=name).ids)
    assert client.score(prompt, model=name, specials=False).ids == plain.ids
    assert client.generate(prompt, model=name, specials=False, max_new_tokens=1).ledger.prompt_tokens == len(plain.ids)
    stopped = client.generate("a", model=name, stop=[MODELS[name]], logit_bias=[(token, 1000)])
    assert (stopped.finish_reason, stopped.text, stopped.ids) == ("stop", "", [token])
    beams = client.generate("a", model=name, stop=[MODELS[name]], logit_bias=[(token, 1000)], strategy="beam")
    assert (beams.finish_reason, beams.ids) == ("stop", [token])


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_with_a_token_that_the_model_does_not_have_is_refused(texts: tuple[Client, Path], name: str) -> None:
    client, models = texts
    judge = tokenizer_of(models / name)
    last = judge.convert_ids_to_tokens(len(judge) - 1)
    text = last.replace("##", "").replace("\u2581", " ")
    for ask in (client.tokenize, client.score, client.generate):
        with pytest.raises(BadRequest, match=f"'{last}' is token {len(judge) - 1} of this model's tokenizer, but"):
            ask(f"a{text}", model=name)
