"""Every panel of the window, driven by label against a real daemon with the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imgui_bundle import imgui

from client.app import App
from tests.client.window import Driver, drive
from tests.conftest import Daemon

pytestmark = pytest.mark.usefixtures("screen")
Key = imgui.Key


@pytest.fixture
def window(home: Path) -> Callable[[str, Callable[[Driver], None]], None]:
    def run(server: str, test: Callable[[Driver], None]) -> None:
        drive(App(lambda: None, server), home, test)

    return run


def write(d: Driver, text: str, tokens: int = 20) -> None:
    """Type a text and let it be continued."""
    d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
    d.state.preferences.sampling = {"max_new_tokens": tokens, "seed": 1}
    d.type(text)
    d.click("//Page/Generate")
    d.wait(lambda: d.state.page.generating is None and d.state.ledgers.count > 0)


def test_write_stop_undo_and_flip(window: Callable[[str, Callable[[Driver], None]], None], shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        write(d, "Shall I compare thee")
        document = d.state.page.document
        first = document.text
        assert first.startswith("Shall I compare thee") and len(first) > 30
        assert [(mark.start, mark.end) for mark in document.marks] == [(20, len(document.data))]
        d.shot("written")
        d.state.preferences.sampling["seed"] = 2
        d.click("//Page/Regenerate")
        d.wait(lambda: d.state.ledgers.count == 2)
        second = document.text
        assert second != first and second.startswith("Shall I compare thee")
        d.click("//Page/##earlier")
        assert document.text == first
        d.keys(Key.mod_alt, Key.right_arrow)
        assert document.text == second
        for text in (first, second, first, "Shall I compare thee"):
            d.keys(Key.mod_ctrl, Key.z)
            assert document.text == text
        for _ in range(4):
            d.keys(Key.mod_ctrl, Key.y)
        assert document.text == second
        d.state.preferences.sampling["max_new_tokens"] = 1000
        d.state.preferences.sampling["ignore_eos"] = True
        d.click("//Page/Continue")
        d.wait(lambda: len(document.text) > len(second) + 20)
        d.keys(Key.escape)
        d.wait(lambda: d.state.page.generating is None)
        assert d.state.ledgers.last.finish_reason == "cancelled" and document.text.startswith(second)
        assert d.state.ledgers.last.ledger.new_tokens < 1000

    window(shared_daemon.endpoint, test)
