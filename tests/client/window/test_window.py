"""Every panel of the window, driven by label against a real daemon with the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui

from client.window.disk import system_fonts
from client.window.events import Do, Prefer, Select
from client.window.preferences import LAYOUT_VERSION, Preferences
from client.window.views import compare
from protocol import Client, messages as m
from protocol.keys import Address, CurveKeys
from scripts.daemon import Daemon
from scripts.reliability.daemon import Behaviour, FakeDaemon
from tests.client.fake import ReplicaServer
from tests.client.hostile import HostileServer
from tests.client.window.driver import Driver, drive
from tests.system.test_keys import keyed_daemon

pytestmark = pytest.mark.usefixtures("screen", "home")
Key = imgui.Key


@pytest.fixture
def window() -> Callable[[str, Callable[[Driver], None]], None]:
    return drive


def write(d: Driver, text: str, tokens: int = 20) -> None:
    """Type a text and let it be continued."""
    d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
    d.state.preferences.sampling = {"max_new_tokens": tokens, "seed": 1}
    d.type(text)
    d.click("//Page/Generate")
    d.wait(lambda: d.state.page.generating is None and d.state.ledgers.count > 0)


def test_write_undo_and_flip(window: Callable[[str, Callable[[Driver], None]], None], shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        write(d, "Shall I compare thee")
        document = d.state.page.document
        first = document.text
        assert first.startswith("Shall I compare thee") and len(first) > 30
        assert [(mark.start, mark.end) for mark in document.marks] == [(20, len(document.text))]
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

    window(shared_daemon.endpoint, test)


Window = Callable[[str, Callable[[Driver], None]], None]


def test_stop(window: Window, tmp_path: Path) -> None:
    """Of a text that would take 20 s."""

    def test(d: Driver) -> None:
        write(d, "Shall I compare thee", tokens=3)
        document = d.state.page.document
        first = document.text
        d.state.preferences.sampling |= {"max_new_tokens": 1000, "ignore_eos": True}
        d.click("//Page/Continue")
        d.wait(lambda: len(document.text) > len(first) + 20)
        d.keys(Key.escape)
        d.wait(lambda: d.state.page.generating is None)
        last = d.state.ledgers.last  # none where the window did not wait any longer for the server's word
        assert last is None or (last.finish_reason == "cancelled" and last.ledger.new_tokens < 1000)
        assert document.text.startswith(first)

    with FakeDaemon(tmp_path, Behaviour(delay_ms=20)) as daemon:
        with Client(daemon.endpoint) as client:
            client.load("demo")
        window(daemon.endpoint, test)


def test_what_stands_after_the_cursor_stays(window: Window, shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        write(d, "Shall I compare theeEND", tokens=1)
        d.keys(Key.mod_ctrl, Key.z)
        assert d.state.page.document.text == "Shall I compare theeEND"
        d.focus_page()
        for _ in range(3):
            d.keys(Key.left_arrow)
        assert d.state.page.document.cursor == 20
        d.state.preferences.sampling["max_new_tokens"] = 5
        d.keys(Key.mod_ctrl, Key.enter)
        d.wait(lambda: d.state.ledgers.count == 2 and d.state.page.generating is None)
        document = d.state.page.document
        assert (
            document.text.startswith("Shall I compare thee")
            and document.text.endswith("END")
            and len(document.text) > 26
        )
        assert d.state.history.entries[-1].prompt == "Shall I compare thee"
        d.ctx.key_chars("!")
        d.ctx.yield_(3)
        assert document.text.endswith("!END"), "one goes on writing where it ended"

    window(shared_daemon.endpoint, test)


def test_load_with_progress_and_unload(window: Window, own_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and len(d.state.models.known) > 5)
        assert [i.name for i in d.state.models.known][:2] == ["demo", "gpt2"] and not d.state.models.known[1].on_disk
        d.panel("Model")
        d.choose("//Model/Model/##Precision", "fp32")
        d.ctx.yield_(2)
        assert (d.state.models.model, d.state.models.precision) == ("demo", "fp32")
        d.state.preferences.sampling = {"max_new_tokens": 5}
        d.type("Once")
        d.click("//Page/Generate")
        d.wait(lambda: d.state.models.loading is not None or d.state.ledgers.count == 1)
        d.wait(lambda: d.state.ledgers.count == 1 and any(w.state == "ready" for w in d.state.link.workers), 60)
        assert d.last.precision == "fp32", "what is chosen is loaded by the act itself"
        d.shot("loaded")
        d.click("//**/###unload demo\\/native\\/fp32")
        d.wait(lambda: not d.state.link.workers)
        d.choose("//Model/Model/##Model", "###gpt2-xl")
        d.click("//Model/Model/###Load")
        d.ctx.yield_(3)
        d.shot("download")
        d.keys(Key.escape)
        assert d.state.asking is None and d.state.models.loading is None
        d.click("//Model/Model/###Load")
        d.ctx.yield_(3)
        d.keys(Key.enter)
        d.wait(lambda: bool(d.state.said("load")))
        assert "cannot be reached" in d.state.said("load") and "put a folder" in d.state.said("load")

    window(own_daemon.endpoint, test)


def test_replicas_are_loaded_shown_and_changed(window: Window) -> None:
    with ReplicaServer() as server:

        def test(d: Driver) -> None:
            def held(number: int) -> Callable[[], bool]:
                return lambda: d.state.models.loading is None and len(d.state.link.workers) == number

            d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
            d.panel("Model")
            d.click("//Model/Model/###Load")
            d.wait(held(1))
            d.ctx.yield_(3)
            d.shot("one replica")
            for _ in range(2):
                d.click("//Model/Model/replicas/+")
            assert d.state.wanted == 3
            d.shot("three replicas wanted")
            d.click("//Model/Model/###Load")
            d.wait(held(3))
            d.ctx.yield_(5)
            d.shot("three replicas")
            d.ctx.item_input_value("//Model/Model/replicas", 99)
            assert d.state.wanted == 64
            d.click("//Model/Model/###Load")
            d.wait(held(64))
            d.ctx.yield_(5)
            d.shot("many replicas")
            d.ctx.item_input_value("//Model/Model/replicas", 1)
            d.click("//Model/Model/###Load")
            d.wait(held(1))
            d.click("//**/###unload demo\\/native\\/int8")
            d.wait(held(0))

        window(server.endpoint, test)
        assert [load.replicas for load in server.asked(m.Load)] == [None, 3, 64, 1]


def test_what_a_precision_costs_stands_beside_it(window: Window, own_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and len(d.state.models.known) > 5)
        d.panel("Model")
        d.choose("//Model/Model/##Precision", "int8")
        d.click("//Model/Model/###Measure")
        d.wait(lambda: d.state.models.measuring is None, 60)
        assert d.state.said("measure") == ""

        def card() -> m.Fidelity | None:
            chosen = d.state.models.chosen()
            return (
                next((p.fidelity for p in chosen.precisions if (p.engine, p.precision) == ("native", "int8")), None)
                if chosen
                else None
            )

        d.wait(lambda: card() is not None)
        told = card()
        assert told is not None and told.tokens == 4096 and not told.calibrated and abs(told.perplexity_change_pct) < 5
        assert "perplexity " in d.state.said("model")
        d.shot("fidelity")
        d.choose("//Model/Model/##Engine", "torch")
        d.choose("//Model/Model/##Precision", "fp32")
        d.click("//Model/Model/compile")
        assert d.state.models.compile and d.state.compiles
        d.click("//Model/Model/###Measure")
        d.wait(lambda: d.state.models.measuring is not None)
        d.click("//Model/Model/###StopMeasuring")
        d.wait(lambda: d.state.models.measuring is None)
        assert d.state.said("measure") == ""

    window(own_daemon.endpoint, test)


def test_a_search_writes_into_the_page(window: Window, shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        write(d, "Shall I compare thee", tokens=6)
        d.panel("Sampling")
        for strategy in ("beam", "beam_sample", "diverse_beam", "contrastive"):
            before = d.state.ledgers.count
            d.choose("//Sampling/Sampling/strategy/strategy", strategy)
            assert d.state.settings["strategy"] == strategy
            d.click("//Page/Continue")
            d.wait(lambda: d.state.ledgers.count > before and d.state.page.generating is None)  # noqa: B023 - called at once
            assert d.state.said("page") == "" and d.last.settings["strategy"] == strategy
            d.panel("Sampling")
        d.shot("searched")

    window(shared_daemon.endpoint, test)


def test_another_token_is_taken(window: Window, shared_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: "demo" in d.state.models.byte_level)
        write(d, "Shall I compare thee ", tokens=6)
        assert d.state.page.document.text[:21].endswith("thee ") and not d.state.page.document.text[21:].startswith(" ")
        first = d.last
        assert len(first.logprobs) == 6 and len(first.logprobs[0].top) == 10
        other = next(a for a in first.logprobs[2].top if a.id != first.ids[2])
        d.panel("Tokens")
        d.click(f"//Tokens/Tokens/$$2/{first.logprobs[2].text}")
        d.ctx.yield_(3)
        d.shot("alternatives")
        d.click(f"//$FOCUSED/###{other.id}")
        d.wait(lambda: d.state.ledgers.count == 2 and d.state.page.generating is None)
        assert d.state.history.entries[-1].prompt == "Shall I compare thee"
        beginning = "".join(t.text for t in first.logprobs[:2]) + other.text
        assert d.state.page.document.text.startswith("Shall I compare thee " + beginning.removeprefix(" "))
        tokens = d.state.tokens_at(d.state.page.document.cursor)
        assert tokens and tokens.written.ids[:3] == [*first.ids[:2], other.id], "earlier ones can still be replaced"
        d.mouse_to(tokens.places[1])
        d.ctx.mouse_click(1)
        d.ctx.yield_(3)
        d.click("//$FOCUSED/Shade by probability")
        assert d.state.preferences.shade_tokens
        d.mouse_to(tokens.places[2])
        d.mouse_to(tokens.places[1])
        d.wait(lambda: bool(d.state.hovered and d.state.hovered.opened))
        d.ctx.yield_(3)
        d.shot("tokens on the page")
        instead = next(a for a in tokens.written.tokens[1].top if a.id != tokens.written.ids[1])
        d.click(f"//##alternatives/###{instead.id}")
        d.wait(lambda: d.state.ledgers.count == 3 and d.state.page.generating is None)
        again = d.state.tokens_at(d.state.page.document.cursor)
        assert again and again.written.ids[:2] == [first.ids[0], instead.id] and d.state.hovered is None
        d.wait(lambda: d.state.page.view.keyboard)  # and the page has the keyboard, as after any writing
        d.mouse_to(again.places[1])
        d.ctx.mouse_click(0)
        d.wait(lambda: d.state.page.document.cursor == again.places[1])

    window(shared_daemon.endpoint, test)


def test_compare_int8_with_full_precision(window: Window, own_daemon: Daemon) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
        d.panel("Compare")
        for index, way in enumerate(("demo/native/int8", "demo/native/fp32")):
            d.choose(f"//Compare/Compare/columns/$${index}/##way {index}", way.replace("/", "\\/"))
        d.click("//Compare/Compare/###Compare")
        d.wait(lambda: d.state.compare.running is None and all(c.result for c in d.state.compare.columns), 60)
        one, two = d.state.compare.columns
        assert one.result and two.result
        assert (one.result.precision, two.result.precision) == ("int8", "fp32") and not one.error and not two.error
        assert one.result.settings["seed"] == two.result.settings["seed"] == 1
        assert "".join(part for part, _ in two.parts) == two.text
        assert (one.text == two.text) == (not any(differs for _, differs in two.parts))
        d.shot("compared")
        begins, draw_parts = list[float](), compare.draw_parts

        def drawn(parts: list[tuple[str, bool]]) -> None:
            begins.append(imgui.get_cursor_screen_pos().y)
            draw_parts(parts)

        compare.draw_parts = drawn
        for columns in (2, 4):
            while len(d.state.compare.columns) < columns:
                d.app.tell(Do("add column"))
            d.ctx.yield_(4)
            panel = imgui.internal.find_window_by_name("Compare")
            lines = (panel.pos.y + panel.size.y - begins[-columns]) / d.state.preferences.font_size
            assert lines > 6, "a text is read without scrolling"
        d.shot("compared four")

    window(own_daemon.endpoint, test)


def test_history_is_searched_restored_and_exported(window: Window, shared_daemon: Daemon, home: Path) -> None:
    def test(d: Driver) -> None:
        write(d, "Shall I compare thee", tokens=8)
        text = d.state.page.document.text
        d.keys(Key.mod_ctrl, Key.n)
        d.ctx.yield_(3)
        d.click("//$FOCUSED/Do not save")
        d.wait(lambda: d.state.page.document.text == "")
        d.panel("History")
        d.ctx.item_input_value("//History/History/##search", "COMPARE demo")
        d.click("//**/###entry 1")
        d.ctx.yield_(2)
        d.click("//History/History/Restore")
        d.wait(lambda: d.state.page.document.text == text)
        d.click("//History/History/Export Python")
        d.wait(lambda: d.state.files.purpose == "export" and Path(d.state.files.folder).is_absolute())
        d.state.files.folder = str(home)
        d.ctx.yield_(2)
        d.click("//$FOCUSED/###OK")
        d.wait((home / "generation.py").exists)
        done = subprocess.run(
            [sys.executable, str(home / "generation.py"), shared_daemon.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Shall I compare thee" + done.stdout[:-1] == text, done.stderr

    window(shared_daemon.endpoint, test)


def test_files_unsaved_changes_and_restore(window: Window, shared_daemon: Daemon, home: Path) -> None:
    kept = home / "data" / "gpt2d" / "autosave"

    def first(d: Driver) -> None:
        d.type("Stra\u00dfe \u4e2d\u6587")
        d.keys(Key.mod_ctrl, Key.s)
        d.wait(lambda: d.state.files.purpose == "save")
        d.ctx.yield_(3)
        d.ctx.key_chars_replace(f"{home}/page.txt")
        d.keys(Key.enter)
        d.wait(lambda: (home / "page.txt").exists() and not d.state.page.dirty)
        assert (home / "page.txt").read_text(encoding="utf-8") == "Stra\u00dfe \u4e2d\u6587"
        d.type(" more")
        d.wait(lambda: any("more" in file.read_text("utf-8") for file in kept.glob("*.json")))
        d.shot("unicode")

    def second(d: Driver) -> None:
        d.ctx.yield_(3)
        assert d.state.recovering
        d.shot("restore")
        d.click(f"//$FOCUSED/###restore {next(iter(d.state.left_behind))}")
        d.wait(lambda: d.state.page.document.text.endswith("more"))
        d.keys(Key.mod_ctrl, Key.s)
        d.wait(lambda: not d.state.page.dirty and not list(kept.glob("*.json")))
        d.app.tell(Select(3, 3))
        d.app.tell(Do("quit"))

    def third(d: Driver) -> None:
        d.wait(lambda: d.state.page.path == home / "page.txt")
        assert d.state.page.document.text.endswith("more") and d.state.page.document.cursor == 3
        d.type("!")
        (home / "page.txt").write_bytes(b"another's")
        d.keys(Key.mod_ctrl, Key.s)
        d.wait(lambda: d.state.files.exists is not None)
        d.ctx.yield_(3)
        d.shot("changed by another program")
        d.keys(Key.escape)
        assert d.state.files.exists is None and (home / "page.txt").read_bytes() == b"another's"

    for test in (first, second, third):
        window(shared_daemon.endpoint, test)


@pytest.mark.skipif(not system_fonts(), reason="needs a font (Debian: apt-get install fonts-dejavu-core)")
def test_fonts_theme_and_panels_are_kept(window: Window, shared_daemon: Daemon, home: Path) -> None:
    def change(d: Driver) -> None:
        d.wait(lambda: bool(d.state.fonts))
        d.ctx.menu_click("//##MainMenuBar/View/History")
        d.ctx.menu_click("//##MainMenuBar/View/Settings")
        d.ctx.yield_(3)
        d.click("//Settings/Settings/light")
        d.ctx.yield_(3)
        d.app.tell(Prefer("font_size", 20.0))
        d.app.tell(Prefer("page_font", next((path for name, path in d.state.fonts if "DejaVu" in name), "")))
        d.ctx.yield_(5)
        d.type("A page in another font.")
        d.shot("light")
        d.keys(Key.f1)
        d.ctx.yield_(3)
        assert "Keys" not in d.state.preferences.closed
        d.shot("keys")
        d.wait((home / "config" / "gpt2d" / "client.json").exists)

    def see(d: Driver) -> None:
        assert d.state.preferences.theme == "light" and d.state.preferences.font_size == 20
        assert "History" in d.state.preferences.closed and "Tokens" not in d.state.preferences.closed
        d.ctx.yield_(3)

    window(shared_daemon.endpoint, change)
    window(shared_daemon.endpoint, see)


def test_a_slider_that_sets_its_own_size_stays_under_the_mouse(window: Window) -> None:
    def test(d: Driver) -> None:
        d.panel("Settings")
        for label, name, middle in (("##Scale", "scale", 2.25), ("##Size", "font_size", 34.0)):
            d.ctx.mouse_move(f"//Settings/Settings/{label}")
            d.ctx.mouse_down(0)
            d.ctx.yield_(8)
            d.ctx.mouse_up(0)
            d.ctx.yield_(3)
            assert getattr(d.state.preferences, name) == pytest.approx(middle, rel=0.1)
            d.app.tell(Prefer(name, getattr(Preferences(), name)))
            d.ctx.yield_(5)

    window("tcp://127.0.0.1:1", test)


def test_a_killed_daemon_is_said_and_found_again(
    window: Window, own_daemon: Daemon, tmp_path: Path, cache: Path
) -> None:
    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
        d.click("//Model/Model/###Load")
        write_when_loaded(d)
        d.state.preferences.sampling |= {"max_new_tokens": 1000, "ignore_eos": True}
        (worker,) = psutil.Process(own_daemon.process.pid).children()
        worker.suspend()
        d.keys(Key.mod_ctrl, Key.enter)
        d.wait(lambda: d.state.page.generating is not None)
        d.keys(Key.escape)
        d.wait(lambda: not d.state.page.busy, 5)
        assert not any(n.kind == "failed" for n in d.state.notices), "Stop is no fault, and needs no worker that moves"
        d.keys(Key.mod_ctrl, Key.enter)
        d.wait(lambda: d.state.page.generating is not None)
        os.kill(own_daemon.process.pid, signal.SIGKILL)  # from another process than its parent
        worker.resume()
        d.wait(lambda: d.state.link.status == "lost" and d.state.page.generating is None)
        assert d.state.link.trouble and d.state.said("link")
        d.shot("lost")
        again = Daemon(tmp_path / "again", "--cache-dir", str(cache), "--endpoint", own_daemon.endpoint)
        try:
            d.wait(lambda: d.state.link.status == "ready")
            assert "restarted" in d.state.said("link") or "again" in d.state.said("link")
        finally:
            again.kill()

    window(own_daemon.endpoint, test)


def write_when_loaded(d: Driver) -> None:
    d.wait(lambda: any(w.state == "ready" for w in d.state.link.workers), 30)
    write(d, "Shall I", tokens=3)


def test_refusals_and_nobody_there(window: Window, tmp_path: Path, cache: Path, home: Path) -> None:
    keyed = keyed_daemon(tmp_path, cache, "--preload", "demo")
    line = Address(keyed.daemon.endpoint, keyed.server.public, CurveKeys.new()).line()
    guest = Address(keyed.daemon.endpoint, keyed.server.public, keyed.guest).line()

    def test(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "refused")
        assert "refuses this key" in d.state.link.trouble
        d.shot("refused")
        for server, says in (
            (keyed.daemon.endpoint, "wants a key"),
            ("tcp://127.0.0.1:1", "nobody listens"),
            ("nonsense", "no server"),
        ):
            d.panel("Connection")
            d.ctx.item_input_value("//Connection/Connection/##server", server)
            d.click(
                "//Connection/Connection/Reconnect"
                if d.state.link.status != "off"
                else "//Connection/Connection/Connect"
            )
            d.wait(lambda: says in d.state.link.trouble)  # noqa: B023 - called at once
        d.click("//Connection/Connection/##server")
        d.keys(Key.mod_ctrl, Key.a)
        imgui.set_clipboard_text(guest)
        d.keys(Key.mod_ctrl, Key.v)
        address, keys = guest.split("#")
        assert (d.state.link.server, d.state.link.secret) == (address, keys)
        for key in (Key.a, Key.c):
            d.keys(Key.mod_ctrl, key)
        assert imgui.get_clipboard_text() == address + "#" + "\u2022" * len(keys)
        d.shot("hidden secret")
        d.keys(Key.keypad_enter)
        d.wait(lambda: d.state.link.status == "ready")
        d.wait(lambda: d.state.link.server.startswith("127.0.0.1-"))
        d.wait((home / "config" / "gpt2d" / "client.json").exists)

    def again(d: Driver) -> None:
        d.wait(lambda: d.state.link.status == "ready" and bool(d.state.link.workers))
        d.ctx.yield_(3)
        d.shot("guest")
        d.ctx.item_click("//**/###unload demo\\/native\\/int8")
        d.ctx.yield_(10)
        assert d.state.link.workers and d.state.notices == [], "this key may not unload"

    window(line, test)
    window("", again)
    keyed.daemon.kill()


def test_preferences_broken_by_hand_are_drawn(window: Window, home: Path) -> None:
    damaged = {
        "temperature": "hot",
        "max_new_tokens": [1],
        "stop": 5,
        "logit_bias": [[1]],
        "strategy": {},
        "top_k": 2**40,
        "seed": -1,
    }
    kept = home / "config" / "gpt2d" / "client.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(
        json.dumps({"sampling": damaged, "presets": {"": {}, "a": 5, "b": damaged | {"seed": 3}}, "recent": ["", 5]})
    )
    with ReplicaServer() as server:

        def test(d: Driver) -> None:
            d.wait(lambda: d.state.link.status == "ready" and bool(d.state.models.model))
            assert d.state.settings == {}
            d.panel("Connection")
            d.click("//Connection/Connection/##recent")
            d.keys(Key.escape)
            d.panel("Sampling")
            d.ctx.item_open("//Sampling/Sampling/More")
            d.choose("//Sampling/Sampling/##Presets", "b")
            d.ctx.yield_(3)
            assert d.state.settings == {"seed": 3}

        window(server.endpoint, test)


def test_a_layout_without_the_page_is_none(window: Window, home: Path) -> None:
    kept = home / "config" / "gpt2d" / "client.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"layout": "[Window][Model]\nPos=5,5\n", "layout_version": LAYOUT_VERSION}))

    def test(d: Driver) -> None:
        d.ctx.yield_(10)
        assert imgui.internal.find_window_by_name("Page").size.x > 500

    window("tcp://127.0.0.1:1", test)


def test_a_hostile_server_freezes_nothing(window: Window) -> None:
    """Endless text, control characters, nonsense ledgers: the window stays, and says so."""
    with HostileServer() as server:

        def test(d: Driver) -> None:
            d.wait(lambda: d.state.link.status == "ready")
            d.panel("Sampling")
            d.ctx.item_open("//Sampling/Sampling/More")
            assert d.state.setting("choice_1") == "" and d.state.setting("int_9") is None
            d.click("//Sampling/Sampling/choice_1/choice 1")
            d.ctx.yield_(3)
            d.shot("hostile settings")
            d.keys(Key.escape)
            d.click("//Model/Model/##Model")
            d.ctx.yield_(3)
            d.keys(Key.escape)
            d.panel("Sampling")
            d.click("//Sampling/Sampling/int_9/##fixed")
            d.ctx.item_input_value("//Sampling/Sampling/int_9/int 9", "9" * 5000)
            d.ctx.yield_(3)
            assert d.state.settings == {"int_9": int("9" * 19)}
            d.click("//Sampling/Sampling/Reset")
            d.ctx.yield_(2)
            d.type("x")
            d.click("//Page/Generate")
            d.wait(lambda: d.state.page.generating is None and bool(d.state.said("page")))
            assert "far more text" in d.state.said("page")
            began = time.monotonic()
            for _ in range(20):
                d.ctx.yield_()
            assert time.monotonic() - began < 5
            d.state.page.document.edit(0, len(d.state.page.document.text), "nonsense", "test")
            d.click("//Page/Generate")
            d.wait(lambda: d.state.ledgers.count == 1)
            for name in ("Inference", "Tokens", "History", "Model", "Sampling"):
                d.panel(name)
            d.ctx.yield_(5)
            d.shot("hostile")
            assert "\0" not in d.state.page.document.text

        window(server.endpoint, test)
