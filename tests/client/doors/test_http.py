"""The door for HTTP with a real daemon, asked by those who speak OpenAI's HTTP."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs requirements-http.txt")
pytest.importorskip("openai", reason="needs requirements-dev.txt")

import openai

from protocol import Client
from scripts.daemon import Daemon
from tests.client.doors.serving import ask, opened

PROMPT = "Shall I compare thee"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def url(shared_daemon: Daemon) -> Iterator[str]:
    with opened(shared_daemon.endpoint) as url:
        yield url


@pytest.fixture
def ai(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ai:
        yield ai


def test_what_is_left_out_is_as_openai_has_it(ai: Any, client: Client) -> None:
    """And not as here: what is measured through the door is what others measure."""
    told = ai.completions.create(model="demo", prompt=PROMPT, seed=3)
    plain = client.generate(PROMPT, seed=3, max_new_tokens=16, temperature=1, top_p=1, top_k=0)
    (choice,) = told.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (plain.text, "length", None)
    assert (told.model, told.object) == ("demo/native/int8", "text_completion")
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (5, 16, 21)


def test_prompts_of_every_kind(ai: Any, client: Client) -> None:
    ids = client.tokenize(PROMPT).ids
    want = client.generate(PROMPT, strategy="greedy", max_new_tokens=8).text
    other = client.generate("To be", strategy="greedy", max_new_tokens=8).text
    for prompt in (PROMPT, ids, [PROMPT], [ids]):
        told = ai.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=8)
        assert [choice.text for choice in told.choices] == [want]
    told = ai.completions.create(model="demo", prompt=[PROMPT, "To be"], temperature=0, max_tokens=8, n=2)
    assert [(choice.index, choice.text) for choice in told.choices] == [(0, want), (1, want), (2, other), (3, other)]
    assert told.usage.prompt_tokens == len(ids) + len(client.tokenize("To be").ids)
    assert ai.completions.create(model="demo", prompt="", max_tokens=1).usage.prompt_tokens == 1


def test_a_stream_is_the_whole_in_pieces(ai: Any) -> None:
    given = {"model": "demo", "prompt": [PROMPT, "To be"], "seed": 5, "max_tokens": 40, "n": 2, "logprobs": 1}
    whole = ai.completions.create(**given)
    texts, tokens = [""] * 4, [list[str]() for _ in range(4)]
    reasons = dict[int, str]()
    for piece in ai.completions.create(**given, stream=True):
        (choice,) = piece.choices
        assert piece.usage is None
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices] and reasons == dict.fromkeys(range(4), "length")
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    *_, last = ai.completions.create(**given, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens == 160


def test_a_stream_ends_with_done(url: str) -> None:
    body = json.dumps({"prompt": PROMPT, "stream": True, "max_tokens": 3}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body), timeout=60) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])


def test_settings_arrive(ai: Any, client: Client) -> None:
    plain = ai.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=30).choices[0].text
    stop = plain[8:12]
    stopped = ai.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=30, stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (plain[: plain.index(stop)], "stop")
    first = client.generate(PROMPT, strategy="greedy", max_new_tokens=1).ids[0]
    biased = ai.completions.create(model="demo", prompt=PROMPT, temperature=0, logit_bias={str(first): -100})
    assert not plain.startswith(biased.choices[0].text)
    best = ai.completions.create(model="demo", prompt=PROMPT, seed=1, best_of=5, n=2, logprobs=0)
    all_of_them = ai.completions.create(model="demo", prompt=PROMPT, seed=1, n=5, logprobs=0)
    means = {choice.text: sum(choice.logprobs.token_logprobs) for choice in all_of_them.choices}
    assert [choice.text for choice in best.choices] == sorted(means, key=lambda text: -means[text])[:2]
    assert best.usage.completion_tokens == 80, "as many as were written"


@pytest.mark.parametrize("prompt", [PROMPT, "naïve — 汉字🙂", "<|endoftext|>x"])
def test_an_echo_with_log_probabilities_is_the_score(ai: Any, client: Client, prompt: str) -> None:
    ids = client.tokenize(prompt).ids
    scored = client.score(ids=ids, bos="never")
    for longest in (0, 4):
        told = ai.completions.create(
            model="demo", prompt=prompt, echo=True, logprobs=3, max_tokens=longest, temperature=0
        )
        (choice,) = told.choices
        listed = choice.logprobs
        assert choice.text.startswith(prompt) and (choice.text == prompt) == (longest == 0)
        assert listed.token_logprobs[: len(ids)] == scored.logprobs and listed.top_logprobs[0] is None
        assert len(listed.tokens) == len(listed.text_offset) == len(listed.top_logprobs) == len(ids) + longest
        for i, name in enumerate(listed.tokens):
            offset = listed.text_offset[i]
            if name.startswith("bytes:"):
                character = choice.text[offset].encode()
                assert bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) in character
            else:
                assert choice.text[offset:].startswith(name)
            if i:
                top = listed.top_logprobs[i]
                assert top[name] == listed.token_logprobs[i] and len(top) in (3, 4)
        assert told.usage.prompt_tokens == len(ids) and told.usage.completion_tokens == longest


def test_what_lm_eval_asks_and_how_it_judges(url: str, client: Client) -> None:
    """The requests of its `local-completions`, token for token, and its comparison of two floats after JSON."""
    assert ask(f"{url}/tokenizer_info")[1]["eos_token"] == "<|endoftext|>"
    end = ask(f"{url}/tokenize", {"prompt": "<|endoftext|>", "add_special_tokens": False})[1]["tokens"]
    assert end == [0] and ask(f"{url}/detokenize", {"tokens": client.tokenize(PROMPT).ids})[1] == {"prompt": PROMPT}
    context = client.tokenize(PROMPT).ids
    greedy = client.generate(prompt_ids=context, strategy="greedy", max_new_tokens=6).ids
    prompts = [context + greedy, [*context, *greedy[:5], 5], context + greedy[:1]]
    body = {
        "model": "demo/native/int8", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
        "echo": True,
    }  # fmt: skip
    status, told = ask(f"{url}/v1/completions", body)
    assert status == 200
    judged = []
    for choice, ids in zip(told["choices"], prompts, strict=True):
        listed = choice["logprobs"]
        own = listed["token_logprobs"][len(context) : -1]
        top = listed["top_logprobs"][len(context) : -1]
        scored = [value for value in client.score(ids=ids, bos="never").logprobs if value is not None]
        assert sum(own) == pytest.approx(sum(scored[len(context) - 1 :]), abs=1e-9)
        judged.append(all(one == max(others.values()) for one, others in zip(own, top, strict=True)))
    assert judged == [True, False, True]


def test_errors_are_openais(ai: Any, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"gpt-4 is not loaded.*demo/native/int8") as missing:
        ai.completions.create(model="gpt-4", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="the prompt has 1200 tokens and max_tokens is 16") as long:
        ai.completions.create(model="demo", prompt=[5] * 1200)
    assert long.value.code == "context_length_exceeded" and "truncate" not in str(long.value)
    for given, sentence in (
        ({"suffix": "x"}, "suffix is not supported"),
        ({"temperature": 200}, "temperature must be a number <= 100"),
        ({"n": 0}, "n must be a whole number >= 1"),
        ({"best_of": 1, "n": 2}, "best_of must be at least n"),
        ({"best_of": 2, "stream": True}, "cannot be streamed"),
        ({"extra_body": {"top_k": 5}}, "top_k is not supported here; there are: model, max_tokens"),
        ({"prompt": [PROMPT, 5]}, "prompt must be a text, a list of texts"),
        ({"max_tokens": 0, "prompt": [5] * 1025}, "more than the context of 1024"),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence) as wrong:
            ai.completions.create(**{"model": "demo", "prompt": "x"} | given)
        assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match=r"stop\[1\] must be a text of length >= 1") as within:
        ai.completions.create(model="demo", prompt="x", stop=["a", ""])
    assert within.value.param == "stop"
    assert ask(f"{url}/v1/completions", b"[]")[1]["error"]["message"] == "the body must be an object of JSON"
    assert ask(f"{url}/v1/completions", b"{")[1]["error"]["message"].startswith("the body is not JSON")
    assert ask(f"{url}/nowhere")[0] == 404 and ask(f"{url}/v1/completions")[0] == 405


def test_what_is_loaded_is_listed(ai: Any, url: str) -> None:
    assert "demo/native/int8" in [model.id for model in ai.models.list()]
    assert ai.models.retrieve("demo/native/int8").id == "demo/native/int8" == ai.models.retrieve("demo/native").id
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-4")
    assert ask(f"{url}/health") == (200, {"status": "ok"})


def test_a_model_without_a_template_holds_no_conversations(ai: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="the model demo has no chat template"):
        ai.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hi"}])


def test_langchain(url: str, client: Client) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="needs requirements-dev.txt")
    model = langchain_openai.OpenAI(base_url=f"{url}/v1", api_key="none", model="demo", temperature=0, max_tokens=8)
    want = client.generate(PROMPT, strategy="greedy", max_new_tokens=8).text
    assert model.invoke(PROMPT) == want == "".join(model.stream(PROMPT))
    assert [answer[0].text for answer in model.generate([PROMPT, PROMPT]).generations] == [want, want]


def test_the_lines_of_its_document(url: str) -> None:
    section = (ROOT / "docs" / "http.md").read_text(encoding="utf-8").split("```bash http\n")[1].split("```")[0]
    lines = [line for line in section.replace("\\\n", " ").splitlines() if line.startswith("curl ")]
    assert len(lines) == 2
    for line in lines:
        words = [word.replace("http://127.0.0.1:8000", url) for word in shlex.split(line)]
        done = subprocess.run([*words, "-sS", "--fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r'"text":|"id":"demo', done.stdout)
