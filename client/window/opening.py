"""Makes the window: with the OpenGL that there is, a name and an icon, and in its place from last time."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import imgui_bundle  # noqa: F401 - before glfw: it points pyGLFW at its own GLFW, so that one library serves both

# isort: split
import glfw

from client.window import icon
from client.window.preferences import Preferences

NAME = "gpt2d"
OPENGL = ((3, glfw.OPENGL_CORE_PROFILE, "#version 330"), (1, glfw.OPENGL_ANY_PROFILE, "#version 140"))
"""The versions 3.x that are tried: minor, profile (there are none below 3.2), first line of the shaders."""
ICON_SIZES = (16, 32, 48, 64)
ICONS = {"linux", "win32"}
"""Where windows have icons: on a Mac programs have them."""
SMALLEST = (640, 480)
GRIP = 40
"""Pixels of a window's top that must be on a screen, for a hand to move it."""


class Area(NamedTuple):
    """A rectangle in pixels: of a window's content, or of a screen without its bars."""

    x: int
    y: int
    width: int
    height: int


def open_window(preferences: Preferences) -> tuple[Any, str]:
    """Return a window, or None, and the first line of shaders for its OpenGL: 3.3, or where that is refused 3.1, which
    is what a Raspberry Pi and many remote desktops have.
    """
    for hint in (glfw.DEPTH_BITS, glfw.STENCIL_BITS):
        glfw.window_hint(hint, 0)  # nothing here has depth, and what is not there is not stored with each frame
    for hint in (glfw.X11_CLASS_NAME, glfw.X11_INSTANCE_NAME, glfw.WAYLAND_APP_ID):
        glfw.window_hint_string(hint, NAME)  # by which a desktop finds the launcher that belongs to the window
    glfw.window_hint(glfw.OPENGL_FORWARD_COMPAT, sys.platform == "darwin")
    screens = [Area(*glfw.get_monitor_workarea(monitor)) for monitor in glfw.get_monitors()]
    area = Area(preferences.x or 0, preferences.y or 0, preferences.width, preferences.height)
    if preferences.x is None:
        area = first(area, scale(), screens)
    elif on_screen(area, screens):
        glfw.window_hint(glfw.POSITION_X, area.x)
        glfw.window_hint(glfw.POSITION_Y, area.y)
    glfw.window_hint(glfw.MAXIMIZED, preferences.maximised)
    for minor, profile, glsl in OPENGL:
        glfw.window_hint(glfw.CONTEXT_VERSION_MAJOR, 3)
        glfw.window_hint(glfw.CONTEXT_VERSION_MINOR, minor)
        glfw.window_hint(glfw.OPENGL_PROFILE, profile)
        window = glfw.create_window(area.width, area.height, NAME, None, None)
        if window:
            glfw.set_window_size_limits(window, *SMALLEST, glfw.DONT_CARE, glfw.DONT_CARE)
            if sys.platform in ICONS:
                icons = [icon.read(size) for size in ICON_SIZES]
                glfw.set_window_icon(window, len(icons), icons)  # type: ignore[arg-type]  # it takes Pillow's images
            return window, glsl
    return None, ""


def scale() -> float:
    """Return how many pixels one of the usual size is, where a window's size is counted in pixels."""
    monitor = glfw.get_primary_monitor()
    return float(glfw.get_monitor_content_scale(monitor)[0]) if monitor and sys.platform != "darwin" else 1.0


def first(wanted: Area, scale: float, screens: list[Area]) -> Area:
    """Return the size of a first window: larger by the screen's scale, and no larger than the first screen with a title
    above it.
    """
    room = screens[0] if screens else wanted
    width, height = int(wanted.width * scale), int(wanted.height * scale)
    width, height = min(width, room.width), min(height, room.height - int(GRIP * scale))
    return wanted._replace(width=max(SMALLEST[0], width), height=max(SMALLEST[1], height))


def on_screen(window: Area, screens: list[Area]) -> bool:
    """True if the middle of the window's top can be seen and taken."""
    middle = window.x + window.width // 2
    return any(s.x <= middle < s.x + s.width and s.y <= window.y <= s.y + s.height - GRIP for s in screens)


def keep_place(window: Any, preferences: Preferences) -> None:
    """Note where the window is, for the next start; of a maximised one, where it was before."""
    if glfw.get_window_attrib(window, glfw.ICONIFIED):
        return
    preferences.maximised = bool(glfw.get_window_attrib(window, glfw.MAXIMIZED))
    if not preferences.maximised:
        preferences.width, preferences.height = map(int, glfw.get_window_size(window))
        preferences.x, preferences.y = map(int, glfw.get_window_pos(window))
