#!/usr/bin/env python3
"""Makes the README's film of the window, from the real program with a daemon of its own.

    xvfb-run -a -s "-screen 0 1120x760x24" python -m scripts.film

Writes docs/images/film.gif: a beginning is typed, the model goes on, four branches are written and one is taken, a word
shows what else was likely and is replaced. While the model writes, the film is slower than the program, whose texts are
there before anybody sees them come. Run it on a quiet machine: the speeds in it are real. Needs Pillow, which
matplotlib brings.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from protocol import Client
from scripts.daemon import ROOT, Daemon

TARGET = ROOT / "docs" / "images" / "film.gif"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FILE", help="default: %(default)s")
    args = parser.parse_args()
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        sys.exit('there is no display; xvfb-run -a -s "-screen 0 1120x760x24" makes one')
    from scripts.camera import Camera

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_CONFIG_HOME": f"{home}/config", "XDG_DATA_HOME": f"{home}/data"}
        with Daemon(Path(home), "--preload", "demo") as daemon:
            with Client(daemon.endpoint) as client:
                client.load("demo")  # before the film begins
            camera = Camera(daemon.endpoint)
            camera.drive()
    camera.save(args.to)


if __name__ == "__main__":
    main()
