"""Models that are meant by requests that do not name them in full."""

from __future__ import annotations

import pytest

from server.gateway.defaults import Defaults, in_words

A, B = ("gpt2", "native", "int8"), ("gpt2", "native", "fp32")
C = ("demo", "onnx", "int8")
NOTHING = (None, None, None)


def test_the_first_one_stays_the_default_until_it_is_unloaded() -> None:
    defaults = Defaults()
    assert defaults.of(NOTHING) is None
    for loaded in ([A], [A, B], [C, B, A]):
        defaults.look(loaded)
        assert defaults.of(NOTHING) == defaults.of(("gpt2", None, None)) == A
    assert defaults.of((None, None, "fp32")) == B and defaults.of((None, "onnx", None)) == C
    defaults.look([B, C])
    assert defaults.of(NOTHING) is None, "not moved to another"
    assert defaults.of(("gpt2", None, None)) == B
    defaults.look([A, B, C])
    assert defaults.of(NOTHING) is None, "also when it comes back"
    assert defaults.of(("gpt2", None, None)) == B
    defaults.look([C])
    defaults.look([A, C])
    assert defaults.of(NOTHING) == C
    defaults.look([])
    assert defaults.of(NOTHING) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (NOTHING, "an unnamed model"),
        (("demo", None, None), "demo"),
        ((None, None, "int8"), "a model with precision int8"),
        (("demo", "onnx", "int8"), "demo with engine onnx and precision int8"),
    ],
)
def test_what_is_named_in_words(asked: tuple[str | None, str | None, str | None], words: str) -> None:
    assert in_words(asked) == words
