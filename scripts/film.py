#!/usr/bin/env python3
"""Makes the README's film of the window, from the real program with a daemon of its own.

    xvfb-run -a -s "-screen 0 1120x760x24" python -m scripts.film

Writes docs/images/film.gif: a beginning is typed, the model goes on, four branches are written and one is taken, a word
shows what else was likely and is replaced. While the model writes, the film is slower than the program, whose texts are
there before anybody sees them come. Run it on a quiet machine: the speeds in it are real. Needs Pillow, which
requirements-report.txt brings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.daemon import ROOT
from scripts.stage import stage

TARGET = ROOT / "docs" / "images" / "film.gif"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FILE", help="default: %(default)s")
    args = parser.parse_args()
    with stage("1120x760x24") as endpoint:
        from scripts.camera import Camera  # the window's libraries need the display

        camera = Camera(endpoint)
        camera.drive()
    camera.save(args.to)


if __name__ == "__main__":
    main()
