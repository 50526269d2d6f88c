"""What folds around the page: pill, side panel, drawer, toasts; at the sizes and scales that people have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui

from client.window.events import DiskFailed, Do
from client.window.update import notices
from client.window.views import inference, live, toasts
from client.window.writing import Generating
from tests.client.fake import ReplicaServer
from tests.client.window import driver
from tests.client.window.driver import Driver, drive
from tests.client.window.test_update import RESULT

pytestmark = pytest.mark.usefixtures("screen", "home")
BAR = "//##MainMenuBar/##MenuBar/"
Window = Callable[[str, Callable[[Driver], None]], None]


def width(name: str) -> float:
    """Return the width of a window as it is shown; 0 where it is not."""
    window: Any = imgui.internal.find_window_by_name(name)
    return float(window.size.x) if window and window.was_active and not window.hidden else 0.0


def ready(d: Driver) -> None:
    d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
    d.ctx.yield_(5)


def test_the_page_has_most_of_the_width_and_what_is_around_it_folds() -> None:
    def test(d: Driver) -> None:
        ready(d)
        whole = driver.SIZE[0]
        assert width("Page") >= 0.6 * whole and width("Model") and width("Inference")
        d.click(f"{BAR}###side")
        d.ctx.yield_(5)
        assert width("Page") == whole and not width("Model") and not width("Sampling")
        d.click(f"{BAR}###drawer")
        d.ctx.yield_(5)
        assert not width("Inference") and d.state.preferences.folded == ["side", "drawer"]
        d.ctx.menu_click("//##MainMenuBar/View/Reset layout")
        d.ctx.yield_(8)
        assert width("Page") >= 0.6 * whole and width("Model") and width("Inference")
        d.click(f"{BAR}###connection")
        d.ctx.yield_(3)
        assert width("Connection") and "Connection" not in d.state.preferences.closed
        assert imgui.get_io().want_text_input, "its field has the keyboard"
        d.click(f"{BAR}###connection")  # once more closes it
        d.ctx.yield_(3)
        assert not width("Connection")
        d.click(f"{BAR}###settings")
        d.ctx.yield_(3)
        assert width("Settings")
        d.keys(imgui.Key.escape)
        assert not width("Settings")
        d.ctx.yield_(5)
        d.ctx.key_chars("On")
        d.ctx.yield_(3)
        assert d.state.page.document.text == "On", "one goes on writing"
        d.click(f"{BAR}###connection")
        d.ctx.yield_(3)
        d.focus_page()  # whoever goes on writing has closed it
        assert not width("Connection")
        notices.warn(d.state, "load", "the worker died", Do("keys"), "Show the keys")
        d.ctx.yield_(3)
        assert width("##toast load")
        d.click("//##toast load/###way out")
        d.ctx.yield_(3)
        assert width("Keys") and not width("##toast load") and d.state.notices == []
        d.focus_page()
        again: Any = DiskFailed("it is still full")  # what a save leads to
        notices.warn(d.state, "file", "the disk is full", again, "Save again")
        d.ctx.yield_(3)
        d.click("//##toast file/###way out")
        d.ctx.yield_(3)
        assert d.state.said("file") == "it is still full", "what a way out has to say is not taken for its beginning"
        for opener in (f"{BAR}###settings", f"{BAR}###connection"):
            d.click(opener)
            d.ctx.yield_(3)
            d.keys(imgui.Key.escape)
            d.ctx.yield_(3)
            assert d.state.page.view.keyboard, "not the notice: a space is typed, too"

    with ReplicaServer() as server:
        drive(server.endpoint, test)


@pytest.mark.parametrize(("size", "scale"), [((640, 480), 1.0), ((1360, 860), 2.0)], ids=["small", "scale 2"])
def test_a_small_window_shows_the_page_and_lays_over_it_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], scale: float
) -> None:
    monkeypatch.setattr(driver, "SIZE", size)

    def test(d: Driver) -> None:
        d.state.screen_scale, d.state.fonts_changed = scale, True
        ready(d)
        assert width("Page") == size[0] and not width("Model") and not width("Inference")
        d.click(f"{BAR}###side")
        d.ctx.yield_(5)
        assert 0 < width("##over side") <= size[0]
        d.ctx.item_click("//##over side/panels/Sampling")
        d.ctx.yield_(3)
        slider = "//##over side/panels/Sampling/Sampling/top_p/##top p"
        d.click(slider)
        assert 0.3 < d.state.settings["top_p"] < 0.7
        imgui.get_io().mouse_single_click_delay = 31.0  # frames may be slow here
        imgui.get_io().mouse_double_click_time = 30.0
        d.ctx.item_double_click(slider)
        d.ctx.yield_(3)
        assert d.state.settings == {}
        d.keys(imgui.Key.escape)
        d.ctx.yield_(3)
        assert d.state.over == "" and not width("##over side")
        d.click(f"{BAR}###drawer")
        d.ctx.yield_(5)
        assert width("##over drawer") == size[0]
        d.shot(f"over {size[0]} {scale}")
        d.click("//##over drawer/panels/###close")
        d.ctx.yield_(3)
        assert d.state.over == "" and width("Page") == size[0]
        d.type("A page that one can write on.")
        assert d.state.page.document.text == "A page that one can write on."

    with ReplicaServer() as server:
        drive(server.endpoint, test)


def test_a_panel_that_is_not_wide_shows_its_buttons_and_names_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else int8 and int4 look the same in Compare."""
    monkeypatch.setattr(driver, "SIZE", (1200, 800))

    def test(d: Driver) -> None:
        ready(d)
        reset = d.ctx.item_info("//Sampling/Sampling/Reset")
        sampling = imgui.internal.find_window_by_name("Sampling")
        assert reset.rect_full.max.x <= sampling.inner_clip_rect.max.x
        d.panel("Compare")
        d.ctx.yield_(5)
        way, preset = (d.ctx.item_info(f"//Compare/Compare/columns/$$0/##{name} 0") for name in ("way", "preset"))
        assert way.rect_full.min.y < preset.rect_full.min.y

    with ReplicaServer() as server:
        drive(server.endpoint, test)


@pytest.mark.parametrize(
    ("going", "said"),
    [
        ({"tokens": 87, "first_at": 10.0, "latest_at": 10.0 + 86 / 412}, "87 of 300 · 412 tokens/s"),
        ({"tokens": 1}, "1 of 300"),
        ({}, "reading the text"),
        ({"place": 3}, "waiting, place 3"),
        ({"tokens": 87, "stopping": True}, "stopping"),
    ],
)
def test_a_generation_says_how_far_it_is(going: dict[str, Any], said: str) -> None:
    assert live.words(Generating(0, 0, "x", 300, 0.0, **going)) == said


def test_figures_are_those_of_what_is_written_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last generation's figures are not taken for those of the next while it runs."""
    drawn = list[list[tuple[str, str]]]()
    monkeypatch.setattr(inference, "draw_figures", drawn.append)

    def test(d: Driver) -> None:
        ready(d)
        d.state.ledgers.last = RESULT
        d.ctx.yield_(3)
        whole = drawn[-1]
        assert [caption for _, caption in whole] == [
            "inference, measured by the server",
            "tokens/s",
            "to the first token",
        ]
        d.state.page.generating = Generating(0, 0, "x", 300, 0.0, tokens=87, first_at=1.0, latest_at=2.0)
        d.ctx.yield_(3)
        assert drawn[-1] == [("87", "of 300 tokens"), ("86", "tokens/s so far")]
        d.state.page.generating = None
        d.ctx.yield_(3)
        assert drawn[-1] == whole

    with ReplicaServer() as server:
        drive(server.endpoint, test)


def test_a_notice_is_as_long_as_one_reads() -> None:
    assert toasts.sentence("the worker\n died") == "The worker died"
    assert toasts.short("W" * 5000, 40) == "W" * 40 + " ..." and len(toasts.sentence("\n" * 500 + "x " * 5000)) <= 404
