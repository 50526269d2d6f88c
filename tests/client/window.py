"""Drives the real panels with the Dear ImGui Test Engine, which clicks and types by label, in a hidden window under Xvfb."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glfw  # noqa: F401 - before imgui_bundle, as in the program
from imgui_bundle import hello_imgui, imgui, immapp
from imgui_bundle.immapp import testing

from client.app import App
from client.state import AppState

SHOTS = os.environ.get("GPT2D_SHOTS")
"""A folder for the screenshots; without it they are taken and thrown away."""


class Driver:
    """What a test does to the window."""

    def __init__(self, app: App, ctx: Any, folder: Path) -> None:
        self.app, self.ctx, self._folder = app, ctx, folder

    @property
    def state(self) -> AppState:
        return self.app.state

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
        """Bring a panel to the front."""
        self.ctx.window_focus(f"//{name}")
        self.ctx.yield_(2)

    def wait(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, f"waited in vain; {self.state.link.status} {self.state.link.trouble} {self.state.page.error}"
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

    def keys(self, *keys: imgui.Key) -> None:
        chord = 0
        for key in keys:
            chord |= int(key)
        self.ctx.key_press(chord)
        self.ctx.yield_(3)

    def shot(self, name: str) -> Path:
        """A picture of the whole window."""
        path = Path(SHOTS or self._folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        testing.capture(self.ctx, str(path))
        assert path.stat().st_size > 5000
        return path


def drive(app: App, folder: Path, test: Callable[[Driver], None], size: tuple[int, int] = (1360, 860)) -> None:
    """Run the app in a window of the test's until the test has ended. Raises what the test raises."""
    params = hello_imgui.RunnerParams()

    def show() -> None:
        app.take_events()
        app.draw()

    params.callbacks.show_gui = show
    params.callbacks.post_init = app.start
    params.callbacks.pre_new_frame = app.prepare
    params.imgui_window_params.default_imgui_window_type = hello_imgui.DefaultImGuiWindowType.no_default_window
    params.app_window_params.window_geometry.size = size
    params.app_window_params.hidden = True
    params.ini_disable = True
    params.fps_idling.enable_idling = False
    try:
        testing.run(
            test_function=lambda ctx: test(Driver(app, ctx, folder)),
            runner_params=params,
            add_ons_params=immapp.AddOnsParams(with_implot=True),
        )
    finally:
        app.close()
