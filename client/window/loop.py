"""The program's window: glfw, OpenGL, and a loop that draws only when there is something new to see."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable

import imgui_bundle  # noqa: F401 - before glfw: it points pyGLFW at its own GLFW, so that one library serves both

# isort: split
import glfw
from imgui_bundle import imgui, implot
from OpenGL import GL

from client.window.app import App
from client.window.backend import Backend, as_text, on_drop
from client.window.events import Do, Dropped, Unanswered
from client.window.opening import NAME, keep_place, open_window
from client.window.pace import Pace
from client.window.textfile import told
from client.window.views import widgets

OPENS = 3
"""Number of frames that a list takes to find its size and place."""


class NoWindow(Exception):
    """No window can be made; the text says why."""


class Window:
    """The window and its loop. Raises: NoWindow."""

    def __init__(self, server: str | None = None) -> None:
        give_way()
        reasons: deque[str] = deque(maxlen=8)  # glfw also calls an empty clipboard an error, as often as one pastes
        glfw.set_error_callback(lambda _code, text: reasons.append(as_text(text)))
        if not glfw.init():
            raise NoWindow("; ".join(reasons) or "glfw cannot be started")
        self._woken: float | None = None
        """When the first news came that no look has taken yet."""
        self.pace = Pace()
        self.app = App(self.wake, server)
        self.window, glsl = open_window(self.app.state.preferences)
        if not self.window:
            self.app.close()
            glfw.terminate()
            raise NoWindow(f"it needs OpenGL 3.1 or newer ({'; '.join(reasons) or 'GLFW does not say why'})")
        glfw.make_context_current(self.window)
        glfw.swap_interval(0)  # the loop has its own timing: a hidden window would wait forever
        imgui.create_context()
        implot.create_context()
        self.backend = Backend(self.window, glsl)
        self.backend.unanswered = lambda: self.app.tell(Unanswered())
        self._scaled()
        glfw.set_window_content_scale_callback(self.window, lambda *_: self._scaled())
        self.app.start()
        self.drop = on_drop(self.window, self._dropped)
        """What GLFW calls at the end of a drag."""
        self.watch: Callable[[float, float, float], None] | None = None
        """Called after each frame with: seconds of the window's own code, how late it began, when it was shown
        (monotonic).
        """
        self._ended_by = 0
        """Number of the signal that ends the window; 0: none has come."""
        self._title = ""
        self._noticed = self.app.state.notices

    def run(self) -> None:
        """Draw until the user quits or a signal comes. Raises: SystemExit(128 + its number) after a signal."""
        gc.freeze()  # the libraries' objects stay: to look through them again takes longer than two frames
        while not (self.app.state.quitting or self._ended_by):
            self._notice(time.monotonic())  # what the frame itself has left to do
            due = self._due()
            wait = due - time.monotonic()
            if wait > 0:
                glfw.wait_events_timeout(wait)
            else:
                glfw.poll_events()
            if glfw.window_should_close(self.window):
                self._closed()
            now = time.monotonic()
            self._notice(now)
            if now >= self._due():
                self._look(now, late=now - due)
        keep_place(self.window, self.app.state.preferences)
        if self._ended_by:
            sys.exit(128 + self._ended_by)

    def end_by_signals(self) -> None:
        """Have the end of a session or of a terminal end the window as its user finds it: what is not saved is kept."""

        def ended(number: int, _frame: object) -> None:
            self._ended_by = number

        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, ended)

    def _dropped(self, paths: tuple[str, ...]) -> None:
        self.app.tell(Dropped(paths))
        self.backend.touch()

    def _closed(self) -> None:
        """Ask what a close of the window asks, where it can be seen."""
        glfw.set_window_should_close(self.window, False)
        self.app.tell(Do("quit"))
        self.backend.touch()
        if not self.app.state.quitting and self.backend.minimised:
            glfw.restore_window(self.window)

    def _notice(self, now: float) -> None:
        """Pass on to the pace what input there was."""
        if self.backend.touched:
            self.pace.struck()
        if self.backend.moved:
            self.pace.moved(now, drags=imgui.is_any_mouse_down())
        self.backend.touched = self.backend.moved = False

    def _due(self) -> float:
        return self.pace.due(-math.inf if self.app.link.more else self._woken, self.app.state.due)

    def _look(self, now: float, late: float) -> None:
        """Take what has happened, and draw where anything looks different. A minimised window is not drawn."""
        began = time.process_time()
        owes, self._woken = self.pace.look(now), None
        happened = self.app.take_events()
        taken = time.monotonic() - now
        figures = self.app.signs or self.app.state.link.status not in {"ready", "off"}  # it shows for how long
        if (owes or happened or (figures and self.pace.refreshes(now))) and not self.backend.minimised:
            own = self.frame() + taken
            self.pace.drew(time.process_time() - began)
            self.app.state.interval_ms = self.pace.interval_ms
            if self._unsettled():
                self.backend.touch()
            if self.watch:
                self.watch(own, late, time.monotonic())

    def _unsettled(self) -> bool:
        """True if the next frame looks different although nothing happens."""
        context, state = imgui.get_current_context(), self.app.state
        noticed, self._noticed = self._noticed, state.notices
        # Dear ImGui takes fast input in turns, and darkens what is behind a dialog little by little; the page goes on
        # scrolling under a drag beyond its edge; a notice takes the size of its text, and so does a list of tokens.
        waits, darkens = context.input_events_queue.size() > 0, 0 < context.dim_bg_ratio < 1
        opens = state.hovered is not None and 0 < state.hovered.drawn < OPENS
        return waits or darkens or opens or state.page.view.moving or noticed is not state.notices

    def _scaled(self) -> None:
        """Use the screen's scale, unless the system scales the window's pixels (macOS, Wayland)."""
        scale, state = glfw.get_window_content_scale(self.window)[0], self.app.state
        if self.backend.pixels == self.backend.size and 0.5 <= scale <= 4.0:
            state.screen_scale, state.fonts_changed = float(scale), True
            self.backend.touch()

    def wake(self) -> None:
        """Note that there is something new. Called in other threads.

        The loop is woken by the first news alone and finds the others when it looks: each time that it is woken takes a
        core from the decoder beside it.
        """
        if self._woken is None:
            self._woken = time.monotonic()
            glfw.post_empty_event()

    def frame(self) -> float:
        """Draw once; return the seconds that the window's own code took, without those of OpenGL."""
        began = time.monotonic()
        self.app.prepare()
        self.backend.process_inputs()
        imgui.new_frame()
        self.app.draw()
        imgui.render()
        own = time.monotonic() - began
        GL.glViewport(0, 0, *self.backend.pixels)
        clear(self.app.state.page.view.paper)
        self.backend.render(imgui.get_draw_data())
        self.backend.next_frame()
        self.backend.show_cursor()
        glfw.swap_buffers(self.window)
        page = self.app.state.page
        title = f"{told(page.path.name) if page.path else 'Untitled'}{' *' if page.dirty else ''} - {NAME}"
        if title != self._title:
            self._title = title
            glfw.set_window_title(self.window, title)
        return own

    def close(self) -> None:
        glfw.hide_window(self.window)  # nobody uses it any more, and what is left may wait for a disk or a server
        self.app.close()
        self.backend.shutdown()
        glfw.terminate()


def give_way() -> None:
    """Let this process's threads, those to come included, wait for the end of a turn instead of breaking into it.

    Threads that decode beside the window wait for each other at every step, so that a frame which breaks into one of
    them holds up all. A turn ends within 4 ms, and an idle core is had at once, as before.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where a sandbox forbids it nothing is lost but that
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def clear(paper: tuple[float, float, float, float] | None) -> None:
    """Fill the frame with the colour of the panels, which leave it out, and its part `paper` with the page's. Where
    there is no graphics card, that takes a tenth of what it takes to draw them.
    """
    fill(imgui.get_style_color_vec4(imgui.Col_.window_bg))
    if paper is None:
        return
    scale, height = imgui.get_io().display_framebuffer_scale, imgui.get_io().display_size.y
    left, right = round(paper[0] * scale.x), round(paper[2] * scale.x)
    low, high = round((height - paper[3]) * scale.y), round((height - paper[1]) * scale.y)
    GL.glEnable(GL.GL_SCISSOR_TEST)
    GL.glScissor(left, low, max(0, right - left), max(0, high - low))
    fill(widgets.color("page"))
    GL.glDisable(GL.GL_SCISSOR_TEST)


def fill(colour: imgui.ImVec4) -> None:
    GL.glClearColor(colour.x, colour.y, colour.z, 1)
    GL.glClear(GL.GL_COLOR_BUFFER_BIT)


def main(server: str | None = None) -> None:
    """Open the window and stay until it is closed. Raises: NoWindow; SystemExit after a signal that ended it."""
    window = Window(server)
    try:
        window.end_by_signals()
        window.run()
    finally:
        window.close()
