"""What the tests of the investigation's scripts share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
VERSE = "So shines a good deed in a naughty world\nAnd so the candle went before the moon\n"


def script(name: str) -> ModuleType:
    """A script as a module; scripts import each other by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


def cache_with_text(folder: Path) -> Path:
    """A cache of its own, which has text to measure with already."""
    (folder / "gpt2d" / "graphs").mkdir(parents=True)
    (folder / "gpt2d" / "graphs" / "held-out.txt").write_text(VERSE * 200)
    return folder
