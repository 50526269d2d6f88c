"""Input of the window: keys by their letter on the present layout, modifiers that never stick, clipboard, cursors,
files that are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import imgui_bundle  # noqa: F401 - before glfw: it points pyGLFW at its own GLFW, so that one library serves both

# isort: split
import glfw
from imgui_bundle import imgui
from imgui_bundle.python_backends import compute_fb_scale
from imgui_bundle.python_backends.glfw_backend import GlfwRenderer

from client.window.editor.hands import PRIMARY
from client.window.selections import Holders

MODIFIERS = {
    glfw.KEY_LEFT_CONTROL: glfw.MOD_CONTROL, glfw.KEY_RIGHT_CONTROL: glfw.MOD_CONTROL,
    glfw.KEY_LEFT_SHIFT: glfw.MOD_SHIFT, glfw.KEY_RIGHT_SHIFT: glfw.MOD_SHIFT,
    glfw.KEY_LEFT_ALT: glfw.MOD_ALT, glfw.KEY_RIGHT_ALT: glfw.MOD_ALT,
    glfw.KEY_LEFT_SUPER: glfw.MOD_SUPER, glfw.KEY_RIGHT_SUPER: glfw.MOD_SUPER,
}  # fmt: skip
MODS = {
    glfw.MOD_CONTROL: imgui.Key.mod_ctrl, glfw.MOD_SHIFT: imgui.Key.mod_shift,
    glfw.MOD_ALT: imgui.Key.mod_alt, glfw.MOD_SUPER: imgui.Key.mod_super,
}  # fmt: skip
BY_NAME: dict[str, imgui.Key] = {chr(code): getattr(imgui.Key, chr(code)) for code in range(ord("a"), ord("z") + 1)}
BY_NAME |= {str(digit): getattr(imgui.Key, f"_{digit}") for digit in range(10)}
BY_NAME |= {
    "+": imgui.Key.equal, "=": imgui.Key.equal, "-": imgui.Key.minus, ",": imgui.Key.comma, ".": imgui.Key.period,
    ";": imgui.Key.semicolon, "/": imgui.Key.slash, "'": imgui.Key.apostrophe, "[": imgui.Key.left_bracket,
    "]": imgui.Key.right_bracket, "\\": imgui.Key.backslash, "`": imgui.Key.grave_accent,
}  # fmt: skip
"""Keys by the character that the layout gives them; a key with another one (or none, or not a Latin one) goes by its
place on a US keyboard, as GLFW's key codes do.
"""
KEYPAD: dict[int, imgui.Key] = {
    glfw.KEY_KP_ENTER: imgui.Key.enter, glfw.KEY_KP_ADD: imgui.Key.equal, glfw.KEY_KP_SUBTRACT: imgui.Key.minus,
    **{glfw.KEY_KP_0 + digit: getattr(imgui.Key, f"_{digit}") for digit in range(10)},
}  # fmt: skip
WITHOUT_NUM_LOCK = {
    glfw.KEY_KP_0: imgui.Key.insert, glfw.KEY_KP_1: imgui.Key.end, glfw.KEY_KP_2: imgui.Key.down_arrow,
    glfw.KEY_KP_3: imgui.Key.page_down, glfw.KEY_KP_4: imgui.Key.left_arrow, glfw.KEY_KP_6: imgui.Key.right_arrow,
    glfw.KEY_KP_7: imgui.Key.home, glfw.KEY_KP_8: imgui.Key.up_arrow, glfw.KEY_KP_9: imgui.Key.page_up,
    glfw.KEY_KP_DECIMAL: imgui.Key.delete,
}  # fmt: skip
FRAME_S, LEAST_S = 1 / 60, 1 / 1000
"""Seconds since the frame before, as Dear ImGui is told: for the first frame, and the least."""
NOWHERE = (-imgui.FLT_MAX, -imgui.FLT_MAX)
"""Where Dear ImGui has a pointer that is outside."""


class Backend(GlfwRenderer):
    """The backend of imgui-bundle, which here also takes an empty clipboard, all of Unicode and mouse cursor shapes.

    It draws with Dear ImGui's own compiled renderer, which takes every OpenGL from 3.1 on; the one in Python wants 3.3.
    """

    def __init__(self, window: Any, glsl: str) -> None:
        """`glsl`: the first line of the shaders, which fits the window's OpenGL."""
        self._glsl = glsl
        super().__init__(window)
        # On X11 each of these is a question to the X server, which wants a core for its answer: asked once, then told.
        self.size, self.pixels = glfw.get_window_size(window), glfw.get_framebuffer_size(window)
        self.minimised = bool(glfw.get_window_attrib(window, glfw.ICONIFIED))
        self._drawn_at = glfw.get_time() - FRAME_S
        self.touched = True
        """There was input that is to be seen at once."""
        self.moved = False
        """The pointer has moved."""
        io = imgui.get_platform_io()
        io.platform_get_clipboard_text_fn = lambda _: as_text(glfw.get_clipboard_string(window))
        self.unanswered: Callable[[], None] = lambda: None
        """Called where the program that holds what is pasted does not answer."""
        if glfw.get_platform() == glfw.PLATFORM_X11:
            holders = Holders(glfw.get_x11_window(window))

            def read(selection: str, pasted: Callable[[], str | bytes | None]) -> str:
                if holders.answer(selection):
                    return as_text(pasted())
                self.unanswered()
                return ""

            io.platform_get_clipboard_text_fn = lambda _: read("CLIPBOARD", lambda: glfw.get_clipboard_string(window))
            PRIMARY.read = lambda: read("PRIMARY", glfw.get_x11_selection_string)
            PRIMARY.write = glfw.set_x11_selection_string
        for name in ("key", "char", "mouse_button", "scroll", "window_size"):
            self._notice(window, name)
        glfw.set_framebuffer_size_callback(window, self.pixels_callback)
        glfw.set_window_iconify_callback(window, self.minimised_callback)
        glfw.set_window_refresh_callback(window, lambda _: self.touch())
        glfw.set_window_focus_callback(window, self.focus_callback)
        glfw.set_cursor_enter_callback(window, self.enter_callback)
        glfw.set_input_mode(window, glfw.LOCK_KEY_MODS, True)  # the keypad's keys depend on Num Lock
        imgui.get_io().backend_flags |= imgui.BackendFlags_.has_mouse_cursors
        shapes = {
            imgui.MouseCursor_.text_input: glfw.IBEAM_CURSOR, imgui.MouseCursor_.resize_ew: glfw.HRESIZE_CURSOR,
            imgui.MouseCursor_.resize_ns: glfw.VRESIZE_CURSOR, imgui.MouseCursor_.hand: glfw.HAND_CURSOR,
        }  # fmt: skip
        self._cursors = {int(shape): glfw.create_standard_cursor(kind) for shape, kind in shapes.items()}
        self._cursor = -1
        self._mods = 0
        """Modifiers as Dear ImGui was told, in GLFW's bits."""
        self._down: dict[int, imgui.Key] = {}
        """Keys that are held, by scancode: a layout that changes meanwhile must not leave one down."""
        self._pressed = False
        """A key was pressed since the last frame."""
        self._arrived = False
        """The pointer has moved since the last frame."""
        self._later: list[Callable[[], None]] = []
        """What waits for the end of the frame, in order."""

    def _create_device_objects(self) -> None:
        imgui.backends.opengl3_init(self._glsl)

    def process_inputs(self) -> None:
        imgui.backends.opengl3_new_frame()
        io, now = imgui.get_io(), glfw.get_time()
        io.display_size = imgui.ImVec2(*self.size)
        io.display_framebuffer_scale = imgui.ImVec2(*compute_fb_scale(self.size, self.pixels))
        io.delta_time = max(LEAST_S, now - self._drawn_at)
        self._drawn_at = now

    def resize_callback(self, _window: Any, width: int, height: int) -> None:
        self.size = (width, height)

    def pixels_callback(self, _window: Any, width: int, height: int) -> None:
        self.pixels = (width, height)
        self.touch()

    def minimised_callback(self, _window: Any, minimised: int) -> None:
        self.minimised = bool(minimised)
        self.touch()

    def render(self, draw_data: imgui.ImDrawData) -> None:
        imgui.backends.opengl3_render_draw_data(draw_data)

    def shutdown(self) -> None:
        imgui.backends.opengl3_shutdown()

    def focus_callback(self, _window: Any, focused: int) -> None:
        imgui.get_io().add_focus_event(bool(focused))  # which lets all keys go, where it is lost
        if not focused:
            self._mods = 0
            self._down.clear()
        self.touch()

    def touch(self) -> None:
        self.touched = True

    def mouse_callback(self, window: Any, x: float, y: float) -> None:
        """Pass on where the pointer is, also before the window has the focus: the click that gives it counts."""
        self.moved = True
        if self._later:
            self._later.append(lambda: self.mouse_callback(window, x, y))
            return
        self._arrived = True
        imgui.get_io().add_mouse_pos_event(x, y)

    def enter_callback(self, window: Any, entered: int) -> None:
        if entered or not imgui.is_any_mouse_down():  # what is dragged out of the window is still held
            x, y = glfw.get_cursor_pos(window) if entered else NOWHERE
            self.mouse_callback(window, x, y)

    def _notice(self, window: Any, name: str) -> None:
        """Make the callback of an input also note that there was one."""
        setter = getattr(glfw, f"set_{name}_callback")
        before = setter(window, None)

        def both(*arguments: Any) -> None:
            self.touched = True
            before(*arguments)

        setter(window, both)

    def keyboard_callback(self, window: Any, glfw_key: int, scancode: int, action: int, mods: int) -> None:
        """Pass a key on, with the modifiers that hold with it.

        A window manager may have swallowed a modifier's release (Alt+F4), so that each key's own `mods` count; of the
        modifier keys, whose `mods` are those before the event on X11, the action. Modifiers that change in the frame of
        a key's press wait for the next, since Dear ImGui knows one set of them for a frame: else a fast Ctrl+R is an R.
        """
        wanted = mods & sum(MODS)
        bit = MODIFIERS.get(glfw_key, 0)
        if bit:
            wanted = wanted & ~bit if action == glfw.RELEASE else wanted | bit
        if self._later or (self._pressed and wanted != self._mods):
            self._later.append(lambda: self.keyboard_callback(window, glfw_key, scancode, action, mods))
            return
        self._pressed = self._pressed or (action == glfw.PRESS and not bit)
        self._modify(wanted)
        if action == glfw.PRESS:
            key = self._key(glfw_key, scancode, mods)
            if key is not None:
                self._down[scancode] = key
                imgui.get_io().add_key_event(key, True)
        elif action == glfw.RELEASE and scancode in self._down:
            imgui.get_io().add_key_event(self._down.pop(scancode), False)

    def char_callback(self, window: Any, char: int) -> None:
        """Pass a character on, after the keys that were struck before it."""
        if self._later:
            self._later.append(lambda: self.char_callback(window, char))
        elif 0 < char < 0x110000:
            imgui.get_io().add_input_character(char)

    def mouse_button_callback(self, window: Any, button: int, action: int, mods: int) -> None:
        """Pass a button on. A press waits for the frame that shows the pointer where it has come to: Dear ImGui's tabs
        take none before.
        """
        if self._later or (self._arrived and action == glfw.PRESS):
            self._later.append(lambda: self.mouse_button_callback(window, button, action, mods))
            return
        self._modify(mods & sum(MODS))
        super().mouse_button_callback(window, button, action, mods)

    def next_frame(self) -> None:
        """Pass on what had to wait for the end of a frame, once Dear ImGui has seen what came before: it takes fast
        input in turns, over several frames.
        """
        if imgui.get_current_context().input_events_queue.size():
            return
        later, self._later = self._later, []
        self._pressed = self._arrived = False
        for event in later:
            self.touch()
            event()

    def _modify(self, mods: int) -> None:
        """Tell Dear ImGui of the modifiers that are others than before."""
        for bit, key in MODS.items():
            if (mods ^ self._mods) & bit:
                imgui.get_io().add_key_event(key, bool(mods & bit))
        self._mods = mods

    def _key(self, glfw_key: int, scancode: int, mods: int) -> imgui.Key | None:
        """Return Dear ImGui's key for one of GLFW's."""
        if glfw_key in WITHOUT_NUM_LOCK and not mods & glfw.MOD_NUM_LOCK:
            return WITHOUT_NUM_LOCK[glfw_key]
        if glfw_key in KEYPAD:
            return KEYPAD[glfw_key]
        name = as_text(glfw.get_key_name(glfw_key, scancode)).lower()
        known: dict[int, imgui.Key] = self.key_map
        return known.get(glfw_key) if name not in BY_NAME else BY_NAME[name]

    def show_cursor(self) -> None:
        shape = int(imgui.get_mouse_cursor())
        if shape != self._cursor:
            self._cursor = shape
            glfw.set_cursor(self.window, self._cursors.get(shape))  # type: ignore[arg-type]  # None is the arrow


def on_drop(window: Any, dropped: Callable[[tuple[str, ...]], None]) -> Callable[..., None]:
    """Have `dropped` called with the paths of files that are dropped on a window, for as long as what is returned is
    kept. pyGLFW's own callback takes names in UTF-8 alone, and any other ends the program.
    """

    def callback(_window: Any, count: int, paths: Any) -> None:
        dropped(tuple(os.fsdecode(paths[i]) for i in range(count)))

    kept: Callable[..., None] = glfw._GLFWdropfun(callback)  # type: ignore[attr-defined]
    glfw._glfw.glfwSetDropCallback(window, kept)  # type: ignore[attr-defined]
    return kept


def as_text(given: str | bytes | None) -> str:
    """Return a text of glfw, which gives bytes where its types say str."""
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else given or ""
