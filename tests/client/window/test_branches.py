"""Branches as a person has them: four at once, side by side; one is taken, the tree has the others."""

from __future__ import annotations

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui

from scripts.daemon import Daemon
from tests.client.window.driver import Driver, drive

pytestmark = pytest.mark.usefixtures("screen", "home")
Key = imgui.Key


def test_four_branches_are_written_and_gone_through(shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        page = d.state.page
        d.wait(lambda: d.state.link.status == "ready" and d.state.loaded)
        d.state.preferences.sampling = {"max_new_tokens": 30, "seed": 1}
        d.type("Shall I compare thee")
        d.keys(Key.mod_ctrl, Key.b)
        d.wait(lambda: len(page.batch) == 4 and page.generating is None)
        texts = [page.tree.nodes[node].text for node in page.batch]
        assert len(set(texts)) == 4 and all(texts)
        shown = next(text for text in texts if page.document.text == "Shall I compare thee" + text)
        d.ctx.yield_(5)
        d.shot("branches")
        third = page.batch[2]
        d.click("//Branches/**/###take 3")
        d.ctx.yield_(3)
        assert page.document.text == "Shall I compare thee" + texts[2] and page.batch == []
        assert page.tree.standing(page.document, page.document.cursor)[1] == 4, "the others stay"
        d.panel("Tree")
        d.ctx.yield_(5)
        d.shot("tree")
        other = next(node.id for node in page.tree.nodes.values() if node.text == shown)
        d.click(f"//**/###node {other}")
        d.ctx.yield_(3)
        assert page.document.text == "Shall I compare thee" + shown
        d.click(f"//**/$${third}/###keep")
        d.ctx.yield_(2)
        assert page.tree.nodes[third].kept
        gone = next(node for node in page.tree.nodes if node not in {third, other})
        d.click(f"//**/$${gone}/prune")
        d.ctx.yield_(2)
        assert gone not in page.tree.nodes and len(page.tree.nodes) == 3
        d.ctx.item_input_value("//**/##name", "the one")
        d.ctx.yield_(2)
        assert page.tree.nodes[other].name == "the one"
        an_edited_take_is_flipped(d)

    drive(shared_daemon.endpoint, test)


def an_edited_take_is_flipped(d: Driver) -> None:
    """A letter typed inside a take is a take of its own, which Alt+Left leaves and Alt+Right brings back."""
    page = d.state.page
    whole = page.document.text
    d.keys(Key.mod_ctrl, Key.e)
    d.mouse_to(25)
    d.ctx.mouse_click()
    d.ctx.yield_(2)
    d.ctx.key_chars("Q")
    d.ctx.yield_(3)
    edited = page.document.text
    assert edited == whole[:25] + "Q" + whole[25:]
    at, count = page.tree.standing(page.document, page.document.cursor)
    assert count == 4, "the edited one is counted"
    d.keys(Key.mod_alt, Key.left_arrow)
    assert page.document.text == whole
    assert page.tree.standing(page.document, page.document.cursor) == (at - 1, 4)
    d.keys(Key.mod_alt, Key.right_arrow)
    assert page.document.text == edited
    for text in (whole, edited, whole):
        d.keys(Key.mod_ctrl, Key.z)
        assert page.document.text == text
    for _ in range(3):
        d.keys(Key.mod_ctrl, Key.y)
    assert page.document.text == edited
