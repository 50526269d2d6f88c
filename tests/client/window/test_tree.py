"""The tree of continuations: takes, undo and redo agree, whatever is done in whatever order."""

from __future__ import annotations

import itertools
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import events as e, tree as tree_module
from client.window.document import Document
from client.window.marks import Passage
from client.window.state import AppState
from client.window.tree import Node, Place, Tree
from client.window.update.apply import apply
from protocol import messages as m
from protocol.errors import NoServer
from tests.client.window.test_update import RESULT, ready


def piece(state: AppState, text: str, index: int = 0) -> None:
    apply(state, e.Replied("page", m.Tokens(id=1, text=text, ids=[3], index=index), 1))


def written(state: AppState, text: str, how: Any = "generate") -> None:
    """Let the page be continued by this text; by none: it fails."""
    apply(state, e.Do(how))
    piece(state, text)
    result = msgspec.structs.replace(RESULT, text=text)
    apply(state, e.Replied("page", result if text else NoServer("gone"), 1))


def typed(state: AppState, text: str, start: int | None = None, end: int | None = None) -> None:
    cursor = state.page.document.cursor
    start = cursor if start is None else start
    apply(state, e.Edit(start, start if end is None else end, text, "typed"))


def page(text: str) -> AppState:
    state = ready()
    typed(state, text)
    return state


def told(text: str) -> list[m.TokenLogprobs]:
    return [m.TokenLogprobs(text=text, logprob=-1.0, top=[])]


def standing(state: AppState) -> tuple[int, int]:
    return state.page.tree.standing(state.page.document, state.page.document.cursor)


def takes(state: AppState) -> list[str]:
    """The takes at the cursor."""
    tree, span = state.page.tree, state.page.document.written.at(state.page.document.cursor)
    return [take.text for take in tree.siblings(span.node)] if span and span.node in tree.nodes else []


def test_a_regeneration_that_nothing_comes_of_changes_nothing() -> None:
    state = page("Once")
    for text in (" x", " y"):
        written(state, text, "regenerate" if text == " y" else "generate")
    apply(state, e.Do("earlier"))
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once y" and state.page.document.can_redo
    apply(state, e.Do("regenerate"))
    assert state.page.document.text == "Once y", "it stays in sight until there is another"
    apply(state, e.Do("stop"))
    apply(state, e.Replied("page", msgspec.structs.replace(RESULT, text="", ids=[], finish_reason="cancelled"), 1))
    assert (state.page.document.text, takes(state), standing(state)) == ("Once y", [" x", " y"], (2, 2))
    apply(state, e.Do("redo"))
    assert state.page.document.text == "Once x"
    apply(state, e.Do("redo"))
    assert state.page.document.text == "Once x", "and nothing deletes it"


def test_typing_after_what_is_written_goes_on_beside_it() -> None:
    state = page("Once and more END")
    apply(state, e.Select(4, 4))
    written(state, " upon a long time")
    apply(state, e.Do("regenerate"))
    piece(state, " x")
    typed(state, "!", len("Once x and more"))
    piece(state, "y")
    going = state.page.generating
    assert going and not going.stopping and state.page.document.text == "Once xy and more! END"
    typed(state, "?", 6)
    assert going.stopping and state.page.document.text == "Once x?y and more! END"


def test_a_regeneration_is_undone_in_one_step() -> None:
    state = page("Once END")
    apply(state, e.Select(4, 4))
    written(state, " x")
    apply(state, e.Do("regenerate"))
    piece(state, " y")
    piece(state, " z")
    apply(state, e.Replied("page", RESULT, 1))
    assert state.page.document.text == "Once y z END" and standing(state) == (2, 2)
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once x END" and standing(state) == (1, 2)
    apply(state, e.Do("redo"))
    assert state.page.document.text == "Once y z END" and standing(state) == (2, 2)


def test_an_edit_inside_a_take_is_a_take_of_its_own() -> None:
    state = page("Once")
    written(state, " upon a time")
    written(state, " there was", "regenerate")
    typed(state, "WAS", 11, 14)
    assert state.page.document.text == "Once there WAS" and standing(state) == (3, 3)
    assert takes(state) == [" upon a time", " there was"], "it is one as soon as another is shown"
    apply(state, e.Do("earlier"))
    assert state.page.document.text == "Once there was" and standing(state) == (2, 3)
    apply(state, e.Do("later"))
    assert state.page.document.text == "Once there WAS" and standing(state) == (3, 3)
    for text, at in (("Once there was", 2), ("Once there WAS", 3), ("Once there was", 2), ("Once upon a time", 1)):
        apply(state, e.Do("undo"))
        assert (state.page.document.text, standing(state)) == (text, (at, 3))
    for text in ("Once there was", "Once there WAS", "Once there was", "Once there WAS"):
        apply(state, e.Do("redo"))
        assert state.page.document.text == text
    typed(state, "s", 7, 8)
    written(state, " y", "regenerate")
    assert takes(state) == [" upon a time", " there was", " thsre WAS", " y"], "an edited take is the user's to change"


def test_what_was_typed_before_a_take_leaves_the_takes_in_reach() -> None:
    state = page("Onec")
    written(state, " upon")
    typed(state, " a")
    written(state, " time")
    written(state, " x", "regenerate")
    typed(state, "ce", 2, 4)
    assert state.page.document.text == "Once upon a x"
    apply(state, e.Select(13, 13))
    apply(state, e.Do("earlier"))
    assert state.page.document.text == "Once upon a time" and standing(state) == (1, 2)
    apply(state, e.Select(8, 8))
    written(state, " there", "regenerate")
    apply(state, e.Select(17, 17))
    assert state.page.document.text == "Once there a time" and standing(state) == (1, 2), "they follow the page"


def test_a_continuation_inside_a_take_ends_it_there() -> None:
    state = page("Once")
    written(state, " upon a time")
    apply(state, e.Select(9, 9))
    written(state, " the")
    assert state.page.document.text == "Once upon the a time" and takes(state) == [" the"]
    marks = [(state.page.document.text[k.start : k.end]) for k in state.page.document.marks]
    assert "".join(marks) == " upon the a time", "all of it is the model's"
    apply(state, e.Select(6, 6))
    assert takes(state) == [" upon a time", " upon"]
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once upon a time" and standing(state) == (1, 2)


def test_one_goes_to_any_take_and_comes_back() -> None:
    state = page("Once END")
    apply(state, e.Select(4, 4))
    written(state, " x")
    written(state, " y")
    first, second = state.page.tree.nodes
    apply(state, e.Select(5, 5))
    written(state, " z", "regenerate")
    third = max(state.page.tree.nodes)
    assert state.page.document.text == "Once z y END"
    for node, text in ((first, "Once x END"), (second, "Once z y END"), (third, "Once z y END"), (0, "Once END")):
        apply(state, e.GoTo(node))
        assert state.page.document.text == text, node
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once z y END"


def test_rows_say_what_follows_what() -> None:
    state = page("Once")
    for text in (" a", " b", " c"):
        written(state, text)
    written(state, " d", "regenerate")
    written(state, " e")
    written(state, " f")
    assert [(depth, node.text) for depth, node in state.page.tree.rows()] == [
        *((0, " a"), (0, " b")),
        *((1, " c"), (1, " d")),
        *((2, " e"), (2, " f")),
    ]


def test_what_is_restored_is_undone_in_one_step() -> None:
    state = page("Once")
    written(state, " x")
    typed(state, " and more")
    for _ in range(3):
        apply(state, e.Restore(1))
        assert state.page.document.text == "Once x" and takes(state) == [" x"]
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once x and more" and standing(state) == (0, 0)


def test_branches_are_pruned_and_put_back() -> None:
    state = page("Once")
    written(state, " x")
    written(state, " y")
    apply(state, e.Select(6, 6))
    written(state, " z", "regenerate")
    apply(state, e.Do("undo"))
    tree = state.page.tree
    (x, y), z = list(tree.nodes)[:2], max(tree.nodes)
    assert [tree.can_prune(node, state.page.document) for node in (x, y, z)] == [False, False, True]
    state.focus_page = 0
    apply(state, e.GoTo(z))
    assert state.focus_page
    apply(state, e.NameNode(x, " the first "))
    apply(state, e.KeepNode(z))
    before = tree.page(x), [place.id for place in tree.places.values()]
    apply(state, e.PruneNode(z))
    assert z in tree.nodes
    apply(state, e.Do("undo"))
    apply(state, e.PruneNode(z))
    assert z in tree.nodes, "what is kept stays"
    apply(state, e.KeepNode(z))
    apply(state, e.PruneNode(z))
    assert [*tree.nodes] == [x, y] and state.said("branches") == "a branch was pruned"
    (notice,) = (notice for notice in state.notices if notice.key == "branches")
    assert notice.label == "Put it back" and notice.action
    apply(state, notice.action)
    assert {*tree.nodes} == {x, y, z} and tree.nodes[x].name == "the first"
    assert (tree.page(x), [place.id for place in tree.places.values()]) == before


def test_the_oldest_that_lead_nowhere_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_NODES", 5)
    state = page("Once")
    for i in range(9):
        written(state, f" {i}", "regenerate" if i else "generate")
        if i == 1:
            apply(state, e.KeepNode(max(state.page.tree.nodes)))
    apply(state, e.Do("earlier"))
    assert takes(state) == [" 1", " 5", " 6", " 7", " 8"]
    monkeypatch.setattr(tree_module, "MAX_CHARACTERS", 20)
    typed(state, "a" * 30, 0)
    apply(state, e.Select(35, 35))
    apply(state, e.Do("later"))
    assert takes(state) == [" 1", " 7"]


def test_four_are_written_at_once_and_one_is_taken() -> None:
    state = page("Once END")
    apply(state, e.Select(4, 4))
    effects = apply(state, e.Do("branches"))
    (request,) = (f.request for f in effects if isinstance(f, e.Send) and isinstance(f.request, m.Generate))
    assert request.n == 4
    for index, text in ((1, " b"), (0, " a"), (3, " d"), (1, "b")):
        piece(state, text, index)
    tree, going = state.page.tree, state.page.generating
    assert going and state.page.document.text == "Once bb END"
    assert [tree.nodes[going.nodes[i]].text for i in range(4)] == [" a", " bb", "", " d"]
    state.focus_page = 0
    apply(state, e.Take(going.nodes[3]))
    assert state.focus_page, "what is typed next goes into the page"
    assert state.page.document.text == "Once d END"
    piece(state, "d", 3)
    piece(state, "x", 7)
    others = [
        m.Continuation(text=text, ids=[i], finish_reason="length", seed=i, ledger=RESULT.ledger, logprobs=told(text))
        for i, text in enumerate((" bb", "", " dd"), 1)
    ]
    apply(state, e.Replied("page", msgspec.structs.replace(RESULT, text=" a", others=others), 1))
    assert state.page.document.text == "Once dd END" and sorted(takes(state)) == [" a", " bb", " dd"]
    assert (tokens := state.tokens_at(6)) and tokens.written.ids == [3], "each has its own alternatives"
    apply(state, e.Take(going.nodes[0]))
    assert state.page.document.text == "Once a END"
    for text in ("Once dd END", "Once END"):
        apply(state, e.Do("undo"))
        assert state.page.document.text == text, "a whole continuation, also one that was taken meanwhile"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("strategy", "greedy", "the same"), ("temperature", 0.0, "the same"), ("strategy", "contrastive", "n is at most")],
)
def test_branches_that_cannot_be_are_not_written(name: str, value: Any, why: str) -> None:
    state = page("Once")
    apply(state, e.SetSetting(name, value))
    assert apply(state, e.Do("branches")) == [] and state.page.generating is None and why in state.said("page")


def chain(length: int) -> tuple[Document, Tree]:
    """A page of many takes, each with another beside it."""
    document, tree = Document(), Tree()
    nodes, places = list[Node](), list[Place]()
    for i in range(1, length + 1):
        nodes += [Node(i, length + i, Passage(f" take {i}", ((0, len(f" take {i}")),)), then=length + i + 1)]
        nodes += [Node(10 * length + i, length + i, Passage(f" other {i}", ((0, 3),)))]
        places += [Place(length + i, i - 1, Passage("." * 100), [i, 10 * length + i], i)]
    tree.restore(nodes, places, Passage(""))
    document.become(tree.page(length))
    return document, tree


def test_a_thousand_takes_are_no_hitch() -> None:
    document, tree = chain(500)
    took = list[float]()
    for node in (5 * 1000 + 250, 500, 5 * 1000 + 499, 1) * 5:
        began = time.process_time()
        tree.settle(document)
        document.become(tree.page(node))
        took.append(time.process_time() - began)
    assert len(document.text) > 50_000 and min(took) < 0.02, "20 ms, and that on a busy machine at least once"
    took.clear()
    for _ in range(10):
        began = time.process_time()
        document.edit(50, 50, "x", "typed")
        took.append(time.process_time() - began)
    assert min(took) < 0.02, "once, since Python collects the garbage of all tests in between"
    assert tree.standing(document, document.cursor) != (0, 0)


words = st.sampled_from(["generate", "continue", "regenerate", "earlier", "later", "undo", "redo", "branches"])
steps: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("do"), words, st.sampled_from(["", " a", " bc", " a"])),
    st.tuples(st.just("type"), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["", "x", " yz"])),
    st.tuples(st.just("move"), st.floats(0, 1)),
    st.tuples(st.just("go"), st.integers(0, 9)),
    st.tuples(st.just("restore"), st.integers(1, 3)),
)


def step(state: AppState, what: Any) -> None:
    document, length = state.page.document, len(state.page.document.text)
    match what:
        case ("do", ("generate" | "continue" | "regenerate" | "branches") as how, text):
            written(state, text, how)
        case ("do", how, _):
            apply(state, e.Do(how))
        case ("type", a, b, text):
            start, end = sorted((round(a * length), round(b * length)))
            apply(state, e.Edit(start, end if end - start < 4 else start, text, "typed"))
        case ("move", a):
            document.select(round(a * length))
        case ("go", number):
            nodes = [0, *state.page.tree.nodes]
            apply(state, e.GoTo(nodes[number % len(nodes)]))
        case ("restore", number):
            apply(state, e.Restore(number))


def is_sound(tree: Tree) -> None:
    held = [node for place in tree.places.values() for node in place.nodes]
    assert sorted(held) == sorted(tree.nodes), "each take is in one place"
    for place in tree.places.values():
        assert place.nodes and all(tree.nodes[node].place == place.id for node in place.nodes)
        assert place.parent == 0 or place.parent in tree.nodes
        assert place in tree.under(place.parent)
    for node in tree.nodes:
        assert tree.path(node)[-1].id == node
        sheet = tree.page(node)
        assert sheet.text[: sheet.cursor].endswith(tree.nodes[node].text)
        pieces = sheet.written.marks + sheet.written.spans
        assert all(0 <= piece.start < piece.end <= len(sheet.text) for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=14))
def test_takes_and_undo_agree(order: list[Any]) -> None:
    state = page("Once")
    document, tree = state.page.document, state.page.tree
    for what in order:
        before, known = (document.text, document.spans), {n: t.text for n, t in tree.nodes.items()}
        edited = {n for n, take in tree.nodes.items() if take.source == "edited"}
        could_redo = document.can_redo
        step(state, what)
        is_sound(tree)
        assert all(n in tree.nodes and (n in edited or tree.nodes[n].text == text) for n, text in known.items()), (
            "no take is lost, and what the model wrote stays as it was"
        )
        marks = document.marks
        assert all(a.end <= b.start for a, b in itertools.pairwise(marks)) and all(k.start < k.end for k in marks)
        if document.text != before[0] and what[0] != "move" and what[:2] not in {("do", "undo"), ("do", "redo")}:
            now = document.text, document.spans
            apply(state, e.Do("undo"))
            apply(state, e.Do("redo"))
            assert (document.text, document.spans) == now
            assert not could_redo or not document.can_redo
        at, count = standing(state)
        places = len(tree.places)
        tree.settle(document)
        span = document.written.at(document.cursor)
        body = document.text[span.start : span.end] if span else ""
        if span and span.node in tree.nodes:
            siblings = tree.siblings(span.node)
            right = siblings.index(tree.nodes[span.node]) + 1, len(siblings)
            assert (at, count) == right or len(tree.places) < places, "it was right, unless two places became one"
            assert tree.nodes[span.node].text == body
        else:
            assert count == 0
        is_sound(tree)
        now = document.text, document.spans
        shown = [k.node for k in document.spans if k.node in tree.nodes]
        if shown:
            assert tree.page(shown[-1])[0] == document.text, "the page is what its last take leads to"
