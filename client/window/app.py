"""One frame of the client, whichever runner draws it: events -> state, state -> views, actions -> state -> effects."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

from imgui_bundle import imgui

from client import replicas
from client.window import disk, events as e, fonts, secret
from client.window.disk import Disk
from client.window.link import Link, LinkEffect
from client.window.pieces import joined
from client.window.preferences import LAYOUT_VERSION, POPOVERS
from client.window.state import AppState
from client.window.update import files
from client.window.update.apply import apply
from client.window.views.main import ui
from protocol import messages as m

PAGE = "[Window][Page]"
"""Part of every layout that places the page."""
KEEP_S = 1.0
"""Seconds between two looks at whether preferences have to be saved."""


class App:
    """Owns the state, the link and the disk. Everything here happens in the thread that draws."""

    def __init__(self, wake: Callable[[], None], server: str | None = None) -> None:
        """Connect to `server`, or the one of the preferences. `wake`, called in other threads, makes the runner draw
        soon.
        """
        self.state = AppState(preferences=disk.read_preferences())
        preferences = self.state.preferences
        self.state.link.server, self.state.link.secret = secret.read(server or preferences.server, "")
        self._kept, self._kept_at = copy.deepcopy(preferences), 0.0
        self.link, self.disk = Link(wake), Disk(wake, self._kept)
        self.state.history.entries.extend(disk.read_history())
        self.state.history.kept = len(self.state.history.entries)
        self.state.left_behind = self.disk.left_behind
        self.state.recovering = bool(self.state.left_behind)
        self.signs = False
        """The last look found signs of life of the server."""
        self._fonts: fonts.Fonts | None = None
        self.tell(e.Tick(time.monotonic(), time.time()))
        self.disk.do(e.ListFonts())
        if preferences.last:
            cursor = dict(preferences.files).get(preferences.last, e.END)
            self.disk.do(e.OpenFile(Path(preferences.last), cursor, at_start=True))
        self.tell(e.Connect())

    def start(self) -> None:
        """Set Dear ImGui up, once it has a context."""
        io = imgui.get_io()
        io.config_flags |= imgui.ConfigFlags_.docking_enable | imgui.ConfigFlags_.nav_enable_keyboard
        io.config_input_text_cursor_blink = False  # frames are drawn when something changes: it would freeze unseen
        io.set_ini_filename(None)  # with "", Dear ImGui never asks for its layout to be saved
        preferences = self.state.preferences
        if preferences.layout_version != LAYOUT_VERSION or (preferences.layout and PAGE not in preferences.layout):
            preferences.layout, preferences.closed = "", []
            preferences.layout_version = LAYOUT_VERSION
        preferences.closed = [*dict.fromkeys([*preferences.closed, *POPOVERS])]
        if preferences.layout:
            imgui.load_ini_settings_from_memory(preferences.layout)

    def tell(self, message: e.Message) -> None:
        """Let a message change the state, and have its effects carried out."""
        for effect in apply(self.state, message):
            if isinstance(effect, LinkEffect):
                self.link.do(effect)
            else:
                self.disk.do(effect)

    def take_events(self) -> bool:
        """Apply what has happened, and the time; return True if something had happened, or has expired. Signs of life
        that tell of nothing new are noted apart.
        """
        now, before = time.monotonic(), self._known_of_server()
        expired = self.state.due <= now
        happened = [*joined(self.link.events()), *self.disk.events()]
        self.tell(e.Tick(now, time.time()))
        for event in happened:
            self.tell(event)
        self._keep_now_and_then()
        signs = sum(isinstance(event, e.Replied) and isinstance(event.event, (m.Pong, m.Stats)) for event in happened)
        self.signs = signs > 0
        return signs < len(happened) or expired or before != self._known_of_server()

    def _known_of_server(self) -> list[tuple[str, ...]]:
        """Return what is known of the server, as far as it is more than figures."""
        link = self.state.link
        return [(link.status, link.trouble), *((*replicas.way(w), w.state) for w in link.workers)]

    def prepare(self) -> None:
        """Load fonts and set the style before a frame, where they changed."""
        if self.state.fonts_changed:
            self._fonts = fonts.load(self.state.preferences, self.state.fonts, self._fonts)
            self.state.page.view.layout = None  # a new font may be where one before was
            fonts.set_style(self.state.preferences, self.state.screen_scale)
            self.state.fonts_changed = False
            if self._fonts.troubles:
                self.tell(e.FontsLeftOut(self._fonts.troubles))
        if self._fonts:  # in each frame: the test engine puts back the one that it knew
            imgui.get_io().font_default = self._fonts.panel
        imgui.get_style().font_size_base = self.state.preferences.font_size

    def draw(self) -> None:
        """Draw the panels, inside a frame."""
        for action in ui(self.state, self._fonts.page if self._fonts else None):
            self.tell(action)

    def close(self) -> None:
        """Save the preferences, keep a page that is not saved unless the user quits, and end link and disk."""
        if imgui.get_current_context():
            self._keep_layout()  # Dear ImGui asks for that seconds after a change
        self.disk.do(e.SavePreferences(self.state.preferences))  # also what could not be saved before
        leaves = self.state.page.dirty and not self.state.quitting
        self.disk.do(e.KeepPage(files.kept(self.state)) if leaves else e.ForgetPage())
        self.disk.close()
        self.link.close()

    def _keep_now_and_then(self) -> None:
        """Save what has changed, once a second at most."""
        if self.state.now > self._kept_at + KEEP_S:
            self._kept_at = self.state.now
            if imgui.get_current_context() and imgui.get_io().want_save_ini_settings:
                self._keep_layout()
            self._keep()

    def _keep_layout(self) -> None:
        """Save where the panels are, once they are somewhere."""
        if self.state.arrange and not self.state.preferences.layout:
            return
        imgui.get_io().want_save_ini_settings = False
        self.state.preferences.layout = imgui.save_ini_settings_to_memory()
        self.state.preferences.layout_version = LAYOUT_VERSION

    def _keep(self) -> None:
        if self.state.preferences != self._kept:
            self._kept = copy.deepcopy(self.state.preferences)
            self.disk.do(e.SavePreferences(self._kept))
