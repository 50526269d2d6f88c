"""The program's window: glfw, OpenGL, and a loop that draws only when there is something new to see."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import imgui_bundle  # noqa: F401 - before glfw: it points pyGLFW at its own GLFW, so that one library serves both

# isort: split
import glfw
from imgui_bundle import imgui, implot
from imgui_bundle.python_backends.glfw_backend import GlfwRenderer
from OpenGL import GL

from client.window.app import App
from client.window.events import Do

IDLE_S = 1.0
"""Seconds between two looks at the state where nothing is new."""
STREAM_S = 1 / 30
"""Seconds between two frames that only show incoming text."""
FRAME_S = 1 / 60
SETTLE = 3
"""Number of frames after an input: Dear ImGui needs them to settle."""
TITLE = "gpt2d"
MODIFIERS = range(glfw.KEY_LEFT_SHIFT, glfw.KEY_RIGHT_SUPER + 1)


class NoWindow(Exception):
    """No window can be made; the text says why."""


class Backend(GlfwRenderer):
    """The backend of imgui-bundle, which here also takes an empty clipboard, all of Unicode and mouse cursor shapes."""

    def __init__(self, window: Any) -> None:
        super().__init__(window)
        self.touched = True
        """There was input since the last frame."""
        io = imgui.get_platform_io()
        io.platform_get_clipboard_text_fn = lambda _: _text(glfw.get_clipboard_string(window))
        for name in ("key", "char", "cursor_pos", "mouse_button", "scroll", "window_size"):
            self._notice(window, name)
        glfw.set_window_refresh_callback(window, lambda _: self.touch())
        glfw.set_window_focus_callback(window, self.focus_callback)
        imgui.get_io().backend_flags |= imgui.BackendFlags_.has_mouse_cursors
        shapes = {
            imgui.MouseCursor_.text_input: glfw.IBEAM_CURSOR, imgui.MouseCursor_.resize_ew: glfw.HRESIZE_CURSOR,
            imgui.MouseCursor_.resize_ns: glfw.VRESIZE_CURSOR, imgui.MouseCursor_.hand: glfw.HAND_CURSOR,
        }  # fmt: skip
        self._cursors = {int(shape): glfw.create_standard_cursor(kind) for shape, kind in shapes.items()}
        self._cursor = -1
        self._pressed = False
        """A key was pressed since the last frame."""
        self._later: list[tuple[int, int, int, int]] = []

    def focus_callback(self, _window: Any, focused: int) -> None:
        imgui.get_io().add_focus_event(bool(focused))
        self.touch()

    def touch(self) -> None:
        self.touched = True

    def _notice(self, window: Any, name: str) -> None:
        """Make the callback of an input also note that there was one."""
        setter = getattr(glfw, f"set_{name}_callback")
        before = setter(window, None)

        def both(*arguments: Any) -> None:
            self.touched = True
            before(*arguments)

        setter(window, both)

    def keyboard_callback(self, window: Any, glfw_key: int, scancode: int, action: int, mods: int) -> None:
        """Pass a key on; a modifier released in the frame of a key's press counts from the next: else a fast Ctrl+R is
        an R.
        """
        if self._later or (self._pressed and glfw_key in MODIFIERS and action == glfw.RELEASE):
            self._later.append((glfw_key, scancode, action, mods))
            return
        self._pressed = self._pressed or action == glfw.PRESS
        super().keyboard_callback(window, glfw_key, scancode, action, mods)

    def next_frame(self) -> None:
        """Pass on what had to wait for the end of a frame."""
        later, self._later = self._later, []
        self._pressed = False
        for event in later:
            self.touch()
            self.keyboard_callback(self.window, *event)

    def char_callback(self, _window: Any, char: int) -> None:
        if 0 < char < 0x110000:
            imgui.get_io().add_input_character(char)

    def show_cursor(self) -> None:
        shape = int(imgui.get_mouse_cursor())
        if shape != self._cursor:
            self._cursor = shape
            glfw.set_cursor(self.window, self._cursors.get(shape))  # type: ignore[arg-type]  # None is the arrow


class Window:
    """The window and its loop. Raises: NoWindow."""

    def __init__(self, server: str | None = None) -> None:
        reasons: deque[str] = deque(maxlen=8)  # glfw also calls an empty clipboard an error, as often as one pastes
        glfw.set_error_callback(lambda _code, text: reasons.append(_text(text)))
        if not glfw.init():
            raise NoWindow("; ".join(reasons) or "glfw cannot be started")
        self._woken = False
        self.app = App(self.wake, server)
        preferences = self.app.state.preferences
        for hint, value in (
            (glfw.CONTEXT_VERSION_MAJOR, 3),
            (glfw.CONTEXT_VERSION_MINOR, 3),
            (glfw.OPENGL_PROFILE, glfw.OPENGL_CORE_PROFILE),
        ):
            glfw.window_hint(hint, value)
        if sys.platform == "darwin":
            glfw.window_hint(glfw.OPENGL_FORWARD_COMPAT, True)
        self.window = glfw.create_window(preferences.width, preferences.height, TITLE, None, None)
        if not self.window:
            self.app.close()
            glfw.terminate()
            raise NoWindow(f"it needs OpenGL 3.3 ({'; '.join(reasons) or 'GLFW does not say why'})")
        glfw.make_context_current(self.window)
        glfw.swap_interval(0)  # the loop has its own timing: a hidden window would wait forever
        imgui.create_context()
        implot.create_context()
        self.backend = Backend(self.window)
        self._scaled()
        glfw.set_window_content_scale_callback(self.window, lambda *_: self._scaled())
        self.app.start()
        self.watch: Callable[[float, float, float], None] | None = None
        """Called after each frame with: seconds of the window's own code, how late it began, when it was shown
        (monotonic).
        """
        self._title = ""

    def run(self) -> None:
        """Draw until the user quits."""
        settle, drawn = SETTLE, 0.0
        while not self.app.state.quitting:
            pause = self._pause(settle)
            wait = drawn + pause - time.monotonic()
            if wait > 0:
                glfw.wait_events_timeout(wait)
            else:
                glfw.poll_events()
            if glfw.window_should_close(self.window):
                glfw.set_window_should_close(self.window, False)
                self.app.tell(Do("quit"))
                self.backend.touched = True
            if self.backend.touched or imgui.get_current_context().input_events_queue.size():
                settle, self.backend.touched = SETTLE, False
            now = time.monotonic()
            if now < drawn + self._pause(settle):
                continue
            late = now - (drawn + pause) if drawn else 0.0
            self._woken = False
            happened = self.app.take_events()
            taken = time.monotonic() - now
            drawn = now
            if settle or happened or self.app.state.link.status not in {"ready", "off"}:  # else nothing looks different
                settle = max(0, settle - 1)
                own = self.frame() + taken
                if self.watch:
                    self.watch(own, late, time.monotonic())
        size = glfw.get_window_size(self.window)
        self.app.state.preferences.width, self.app.state.preferences.height = int(size[0]), int(size[1])

    def _scaled(self) -> None:
        """Use the screen's scale, unless the system scales the window's pixels (macOS, Wayland)."""
        scale, state = glfw.get_window_content_scale(self.window)[0], self.app.state
        if glfw.get_framebuffer_size(self.window) == glfw.get_window_size(self.window) and 0.5 <= scale <= 4.0:
            state.screen_scale, state.fonts_changed = float(scale), True
            self.backend.touch()

    def _pause(self, settle: int) -> float:
        """Return the seconds from one look at the state to the next: short after an input, longer for incoming text."""
        if settle or self.backend.touched:
            return FRAME_S
        return STREAM_S if self._woken or self.app.link.more else IDLE_S

    def wake(self) -> None:
        """Note that there is something new. Called in other threads."""
        self._woken = True
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
        width, height = glfw.get_framebuffer_size(self.window)
        GL.glViewport(0, 0, width, height)
        GL.glClearColor(0.1, 0.1, 0.1, 1)
        GL.glClear(GL.GL_COLOR_BUFFER_BIT)
        self.backend.render(imgui.get_draw_data())
        self.backend.next_frame()
        self.backend.show_cursor()
        glfw.swap_buffers(self.window)
        page = self.app.state.page
        title = f"{page.path.name if page.path else 'not saved yet'}{' *' if page.dirty else ''} - {TITLE}"
        if title != self._title:
            self._title = title
            glfw.set_window_title(self.window, title)
        return own

    def close(self) -> None:
        self.app.close()
        self.backend.shutdown()
        glfw.terminate()


def _text(given: str | bytes | None) -> str:
    """Return a text of glfw, which gives bytes where its types say str."""
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else given or ""


def main(server: str | None = None) -> None:
    """Open the window and stay until it is closed. Raises: NoWindow."""
    window = Window(server)
    try:
        window.run()
    finally:
        window.close()
