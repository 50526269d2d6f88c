#!/usr/bin/env python3
"""Makes the documents' pictures of the window, from the real program with a daemon of its own.

    xvfb-run -a -s "-screen 0 1400x900x24" python -m scripts.screenshots

Writes docs/images/page.png (four branches while they are written), docs/images/compare.png (two precisions) and
docs/images/light.png (the light theme, and the tree of what was written). Needs Pillow, which matplotlib brings.
The texts are those of a seed; the speeds are those of this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from scripts.daemon import ROOT, Daemon

TARGET = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=TARGET, metavar="FOLDER", help="default: %(default)s")
    args = parser.parse_args()
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        sys.exit('there is no display; xvfb-run -a -s "-screen 0 1400x900x24" makes one')
    from scripts.photographer import Photographer

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"XDG_CONFIG_HOME": f"{home}/config", "XDG_DATA_HOME": f"{home}/data"}
        with Daemon(Path(home), "--preload", "demo") as daemon:
            Photographer(daemon.endpoint, args.to).drive()


if __name__ == "__main__":
    main()
