"""What scripts pass is taken as they mean it, or refused before anything is sent, by field and type."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from array import array
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol import Client, messages as m
from protocol.errors import BadRequest
from protocol.requests import request

Pair = namedtuple("Pair", "token bias")  # noqa: PYI024 - what a script may have


class Word(enum.StrEnum):
    THAT = "that"


def refused(**settings: Any) -> str:
    """Return why; nothing is sent, for there is no server."""
    with Client("tcp://127.0.0.1:9") as client:
        if not {"prompt", "prompt_ids"} & settings.keys():
            settings["prompt"] = "x"
        with pytest.raises(BadRequest) as error:
            client.generate(**settings, timeout=0)
    return str(error.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"x", "bytes"),
        (bytearray(b"x"), "bytes"),
        (uuid.UUID(int=1), "uuid"),
        (dt.date(2026, 1, 1), "date"),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "datetime"),
        (Pair("a", "b"), "a list"),
        (Path("x"), type(Path()).__name__),
        (["x"], "a list"),
        (1, "a whole number"),
        ({"x": 1}, "a map"),
    ],
)
def test_what_is_no_text_is_no_prompt(value: object, kind: str) -> None:
    assert refused(prompt=value) == f"generate: prompt must be a text or nothing, got {kind}"
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match="text must be a text"):
        client.score(value)  # type: ignore[arg-type]
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match="model must be a text"):
        client.load(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": None}, "generate: temperature must be a number, got nothing"),
        ({"temperature": "0.7"}, "generate: temperature must be a number, got a text"),
        ({"max_new_tokens": 4.0}, "generate: max_new_tokens must be a whole number, got a number"),
        ({"max_new_tokens": True}, "generate: max_new_tokens must be a whole number, got true or false"),
        ({"max_tokens": 4}, "generate has no setting 'max_tokens'; did you mean max_new_tokens?"),
        ({"stream": True}, "generate has no setting 'stream'; call stream() for one"),
        ({"deadline_ms": 5}, "generate has no setting 'deadline_ms'; give timeout, in seconds"),
        ({"prompt_ids": "12"}, "generate: prompt_ids must be a list or nothing, got a text"),
        ({"prompt_ids": b"12"}, "generate: prompt_ids must be a list or nothing, got bytes"),
        ({"prompt_ids": Pair(1, 2)}, "generate: prompt_ids must be a list, got Pair"),
        ({"prompt_ids": {1, 2}}, "generate: prompt_ids must be a list, got set, which has no order"),
        ({"temperature": np.True_}, "generate: temperature must be a number, got true or false"),
        ({"prompt": "a\ud800"}, "generate: prompt cannot be encoded in UTF-8: lone surrogate at character 1"),
        ({"stop": ["\ud800"]}, "generate: stop cannot be encoded in UTF-8: lone surrogate at character 0"),
        ({"prompt_ids": np.array([1.5])}, "generate: prompt_ids[0] must be a whole number, got a number"),
        ({"logit_bias": [Pair(1, 2)]}, "generate: logit_bias must be a list, got Pair"),
        ({"logit_bias": {"the": 1}}, "generate: logit_bias[0][0] must be a whole number, got a text"),
        ({"stop": [b"x"]}, "generate: stop[0] must be a text, got bytes"),
        ({"seed": uuid.UUID(int=1)}, "generate: seed must be a whole number or nothing, got uuid"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, Any], sentence: str) -> None:
    assert refused(**settings) == sentence


def test_a_setting_that_there_is_not_is_never_a_type_error() -> None:
    assert "there are: bad_words, deterministic" in refused(xyz=1)
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match="score has no setting 'temperature'"):
        client.score("x", temperature=1)
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match=r"'texts'; call score_many\(\) for"):
        client.score(texts=["x"])
    assert refused(texts=["x"]) == "generate has no setting 'texts'; call generate_many() for several"
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match="no setting 'texts'; there are"):
        client.tokenize(texts=["x"])


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": decimal.Decimal("0.5")}, {"temperature": 0.5}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"max_new_tokens": np.int64(7)}, {"max_new_tokens": 7}),
        ({"max_new_tokens": np.array(7)}, {"max_new_tokens": 7}),
        ({"ignore_eos": np.bool_(1)}, {"ignore_eos": True}),
        (
            {"logit_bias": {5: 1, "6": 2.5, np.int32(7): np.float64(-1)}},
            {"logit_bias": [(5, 1.0), (6, 2.5), (7, -1.0)]},
        ),
        ({"logit_bias": [(5, 1)]}, {"logit_bias": [(5, 1.0)]}),
        ({"logit_bias": np.array([[5, 1]])}, {"logit_bias": [(5, 1.0)]}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": Word.THAT, "bad_words": (Word.THAT, "x")}, {"stop": ["that"], "bad_words": ["that", "x"]}),
        ({"stop": np.array(["a", "b"])}, {"stop": ["a", "b"]}),
    ],
)
def test_values_as_scripts_have_them(given: dict[str, Any], taken: dict[str, Any]) -> None:
    made = request(m.Generate, given, prompt="x")
    for field, value in taken.items():
        assert getattr(made, field) == value and type(getattr(made, field)) is type(value)


@pytest.mark.parametrize(
    "ids", [[3, 2], (3, 2), range(3, 1, -1), np.array([3, 2]), array("i", [3, 2]), [np.int64(3), 2]]
)
def test_tokens_are_any_sequence_or_array_of_integers(ids: Any) -> None:
    assert request(m.Generate, {}, prompt_ids=ids).prompt_ids == [3, 2]
    assert request(m.Score, {}, ids=ids).ids == [3, 2]
    assert all(type(token) is int for token in request(m.Tokenize, {}, ids=ids).ids or [])


@pytest.mark.parametrize("timeout", ["soon", "5", b"5", True, -1, float("nan"), object()])
def test_a_timeout_that_is_no_time_is_refused(timeout: Any) -> None:
    with Client("tcp://127.0.0.1:9") as client, pytest.raises(BadRequest, match="timeout must be"):
        client.ping(timeout=timeout)


def test_a_field_of_a_text_that_is_not_known_is_refused() -> None:
    """A context that is written wrongly would else be left out, and the text have other scores."""
    asked = request(m.Score, {"texts": [{"text": "a", "context": "b"}]})
    assert asked.texts == [m.Passage(text="a", context="b")]
    with pytest.raises(BadRequest, match="score: a text has no field 'contxt'; did you mean context"):
        request(m.Score, {"texts": [{"text": "a", "contxt": "b"}]})
