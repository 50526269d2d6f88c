"""The comparison: what its columns begin with, where their texts part, and what is asked before it runs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import events as e
from client.window.state import AppState
from client.window.update.apply import apply
from client.window.update.comparison import differences
from client.window.writing import STOP_S
from protocol import messages as m
from tests.client.window.test_update import INFO, LOADED, MODEL, RESULT, ready, sent

WAYS = (("native", "int8"), ("native", "int4"), ("native", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))
PRECISIONS = [m.Precision(engine=engine, precision=p, memory_bytes=1, loaded=False) for engine, p in WAYS]
MANY = replace(MODEL, precisions=PRECISIONS)


def listed(*models: m.ModelInfo) -> AppState:
    state = ready()
    apply(state, e.Replied("models", m.ModelList(id=1, models=list(models)), 1))
    return state


def columns(state: AppState) -> list[str]:
    return ["/".join(column.way) for column in state.compare.columns]


def test_the_columns_begin_with_different_precisions() -> None:
    state = listed(MANY)
    assert columns(state) == ["demo/onnx/int8", "demo/onnx/fp32"], "the chosen one, and another of its engine"
    for _ in range(3):
        apply(state, e.Do("add column"))
    assert columns(state)[2:] == ["demo/native/int8", "demo/native/int4"]
    apply(state, e.ChooseColumn(0, {"model": "", "engine": "", "precision": "", "as_chosen": True}))
    other = replace(MODEL, name="mine", precisions=PRECISIONS[:1])
    apply(state, e.Replied("models", m.ModelList(id=1, models=[other]), 1))
    assert columns(state) == ["//", "mine/native/int8", "//", "//"], "what another server has not is not kept"


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (("a b c d", "a b x d"), [("a b", False), (" c", True), (" d", False)]),
        (("a bc d", "a bx d"), [("a", False), (" bc", True), (" d", False)]),
        (("x a", "y a"), [("x", True), (" a", False)]),
        (("a b", "a b c"), [("a b", False)]),
        (("a b c", "a b"), [("a b", False), (" c", True)]),
        (("a b c", "a b c", "a x"), [("a", False), (" b", True), (" c", False)]),
        (("", "a"), []),
    ],
)
def test_the_first_word_that_differs_is_marked_and_no_other(
    texts: tuple[str, ...], parts: list[tuple[str, bool]]
) -> None:
    assert differences(*texts) == parts


def test_both_texts_show_where_they_part() -> None:
    state = listed(MANY)
    apply(state, e.Do("compare"))
    for text in (" upon a time", " upon the time"):
        apply(state, e.Replied("compare load", LOADED, 1))
        apply(state, e.Replied("compare", replace(RESULT, text=text), 1))
    assert [column.parts for column in state.compare.columns] == [
        [(" upon", False), (" a", True), (" time", False)],
        [(" upon", False), (" the", True), (" time", False)],
    ]


def test_a_download_is_asked_for_once_and_the_pages_text_can_be_the_prompt() -> None:
    far = replace(MODEL, name="gpt2-xl", on_disk=False, file_bytes=6_400_000_000)
    state = listed(MANY, far)
    for index in range(2):
        apply(state, e.ChooseColumn(index, {"model": "gpt2-xl", "engine": "onnx", "precision": "int8"}))
    assert apply(state, e.Do("compare")) == [] and state.asking and state.asking.downloads == [far]
    apply(state, e.Edit(0, 0, "Once END", "typed"))
    apply(state, e.Select(5, 5))
    apply(state, e.Do("take page"))
    assert [r.model for r in sent(apply(state, e.Do("agree")), m.Load)] == ["gpt2-xl"]
    loaded = replace(LOADED, model="gpt2-xl", byte_level=True)
    (request,) = sent(apply(state, e.Replied("compare load", loaded, 1)), m.Generate)
    assert request.prompt == "Once", "what stands before the cursor, without the space at its end"
    assert request.stream and request.stream_interval_ms == state.interval_ms > 50


def test_a_stopped_comparison_waits_for_nobody_that_stands_still() -> None:
    state = listed(MANY)
    apply(state, e.Do("compare"))
    apply(state, e.Replied("compare load", LOADED, 1))
    apply(state, e.Do("stop compare"))
    assert state.compare.stopping and state.due == state.now + STOP_S
    apply(state, e.Tick(state.now + STOP_S, 1e9))
    assert not state.compare.stopping
    assert sent(apply(state, e.Do("compare")), m.Load)
    apply(state, e.Replied("compare", RESULT, 1))
    assert state.compare.running == 0 and state.compare.columns[0].result is None, "that was the former one's"


def test_a_key_that_may_not_load_compares_what_is_loaded() -> None:
    state = listed(MANY)
    apply(state, e.Replied("look", replace(INFO, role="generate"), 1))
    effects = apply(state, e.Do("compare"))
    assert [r.precision for r in sent(effects, m.Generate)] == ["int8"] and not sent(effects, m.Load)
