"""What views cost and say, without a window."""

from __future__ import annotations

from collections import deque
from unittest.mock import MagicMock

import numpy as np
import pytest
from msgspec.structs import replace

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client import replicas
from client.window import events as e
from client.window.marks import Passage
from client.window.results import Entry
from client.window.speed import tokens_per_second
from client.window.state import AppState
from client.window.tree import Node
from client.window.update.apply import apply
from client.window.views import history, inference, models, page, toasts, tree, widgets
from protocol import messages as m
from protocol.errors import DeadlineExceeded
from protocol.ledger import ledger
from tests.client.window.test_update import MODEL, RESULT, ready


def test_the_plots_arrays_are_made_once_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    state = AppState()
    state.ledgers.last = RESULT
    state.ledgers.series = {"a": deque([(1.0, 5.0, 9.0), (2.0, 6.0, 8.0)]), "b": deque([(3.0, 7.0, 7.0)])}
    imgui, implot = MagicMock(), MagicMock()
    numpy = MagicMock(wraps=np)
    imgui.get_font_size.return_value = 16.0
    for name, mock in (("imgui", imgui), ("implot", implot), ("np", numpy), ("widgets", MagicMock())):
        monkeypatch.setattr(inference, name, mock)
    inference.draw(state)
    drawn = [(name, x.tolist(), y.tolist()) for (name, x, y, _), _ in implot.plot_line.call_args_list]
    assert drawn == [("a", [1, 2], [5, 6]), ("a", [1, 2], [9, 8])], "one point makes no plot"
    assert all(x.flags.c_contiguous and y.flags.c_contiguous for (_, x, y, _), _ in implot.plot_line.call_args_list)
    assert numpy.array.call_count == 1
    limits = [arguments[1:3] for arguments, _ in implot.setup_axis_limits.call_args_list]
    assert limits == [(0.5, 2.5), (0, pytest.approx(6.6)), (0.5, 2.5), (0, pytest.approx(9.9))], "upwards from 0"
    ticks = [arguments[1] for arguments, _ in implot.setup_axis_ticks.call_args_list]
    assert ticks == [[1, 2], [1, 2]] and inference.ticks(1, 100) == [1, 18, 35, 52, 69, 86]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("connected again", "Connected again"),
        ("demo/native/int8 is loaded", "demo/native/int8 is loaded"),
        ("gpt2-xl is not there", "gpt2-xl is not there"),
        ("a.txt.gpt2d.json cannot be used", "a.txt.gpt2d.json cannot be used"),
        ("", ""),
    ],
)
def test_a_notice_begins_with_a_capital_where_no_name_does(said: str, shown: str) -> None:
    assert toasts.sentence(said) == shown


def test_a_model_is_called_by_one_name_and_the_built_in_one_is_on_no_disk() -> None:
    assert replicas.name(RESULT) == replicas.name(("demo", "onnx", "int8")) == "demo/onnx/int8"
    assert models.summary(MODEL, "onnx", "int8").endswith("of memory; built in")
    assert models.summary(replace(MODEL, name="gpt2"), "onnx", "int8").endswith("of memory; on the server's disk")
    far = models.summary(replace(MODEL, name="gpt2", on_disk=False, file_bytes=5_000_000), "onnx", "int8")
    assert far.endswith("not yet on the server's disk: a download of 5 MB")


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (0.0, ""),
        (2.0, ""),
        (1.85, ""),
        (1.75, "1.8 of 2 threads"),
        (1.3, "1.3 of 2 threads"),
        (1.0, "1.0 of 2 threads"),
    ],
)
def test_fewer_threads_than_the_engine_has_are_told_and_its_instructions(
    monkeypatch: pytest.MonkeyPatch, used: float, said: str
) -> None:
    state = AppState()
    state.ledgers.last = replace(RESULT, threads=2, threads_used=used, instruction_set="avx2" if used else "")
    widgets, imgui = MagicMock(), MagicMock()
    imgui.get_font_size.return_value = 16.0
    for name, mock in (
        ("imgui", imgui),
        ("draw_figures", MagicMock()),
        ("draw_bar", MagicMock()),
        ("widgets", widgets),
    ):
        monkeypatch.setattr(inference, name, mock)
    inference.draw(state)
    drawn = [arguments for arguments, _ in widgets.wrapped.call_args_list]
    assert drawn == ([(f"{said}: another program is at work", "warn")] if said else [])
    rows = {arguments[0]: arguments[1] for arguments, _ in widgets.row.call_args_list}
    assert rows.get("threads") == (f"{used:.1f} on average, of 2" if used else None)
    assert rows.get("instructions") == ("avx2" if used else None)


def test_the_line_below_the_page_stays_within_it() -> None:
    """The name comes first, and what there is no room for is left out whole."""
    parts = ["king.txt *", "3 words", "5 tokens before the cursor"]
    whole = page.GAP.join(parts)
    assert page.fitting(parts, len(whole), len) == whole
    assert page.fitting(parts, len(whole) - 1, len) == "king.txt *   3 words   \u2026"
    assert page.fitting(parts, 15, len) == "king.txt *   \u2026"
    assert page.fitting(parts, 3, len) == "king.txt *   \u2026"


def test_a_count_of_another_place_is_not_shown_and_one_of_an_earlier_text_is_an_estimate() -> None:
    """A slow server: each count is asked for, and answered later."""
    state, seen = ready(), list[str]()

    def see(*messages: e.Message) -> None:
        for message in messages:
            apply(state, message)
            told = [part.split(" before")[0] for part in page.parts_of_status(state) if "the cursor" in part]
            seen.append(told[0] if told else "")

    def counted(text: str) -> e.Replied:
        ids = [1] * len(text.split())
        return e.Replied("count", m.Tokenized(id=1, text=text, ids=ids, offsets=[0] * (len(ids) + 1)), 1)

    see(e.Edit(0, 0, "one two", "typed"), e.Tick(9.0, 1e9), counted("one two"))
    assert seen == ["", "", "2 tokens"]
    seen.clear()
    see(e.Edit(7, 7, " three", "typed"), e.Tick(9.1, 1e9), e.Tick(10.0, 1e9), counted("one two three"))
    assert seen == ["about 2 tokens", "about 2 tokens", "about 2 tokens", "3 tokens"], "it does not blink"
    seen.clear()
    see(
        e.Select(3, 3),
        e.Tick(11.0, 1e9),
        e.Edit(3, 3, "s", "typed"),
        counted("one"),
        e.Tick(12.0, 1e9),
        counted("ones"),
    )
    assert seen == ["", "", "", "", "", "1 token"]
    seen.clear()
    see(e.Do("undo"), e.Tick(13.0, 1e9), counted("one"), e.Edit(0, 0, "x", "typed"), e.Tick(14.0, 1e9))
    assert seen == ["", "", "1 token", "about 1 token", "about 1 token"]
    see(e.Replied("count", DeadlineExceeded("late"), 1), e.Tick(15.0, 1e9))
    assert seen[5:] == ["", ""] and not state.page.counting, "after an error there is none, and none is asked for"


@pytest.mark.parametrize(
    ("prompt", "text", "line"),
    [
        ("Once", " upon\na time", "Once| upon a time"),
        ("x" * 50, "y" * 90, f"... {'x' * 40}|{'y' * 80} ..."),
        ("## A heading", "\0 ### more", "#\u200b#\u200b A heading|\ufffd #\u200b#\u200b#\u200b more"),
    ],
)
def test_a_line_of_the_history_says_where_it_is_cut_and_shows_all_else(prompt: str, text: str, line: str) -> None:
    assert history.one_line(Entry(1, 0.0, prompt, replace(RESULT, text=text), "")) == line
    assert tree.title(Node(1, 0, Passage("z" * 90))) == f"{'z' * 60} ..."


@pytest.mark.parametrize("token", ["#", "##", "###", "####"])
def test_tokens_of_number_signs_are_seen_whole(token: str) -> None:
    """Dear ImGui shows what stands before the first ##: GPT-2 has such tokens, and an id comes after them."""
    label = f"{widgets.visible(token)}###7"
    assert label.split("##", 1)[0].replace("\u200b", "") == token


def test_the_speed_of_four_texts_is_that_of_all_of_them() -> None:
    """Two are written at once from 10 ms on, the third when there is room, at 110 ms."""
    told = [
        ledger(prefill_ms=10, decode_ms=100, new_tokens=11),
        ledger(prefill_ms=10, decode_ms=90, new_tokens=10),
        ledger(queue_ms=100, prefill_ms=10, decode_ms=100, new_tokens=12),
    ]
    others = [m.Continuation(text="", ids=[], finish_reason="length", seed=1, ledger=each) for each in told[1:]]
    result = replace(RESULT, ledger=told[0])
    assert tokens_per_second(result) == pytest.approx(100)
    assert tokens_per_second(replace(result, others=others)) == pytest.approx((10 + 9 + 11) / 0.2)
    assert tokens_per_second(replace(RESULT, ledger=ledger(), others=others[:1])) >= 0


@pytest.mark.parametrize("unix", [1e300, -1e300, float("inf"), float("nan")])
def test_a_time_that_no_calendar_has_is_shown(unix: float) -> None:
    """A damaged file of the history, or of a page that was left behind, would end every window that shows it."""
    assert widgets.moment(unix, "%Y-%m-%d") == "?" and len(widgets.moment(1.7e9, "%Y-%m-%d")) == 10
