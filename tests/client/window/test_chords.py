"""The table of chords, and that a chord acts where it is meant to, whatever has the focus."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui

from client.window.chords import CHORDS, code, keys_of, listed
from client.window.events import Connect, Do
from scripts.daemon import Daemon
from tests.client.window.driver import Driver, drive

Key = imgui.Key


def test_no_chord_is_bound_twice() -> None:
    codes = Counter(code(keys) for chord in CHORDS for keys in chord.keys)
    assert codes and max(codes.values()) == 1, [each for each, count in codes.items() if count > 1]


def test_no_chord_is_a_character_or_what_a_text_field_needs() -> None:
    """Ctrl+Alt is AltGr on Windows, and types characters."""
    needed = {"Ctrl+A", "Ctrl+C", "Ctrl+V", "Ctrl+X", "Ctrl+Left", "Ctrl+Right", "Ctrl+Tab"}
    for keys in (keys for chord in CHORDS for keys in chord.keys):
        modifiers = keys.split("+")[:-1]
        assert keys not in needed
        assert "Ctrl" in modifiers or "Alt" in modifiers or keys == "Esc" or keys[0] == "F", keys
        assert not {"Ctrl", "Alt"} <= set(modifiers), keys


def test_texts_come_from_the_table() -> None:
    assert code("Ctrl+Shift+Z") == int(Key.mod_ctrl) | int(Key.mod_shift) | int(Key.z)
    assert code("Ctrl+0") == int(Key.mod_ctrl) | int(Key._0)
    assert (keys_of(Do("redo")), keys_of(Do("quit")), keys_of(Connect())) == ("Ctrl+Y", "Ctrl+Q", "")
    assert ("Ctrl+Y, Ctrl+Shift+Z", "redo") in listed()


@pytest.mark.usefixtures("screen", "home")
def test_chords_act_where_they_are_meant_to(shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
        d.state.preferences.sampling = {"max_new_tokens": 5, "seed": 1}
        document = d.state.page.document
        d.type("Shall I")
        texts = list[str]()
        for seed, key in ((1, Key.enter), (2, Key.r)):
            d.state.preferences.sampling["seed"] = seed
            d.keys(Key.mod_ctrl, key)
            d.wait(lambda: d.state.ledgers.count == seed and d.state.page.generating is None)  # noqa: B023 - at once
            d.ctx.yield_(3)
            texts.append(document.text)
        first, second = texts
        assert first != second
        d.keys(Key.mod_alt, Key.left_arrow)  # with the caret in the page
        assert document.text == first
        d.keys(Key.mod_alt, Key.right_arrow)
        assert document.text == second and document.cursor == len(second)

        d.panel("Compare")
        d.click("//Compare/Compare/##prompt")
        assert imgui.get_io().want_text_input
        d.ctx.key_chars("x")
        for chord in ((Key.z,), (Key.y,), (Key.r,), (Key.enter,), (Key.mod_shift, Key.enter)):
            d.keys(Key.mod_ctrl, *chord)
        d.keys(Key.mod_alt, Key.left_arrow)
        assert document.text == second and d.state.page.generating is None and d.state.ledgers.count == 2
        d.keys(Key.f1)  # meant everywhere
        assert "Keys" not in d.state.preferences.closed
        d.keys(Key.f1)
        d.keys(Key.mod_ctrl, Key.e)
        d.panel("Model")  # nothing takes text
        d.keys(Key.mod_alt, Key.left_arrow)
        assert document.text == first
        d.keys(Key.mod_ctrl, Key.n)  # a dialog
        d.keys(Key.mod_alt, Key.right_arrow)
        assert document.text == first and d.state.confirm == "new"

    drive(shared_daemon.endpoint, test)
