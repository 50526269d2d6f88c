"""The program itself, in a window of its own under Xvfb, with keys that xdotool presses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import WINDOW, wait_for

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

import imgui_bundle  # noqa: F401 - before glfw, as everywhere

# isort: split
import glfw

from protocol import Client
from scripts.daemon import Daemon


def test_a_person_writes_and_quits(screen: str, home: Path, shared_daemon: Daemon, client: Client) -> None:
    if not shutil.which("xdotool"):
        pytest.skip("needs xdotool (Debian: apt-get install xdotool)")
    code = f"from client.window import loop as window; window.main({shared_daemon.endpoint!r})"
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=os.environ | {"DISPLAY": screen}, stderr=subprocess.PIPE, text=True
    )

    def xdotool(*words: str) -> str:
        return subprocess.run(["xdotool", *words], capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        wait_for(lambda: program.poll() is not None or xdotool("search", "--name", "gpt2d") != "")
        assert program.poll() is None, "it did not start"
        window = xdotool("search", "--name", "gpt2d").split()[-1]
        before = client.stats().requests.get("generate", 0)
        kept = home / "config" / "gpt2d" / "client.json"
        wait_for(kept.exists)  # it has met the server and drawn its panels
        xdotool("windowfocus", window)

        def writes() -> bool:
            """It has drawn its panels, and the page takes keys."""
            xdotool("mousemove", "--window", window, "600", "300", "click", "1")
            time.sleep(0.3)
            xdotool("type", ". ")
            time.sleep(0.3)
            return "*" in xdotool("getwindowname", window)

        wait_for(writes)
        xdotool("type", "--delay", "30", "Shall I compare thee")

        def asked() -> bool:
            xdotool("key", "ctrl+Return")  # faster than a frame
            time.sleep(0.2)
            return client.stats().requests.get("generate", 0) > before

        wait_for(asked)
        folder = home / "data" / "gpt2d" / "autosave"
        wait_for(lambda: any("compare thee" in file.read_text("utf-8") for file in folder.glob("*.json")))
        assert program.poll() is None
        assert json.loads(kept.read_text(encoding="utf-8"))["server"] == shared_daemon.endpoint
    finally:
        program.kill()
        _, errors = program.communicate()
        print(errors)  # shown where something fails
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_end_of_a_session_or_of_a_terminal_ends_it_in_order(screen: str, home: Path, name: str) -> None:
    code = "from client.window import loop as window; window.main('tcp://127.0.0.1:1')"
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=os.environ | {"DISPLAY": screen}, stderr=subprocess.PIPE, text=True
    )
    kept = home / "config" / "gpt2d" / "client.json"
    wait_for(kept.exists, 30)
    program.send_signal(getattr(signal, name))
    _, errors = program.communicate(timeout=20)
    assert program.returncode == 128 + getattr(signal, name) and "Traceback" not in errors, errors
    assert json.loads(kept.read_text(encoding="utf-8"))["x"] is not None, "its place is kept"


@pytest.mark.skipif(sys.platform != "linux", reason="Wayland is Linux's")
@pytest.mark.parametrize("session", ["x11", "wayland"])
def test_one_glfw_serves_both_libraries(session: str) -> None:
    """pyGLFW has a library of its own for Wayland, which imgui_bundle's binary cannot be loaded beside."""
    code = (
        "import client.window.loop\nprint(*{line.split()[-1] for line in open('/proc/self/maps') if 'libglfw' in line})"
    )
    environment = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "PYGLFW_LIBRARY_VARIANT"}}
    environment |= {"XDG_SESSION_TYPE": session, "WAYLAND_DISPLAY": "wayland-0"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {"WAYLAND_DISPLAY": "wayland-0"},
        {"PYOPENGL_PLATFORM": "egl"},
        {"PYOPENGL_PLATFORM": "osmesa", "PYOPENGL_ERROR_ON_COPY": "1"},
        {"MESA_GL_VERSION_OVERRIDE": "3.1", "MESA_GLSL_VERSION_OVERRIDE": "140"},
        {"PYGLFW_LIBRARY": str(Path(glfw.__file__).parent / "wayland" / "libglfw.so")},
    ],
    ids=[
        "as under WSL",
        "egl in a profile",
        "osmesa and no copies in a profile",
        "OpenGL 3.1",
        "another GLFW in a profile",
    ],
)
@pytest.mark.usefixtures("home")
def test_it_draws_whatever_the_surroundings_say(screen: str, variables: dict[str, str]) -> None:
    """A variable that is there for other programs takes nothing from this one."""
    code = """
import sys
from client.window.loop import Window
from OpenGL import GL
from client.window.views import widgets
import glfw
window = Window("tcp://127.0.0.1:1")
drawn = set()
def at(x, y):
    return bytes(GL.glReadPixels(x, window.backend.pixels[1] - 1 - y, 1, 1, GL.GL_RGB, GL.GL_UNSIGNED_BYTE))
def swap(_window):
    if paper := window.app.state.page.view.paper:
        left, top, right, bottom = map(round, paper)
        page = widgets.color("page")
        inside = {at(left, top), at(right - 1, top), at(left, bottom - 1), at(right - 1, bottom - 1)}
        assert inside == {bytes(round(255 * share) for share in (page.x, page.y, page.z))}, inside
        assert not inside & {at(left - 1, top), at(right, top), at(left, top - 1), at(left, bottom)}
        drawn.add("paper")
    pixels = GL.glReadPixels(0, 0, 1000, 800, GL.GL_RGB, GL.GL_UNSIGNED_BYTE)
    drawn.update(pixels[i:i + 3] for i in range(0, len(pixels), 3))
glfw.swap_buffers = swap
for _ in range(3):
    window.frame()
assert "paper" in drawn
print(GL.glGetString(GL.GL_VERSION).decode(), len(drawn), sep=", ", file=sys.stderr)
window.close()
print(*{line.split()[-1] for line in open("/proc/self/maps") if "libglfw" in line})
"""
    environment = {k: v for k, v in os.environ.items() if k not in {"WAYLAND_DISPLAY", "XDG_SESSION_TYPE"}}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment | {"DISPLAY": screen} | variables
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout
    version, colours = done.stderr.splitlines()[-1].split(", ")
    assert version.startswith(variables.get("MESA_GL_VERSION_OVERRIDE", "")) and int(colours) > 30, "text is drawn"


LAYERS = """
import numpy as np
import glfw
from imgui_bundle import imgui
from client.window.loop import Window

def layers():
    for _ in range(4):
        window.frame()
    area = 0.0
    for drawn in imgui.get_draw_data().cmd_lists:
        corner, index = drawn.vtx_buffer, drawn.idx_buffer
        points = np.array([(corner[i].pos.x, corner[i].pos.y) for i in range(corner.size())])
        corners = np.array([index[i] for i in range(index.size())])
        for command in drawn.cmd_buffer:
            some = corners[command.idx_offset : command.idx_offset + command.elem_count] + command.vtx_offset
            left, top, right, bottom = command.clip_rect
            triangles = np.clip(points[some], (left, top), (right, bottom)).reshape(-1, 3, 2)
            one, other = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
            area += np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]).sum() / 2
    width, height = glfw.get_window_size(window.window)
    return area / width / height

window = Window("tcp://127.0.0.1:1")
docked, begin = layers(), imgui.begin

def undock(name, *arguments):
    if name == "Page":
        imgui.set_next_window_dock_id(0)
    return begin(name, *arguments)

imgui.begin = undock
print(docked, layers())
window.close()
"""


@pytest.mark.usefixtures("home")
def test_hardly_a_pixel_is_filled_twice(screen: str) -> None:
    """What is docked lies on the colour to which the frame is cleared; what floats has a background of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LAYERS],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"DISPLAY": screen, "GALLIUM_NOOP": "1"},
    )
    assert done.returncode == 0, done.stderr
    docked, floating = map(float, done.stdout.split())
    assert docked < 0.3, "the page, too"
    assert floating > docked + 0.2
