"""What the makers of pictures share: a display, a window without its user's preferences, a daemon with `demo`."""

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
def stage(screen: str) -> Iterator[str]:
    """Have a daemon hold `demo`, and yield its endpoint.

    Until the end, what the window keeps goes into a folder of its own. `screen` is how large a display has to be, as
    Xvfb takes it. Raises: SystemExit, which says how to make one, where there is no display.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        sys.exit(f'there is no display; xvfb-run -a -s "-screen 0 {screen}" makes one')
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_CONFIG_HOME": f"{home}/config", "XDG_DATA_HOME": f"{home}/data"}
        with Daemon(Path(home), "--preload", "demo") as daemon:
            with Client(daemon.endpoint) as client:
                client.load("demo")  # before the first picture
            yield daemon.endpoint
