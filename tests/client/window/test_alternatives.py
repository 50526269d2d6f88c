"""Tokens on the page: where they are, what is kept of them, and what becomes of one that is replaced."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import alternatives, events as e
from client.window.alternatives import Alternatives, Tokens, Written, found, unlikely
from client.window.state import AppState
from client.window.update.apply import apply
from protocol import messages as m
from tests.client.window.test_update import RESULT, ready, sent


def token(text: str) -> m.TokenLogprobs:
    others = [m.Alternative(id=i, text=f" other {i}", logprob=-1.0 - i) for i in range(10)]
    return m.TokenLogprobs(text=text, logprob=-1.0, top=others)


def told(*texts: str, spaces: int = 0) -> Written:
    return Written(list(range(len(texts))), [token(text) for text in texts], spaces)


def generated(state: AppState, *texts: str) -> None:
    """Let the page be continued by these tokens."""
    apply(state, e.Replied("page", m.Tokens(id=1, text="".join(texts), ids=[1]), 1))
    ids = [100 + i for i in range(len(texts))]
    result = replace(RESULT, text="".join(texts), ids=ids, logprobs=[token(text) for text in texts])
    apply(state, e.Replied("page", result, 1))


def shown(state: AppState, offset: int) -> list[str]:
    """The tokens that the page shows of the continuation at an offset."""
    tokens = state.tokens_at(offset)
    assert tokens
    return [state.page.document.text[a:b] for a, b in pairwise(tokens.places)]


@given(st.lists(st.text("ab \n\u4e2d", min_size=1, max_size=3), max_size=9), st.text("ab ", max_size=3))
def test_every_token_is_found_where_it_stands(texts: list[str], before: str) -> None:
    text = before + "".join(texts)
    places = found(text, len(before), len(text), told(*texts))
    assert [text[a:b] for a, b in pairwise(places)] == texts
    tokens = Tokens(told(*texts), places)
    assert [tokens.index_at(place) for place in places] == [*range(len(texts)), None] and tokens.index_at(-1) is None


@pytest.mark.parametrize(
    ("text", "written", "places"),
    [
        ("x\u4e2d\u6587y", told("x", "\ufffd", "\ufffd", "\ufffd", "y"), [0, 1, 1, 1, 3, 4]),
        ("x\u4e2d", told("x", "\ufffd", "\ufffd"), [0, 1, 1, 2]),
        ("a b", told("  a", " b", spaces=2), [0, 1, 3]),
        ("a b", told(" ", " a", " b", spaces=2), [0, 0, 1, 3]),
        ("a\nb", told("a\r\n", "b"), [0, 2, 3]),
        ("ab XX", told("ab", " c", " d"), [0, 2]),
        ("ab", told("ab", "cd"), [0, 2]),
        ("ab", told("ab", ""), [0, 2, 2]),
    ],
)
def test_parts_of_characters_spaces_and_what_is_no_longer_there(text: str, written: Written, places: list[int]) -> None:
    assert found(text, 0, len(text), written) == places


def test_the_oldest_are_forgotten_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = told("aa", "b")
    monkeypatch.setattr(alternatives, "MAX_BYTES", 2 * written.bytes)
    kept = Alternatives()
    for text in ("aa", "bb", "cc"):
        kept.keep(told(text, "b"))
    assert [bool(kept.within(text, i, 0, 3)) for i, text in enumerate(("aab", "bbb", "ccb"))] == [False, True, True]


def test_tokens_move_with_their_text_and_end_where_it_was_edited() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    generated(state, " upon", " a", " time")
    assert shown(state, 6) == [" upon", " a", " time"]
    apply(state, e.Edit(0, 0, "So: ", "typed"))
    assert shown(state, 10) == [" upon", " a", " time"]
    apply(state, e.Edit(15, 15, "X", "typed"))
    assert state.page.document.text == "So: Once upon aX time" and shown(state, 10) == [" upon", " a"]
    apply(state, e.Do("undo"))
    assert shown(state, 10) == [" upon", " a", " time"]


def test_the_tokens_before_a_replaced_one_can_still_be_replaced() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    generated(state, " upon", " a", " time")
    for index, ids, text in ((2, [100, 101, 7], " upon a other 7"), (1, [100, 8], " upon other 8")):
        effects = apply(state, e.TakeToken(4, index, ids[-1]))
        assert [r.text or r.ids for r in sent(effects, m.Tokenize)] == ["Once", ids]
        apply(state, e.Replied("branch ids", m.Tokenized(id=1, text="Once", ids=[9], offsets=[0, 4]), 1))
        reply = m.Tokenized(id=1, text=text, ids=ids, offsets=[0] * (len(ids) + 1))
        (request,) = sent(apply(state, e.Replied("branch text", reply, 1)), m.Generate)
        assert request.prompt_ids == [9, *ids] and state.page.document.text == "Once" + text
        generated(state, ",", " and")
        tokens = state.tokens_at(6)
        assert tokens and shown(state, 6)[0] == " upon" and len(tokens.places) == len(ids) + 3
        assert tokens.written.ids == [*ids, 100, 101]
        assert len(tokens.written.tokens[index].top) == 10, "what was replaced can be taken back"


def test_an_edited_prompt_is_gone_on_from_as_it_is_now() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    generated(state, " upon", " a")
    apply(state, e.Edit(0, 4, "Twice", "typed"))
    effects = apply(state, e.TakeToken(5, 1, 7))
    assert [r.text or r.ids for r in sent(effects, m.Tokenize)] == ["Twice", [100, 7]]


def test_what_a_search_wrote_has_no_alternatives() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", m.Tokens(id=1, text=" x x", ids=[3, 3]), 1))
    apply(state, e.Replied("page", replace(RESULT, logprobs=[]), 1))
    assert state.tokens_at(6) is None
    assert apply(state, e.TakeToken(4, 0, 7)) == [] and "not there any more" in state.said("page")


def test_unlikely_tokens_are_shaded_where_they_are_in_sight() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    generated(state, " upon", " a", " time")
    assert state.shades(0, 100) == [], "only where that is wished for"
    apply(state, e.Prefer("shade_tokens", True))
    strength = unlikely(-1.0)
    assert strength == pytest.approx(1 / math.log(100))
    assert state.shades(0, 100) == [(4, 9, strength), (9, 11, strength), (11, 16, strength)]
    assert [span[:2] for span in state.shades(9, 11)] == [(9, 11)]
    assert [span[:2] for span in state.shades(10, 12)] == [(9, 11), (11, 16)]
    assert [unlikely(logprob) for logprob in (0.0, -100.0, -math.inf, math.nan, 1.0)] == [0, 1, 1, 1, 0]
    assert state.shades(0, 4) == state.shades(16, 20) == []
    apply(state, e.Edit(11, 11, "!", "typed"))
    assert [span[:2] for span in state.shades(0, 100)] == [(4, 9), (9, 11)], "nothing is known of what follows an edit"
