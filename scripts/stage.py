"""What scripts that open the window share: a display, none of its user's preferences, and a daemon with `demo`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocol import Client
from scripts.daemon import Daemon


@contextlib.contextmanager
def own_home(screen: str) -> Iterator[Path]:
    """Have what the window keeps go into a folder of its own, and yield that.

    `screen` is how large a display has to be, as Xvfb takes it. Raises: SystemExit, which says how to make a display
    where one is missing.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        sys.exit(f'this needs a display; xvfb-run -a -s "-screen 0 {screen}" makes one')
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_CONFIG_HOME": f"{home}/config", "XDG_DATA_HOME": f"{home}/data"}
        yield Path(home)


@contextlib.contextmanager
def stage(screen: str) -> Iterator[str]:
    """Have a daemon hold `demo` for a window in a home of its own, and yield its endpoint. Raises: as `own_home`."""
    with own_home(screen) as home, Daemon(home, "--preload", "demo") as daemon:
        with Client(daemon.endpoint) as client:
            client.load("demo")  # before the first picture
        yield daemon.endpoint
