#!/usr/bin/env python3
"""Makes the documents' pictures of the window, from the real program with a daemon of its own.

    xvfb-run -a -s "-screen 0 1400x900x24" python -m scripts.screenshots

Writes docs/images/page.png (four branches while they are written), docs/images/compare.png (two precisions) and
docs/images/light.png (the light theme, and the tree of what was written). The texts are those of a seed; the speeds are
those of this machine. Needs Pillow, which requirements-report.txt brings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.daemon import ROOT
from scripts.stage import stage

TARGET = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FOLDER", help="default: %(default)s")
    args = parser.parse_args()
    with stage("1400x900x24") as endpoint:
        from scripts.photographer import Photographer  # the window's libraries need the display

        Photographer(endpoint, args.to).drive()


if __name__ == "__main__":
    main()
