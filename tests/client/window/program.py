"""The real program on a desktop of its own: Xvfb with the window manager openbox, keys and a mouse from xdotool.

The program prints what it is told by its user, each look that it takes at its state, and after each frame which keys
Dear ImGui sees pressed, so that a test waits for what it wants to see.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

CODE = """
import signal
import sys
from imgui_bundle import imgui
from client.window.events import Do, Tick
from client.window.loop import Window
import glfw

window = Window(sys.argv[1])
K, app = imgui.Key, window.app
tell = app.tell

def told(message):
    if isinstance(message, Do):
        print("do", message.what, flush=True)
    tell(message)

def watch(own, late, at):
    io, page = imgui.get_io(), imgui.internal.find_window_by_name("Page")
    mods = [name for name in ("ctrl", "shift", "alt", "super") if getattr(io, f"key_{name}")]
    for key in KEYS:
        if imgui.is_key_pressed(key, False):
            print("key", *mods, key.name.strip("_"), flush=True)
    if imgui.get_mouse_cursor() == imgui.MouseCursor_.resize_ew:
        print("on an edge", flush=True)
    if page and page.size.x > 100:  # it has been put into its place
        print("page", *map(round, (page.pos.x, page.pos.y, page.size.x, page.size.y)), flush=True)

KEYS = [key for key in K if int(K.left_arrow) <= int(key) < int(K.keypad0) and "ctrl" not in key.name and
        "shift" not in key.name and "alt" not in key.name and "super" not in key.name]
take = app.take_events

def take_events():
    print("look", "minimised" if glfw.get_window_attrib(window.window, glfw.ICONIFIED) else "", flush=True)
    return take()

app.tell, app.take_events = told, take_events
signal.signal(signal.SIGUSR1, lambda *_: glfw.set_window_should_close(window.window, True))
window.watch = watch
window.run()
window.close()
"""
START_S = 60.0


@contextmanager
def desktop() -> Iterator[str]:
    """A display with a window manager, in DISPLAY meanwhile."""
    if sys.platform != "linux" or not all(map(shutil.which, ("Xvfb", "openbox", "xdotool", "setxkbmap"))):
        pytest.skip("needs Xvfb, openbox and xdotool (Debian: apt-get install xvfb openbox xdotool)")
    with subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1500x1000x24", "-nolisten", "tcp", "-noreset"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout
        display = f":{server.stdout.readline().strip()}"
        environment = os.environ | {"DISPLAY": display}
        manager = subprocess.Popen(["openbox", "--sm-disable"], env=environment, stderr=subprocess.DEVNULL)
        try:
            yield display
        finally:
            for process in (manager, server):
                process.terminate()
                process.wait()


class Place(NamedTuple):
    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[str, str]:
        return str(self.x + self.width // 2), str(self.y + self.height // 2)


class Program:
    """The client's window in a process of its own."""

    def __init__(self, display: str, server: str = "tcp://127.0.0.1:1", **variables: str) -> None:
        self._environment = os.environ | {"DISPLAY": display} | variables
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, server],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.page = Place(0, 0, 0, 0)
        """Place and size of the page's panel."""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.expect("page", START_S)
        self.id = self.xdotool("search", "--sync", "--onlyvisible", "--pid", str(self.process.pid)).split()[-1]
        self.xdotool("windowactivate", "--sync", self.id)

    def xdotool(self, *words: str) -> str:
        done = subprocess.run(["xdotool", *words], env=self._environment, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def keys(self, *chords: str) -> None:
        """Strike chords, each in one go, which is faster than a frame."""
        for chord in chords:
            self.xdotool("key", chord)

    def expect(self, line: str, seconds: float = 30.0) -> list[str]:
        """Wait for a line that begins so; return the lines up to it. An assertion fails if it does not come."""
        seen, until = list[str](), time.monotonic() + seconds
        while not seen or not f"{seen[-1]} ".startswith(f"{line} "):
            try:
                seen.append(self._lines.get(timeout=max(0.01, until - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"no {line!r} in {seen}; {''.join(self._errors)}") from None
        return seen

    def close(self) -> None:
        """Close its window from outside, as a taskbar does, which xdotool cannot."""
        self.process.send_signal(signal.SIGUSR1)

    def insist(self, line: str, *words: str) -> None:
        """Do this again and again until a line comes: the window manager may still hold the keyboard, or move the
        window.
        """
        until = time.monotonic() + 60
        while True:
            self.xdotool(*words)
            with contextlib.suppress(AssertionError):
                self.expect(line, 1.0)
                return
            assert time.monotonic() < until, f"no {line!r}"

    def layout(self, name: str) -> None:
        """Give the keyboard another layout."""
        subprocess.run(["setxkbmap", name], env=self._environment, check=True, timeout=30)

    def ended(self) -> str:
        """Wait for its end; return what it said on stderr."""
        assert self.process.wait(60) == 0, "".join(self._errors)
        return self._done()

    def kill(self) -> str:
        self.process.kill()
        self.process.wait()
        return self._done()

    def _done(self) -> str:
        for reader in self._readers:
            reader.join(10)
        return "".join(self._errors)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            kind, *words = line.split()
            if kind == "page":
                self.page = Place(*map(int, words))
            self._lines.put(line.strip())

    def _read_errors(self) -> None:
        assert self.process.stderr
        self._errors += self.process.stderr


def kept(home: Path) -> Path:
    """Return the file of preferences."""
    return home / "config" / "gpt2d" / "client.json"
