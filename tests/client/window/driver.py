"""Drives the real panels with the Dear ImGui Test Engine, which clicks and types by label, in a hidden window under
Xvfb.
"""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgui_bundle import hello_imgui, imgui, immapp
from imgui_bundle.immapp import testing

from client.window.app import App
from client.window.events import Prefer
from client.window.loop import clear
from client.window.state import AppState
from protocol import messages as m

SHOTS = os.environ.get("GPT2D_SHOTS")
"""A folder for the screenshots; without it nothing is rasterised, which takes far longer than all that is tested."""


SIZE = (1360, 860)
TEST_S = 100.0


class Driver:
    """What a test does to the window."""

    def __init__(self, app: App, ctx: Any) -> None:
        self.app, self.ctx = app, ctx

    @property
    def state(self) -> AppState:
        return self.app.state

    @property
    def last(self) -> m.Generated:
        """Result of the last generation."""
        assert self.state.ledgers.last
        return self.state.ledgers.last

    def click(self, path: str) -> None:
        self.ctx.item_click(path)
        assert not self.ctx.is_error(), f"{path} cannot be clicked"

    def choose(self, combo: str, item: str) -> None:
        """Open a drop-down and take one of its items."""
        self.click(combo)
        self.ctx.yield_(2)
        self.click(f"//$FOCUSED/{item}")
        self.ctx.yield_(3)

    def panel(self, name: str) -> None:
        """Bring a panel to the front, or open it where it hangs from the bar."""
        closed = self.state.preferences.closed
        if name in closed:
            self.app.tell(Prefer("closed", [panel for panel in closed if panel != name]))
            self.ctx.yield_(2)
        self.ctx.window_focus(f"//{name}")
        self.ctx.yield_(2)

    def wait(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, (
                f"waited in vain; {self.state.link.status} {self.state.link.trouble} {self.state.notices}"
            )
            self.ctx.yield_()
            time.sleep(0.002)

    def type(self, text: str) -> None:
        """Into the page, at the cursor."""
        self.focus_page()
        self.ctx.key_chars(text)
        self.ctx.yield_(2)

    def focus_page(self) -> None:
        self.panel("Page")
        self.ctx.item_click("//Page/##page")
        self.ctx.yield_(2)

    def mouse_to(self, offset: int) -> None:
        """Move the mouse over a character of the page: where a click sets the caret before it."""
        x, y = self.state.page.view.place(offset)
        self.ctx.mouse_move_to_pos(imgui.ImVec2(x + 1, y + self.state.page.view.line / 2))
        self.ctx.yield_(2)

    def keys(self, *keys: imgui.Key) -> None:
        chord = 0
        for key in keys:
            chord |= int(key)
        self.ctx.key_press(chord)
        self.ctx.yield_(3)

    def shot(self, name: str) -> None:
        """Take a picture of the whole window, where there is a folder for it."""
        self.ctx.yield_(2)
        if SHOTS:
            path = Path(SHOTS) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            testing.capture(self.ctx, str(path))
            assert path.stat().st_size > 5000


def drive(server: str, test: Callable[[Driver], None]) -> None:
    """Open the app in a process of its own, connected to a server, and run the test in it.

    A process, because Dear ImGui's objects must not outlive its context, which a test process's garbage collection does
    not promise. Raises: AssertionError with what went wrong.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            _run(App(lambda: None, server), test)
        except BaseException:  # noqa: BLE001 - reported to the parent, whatever it is
            said = traceback.format_exc()
        os.write(writing, said.encode()[-60_000:])
        os._exit(bool(said))
    os.close(writing)
    try:
        ready = select.select([reading], [], [], TEST_S)[0]
        said = os.read(reading, 65_536).decode(errors="replace") if ready else f"not done within {TEST_S} s"
    finally:
        if not ready:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
    assert not said and status == 0, said or f"the window's process ended with status {status}"


def _run(app: App, test: Callable[[Driver], None]) -> None:
    if not SHOTS:
        os.environ["GALLIUM_NOOP"] = "1"  # Mesa's: OpenGL's commands are taken and not carried out
    params = hello_imgui.RunnerParams()

    def show() -> None:
        app.take_events()
        app.draw()

    params.callbacks.show_gui = show
    params.callbacks.post_init = app.start
    params.callbacks.pre_new_frame = app.prepare
    params.callbacks.custom_background = lambda: clear(app.state.page.view.paper)
    params.imgui_window_params.default_imgui_window_type = hello_imgui.DefaultImGuiWindowType.no_default_window
    params.app_window_params.window_geometry.size = SIZE
    params.app_window_params.hidden = True
    params.ini_disable = True
    params.fps_idling.enable_idling = False
    try:
        testing.run(
            test_function=lambda ctx: test(Driver(app, ctx)),
            runner_params=params,
            add_ons_params=immapp.AddOnsParams(with_implot=True),
        )
    finally:
        app.close()
