"""One frame of the client, whichever runner draws it: events -> state, state -> views, actions -> state -> effects."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from imgui_bundle import imgui

from client.window import disk, events as e, fonts, secret
from client.window.disk import Disk
from client.window.link import Link, LinkEffect
from client.window.state import AppState
from client.window.update.apply import apply
from client.window.views.main import ui

KEEP_S = 1.0
"""Seconds between two looks at whether preferences have to be saved."""


class App:
    """Owns the state, the link and the disk. Everything here happens in the thread that draws."""

    def __init__(self, wake: Callable[[], None], server: str | None = None) -> None:
        """Connect to `server`, or the one of the preferences. `wake`, called in other threads, makes the runner draw
        soon.
        """
        self.state = AppState(preferences=disk.read_preferences(), recovered=disk.read_autosave())
        preferences = self.state.preferences
        self.state.link.server, self.state.link.secret = secret.read(server or preferences.server, "")
        self.link, self.disk = Link(wake), Disk(wake)
        self._kept, self._kept_at = copy.deepcopy(preferences), 0.0
        self._fonts: list[imgui.ImFont] = []
        """The panels' font and the page's."""
        self.tell(e.Tick(time.monotonic(), time.time()))
        self.disk.do(e.ListFonts())
        self.tell(e.Connect())

    def start(self) -> None:
        """Set Dear ImGui up, once it has a context."""
        io = imgui.get_io()
        io.config_flags |= imgui.ConfigFlags_.docking_enable | imgui.ConfigFlags_.nav_enable_keyboard
        io.set_ini_filename("")
        if self.state.preferences.layout:
            imgui.load_ini_settings_from_memory(self.state.preferences.layout)

    def tell(self, message: e.Message) -> None:
        """Let a message change the state, and have its effects carried out."""
        for effect in apply(self.state, message):
            if isinstance(effect, LinkEffect):
                self.link.do(effect)
            else:
                self.disk.do(effect)

    def take_events(self) -> bool:
        """Apply what has happened, and the time; return True if something had happened."""
        now = time.monotonic()
        happened = [*self.link.events(), *self.disk.events()]
        self.tell(e.Tick(now, time.time()))
        for event in happened:
            self.tell(event)
        return bool(happened)

    def prepare(self) -> None:
        """Load fonts and set the style before a frame, where they changed."""
        if self.state.fonts_changed:
            self._fonts = fonts.load(self.state.preferences, self.state.fonts, self._fonts)
            fonts.set_style(self.state.preferences, self.state.screen_scale)
            self.state.fonts_changed = False
        imgui.get_style().font_size_base = self.state.preferences.font_size

    def draw(self) -> None:
        """Draw the panels, inside a frame."""
        for action in ui(self.state, self._fonts[1]):
            self.tell(action)
        if self.state.now > self._kept_at + KEEP_S:
            self._kept_at = self.state.now
            if imgui.get_io().want_save_ini_settings:
                self.state.preferences.layout = imgui.save_ini_settings_to_memory()
                imgui.get_io().want_save_ini_settings = False
            self._keep()

    def close(self) -> None:
        """Save the preferences, and end link and disk."""
        self._keep()
        if not self.state.page.dirty or self.state.quitting:
            self.disk.do(e.Autosave(None))
        self.disk.close()
        self.link.close()

    def _keep(self) -> None:
        if self.state.preferences != self._kept:
            self._kept = copy.deepcopy(self.state.preferences)
            self.disk.do(e.SavePreferences(self._kept))
