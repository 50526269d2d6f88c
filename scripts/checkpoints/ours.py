"""Asks a daemon about a folder: the same questions as judge.py, on one engine and precision after another."""

from __future__ import annotations

from typing import TypedDict

from protocol import Client
from protocol.errors import BadRequest, Gpt2dError
from scripts.checkpoints.judge import NEW_TOKENS
from scripts.checkpoints.kind import Kind

LOAD_S = 120.0


class Told(TypedDict):
    ids: list[int]
    plain: list[int]
    offsets: list[int]
    text: str
    logprobs: list[float | None]


class Continued(TypedDict):
    ids: list[int]
    text: str
    streamed: str
    ended: bool


class Answer(TypedDict):
    texts: list[Told]
    prompts: list[Continued]
    notices: list[str]
    refusals: list[str]
    """What was said to the texts that must not be taken."""


def ask(client: Client, kind: Kind, engine: str, precision: str) -> Answer:
    """Load the kind's folder, ask, unload. Raises: Gpt2dError."""
    loaded = client.load(kind.name, engine=engine, precision=precision, timeout=LOAD_S)
    try:
        return {
            "texts": [_text(client, text) for text in kind.texts],
            "prompts": [_prompt(client, prompt) for prompt in kind.prompts],
            "notices": loaded.notices,
            "refusals": [_refusal(client, text) for text, _ in kind.refused_texts],
        }
    finally:
        client.unload(kind.name, engine=engine, precision=precision)


def refusal(client: Client, kind: Kind) -> str:
    """Return why the folder does not load; empty where it does."""
    try:
        client.load(kind.name, engine="native", precision="fp32", timeout=LOAD_S)
    except Gpt2dError as e:
        return str(e)
    client.unload(kind.name)
    return ""


def _text(client: Client, text: str) -> Told:
    found = client.tokenize(text)
    logprobs: list[float | None] = [None] * len(found.ids)
    if len(found.ids) > 1:
        logprobs = client.score(text, bos="never").logprobs
    plain = client.tokenize(text, specials=False).ids
    return {"ids": found.ids, "plain": plain, "offsets": found.offsets, "text": found.text, "logprobs": logprobs}


def _prompt(client: Client, prompt: str) -> Continued:
    with client.stream(prompt, strategy="greedy", max_new_tokens=NEW_TOKENS) as stream:
        streamed = "".join(piece.text for piece in stream)
        result = stream.result
    return {"ids": result.ids, "text": result.text, "streamed": streamed, "ended": result.finish_reason == "eos"}


def _refusal(client: Client, text: str) -> str:
    try:
        client.generate(text, strategy="greedy", max_new_tokens=1)
    except BadRequest as e:
        return str(e)
    return ""
