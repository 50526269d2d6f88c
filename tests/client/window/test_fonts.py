"""Fonts: what is shipped, and files that are none, which end no program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import fonts, icons

SANS = Path(fonts.SANS).read_bytes()
DIRECTORY = 12
"""Bytes before a font's table directory, whose entries have 16 bytes each."""


def without(*tables: bytes) -> bytes:
    """Return the shipped font with other names for some of its tables, as one has that is made of pictures."""
    font = bytearray(SANS)
    for at in range(DIRECTORY, DIRECTORY + 16 * int.from_bytes(font[4:6]), 16):
        if font[at : at + 4] in tables:
            font[at : at + 4] = b"CBDT"
    return bytes(font)


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"This is a text, and not a font at all. " * 20, "is not a font"),
    "a few bytes": (SANS[:50], "is not a font"),
    "truncated": (SANS[: len(SANS) // 2], "is not whole"),
    "truncated in its directory": (SANS[:210], "is not whole"),
    "pictures alone": (without(b"glyf", b"loca"), "has no outlines, colour pictures alone, which cannot be shown"),
    "no characters": (without(b"cmap"), "lacks its table cmap"),
    "a collection of nothing": (b"ttcf\0\1\0\0\0\0\0\1\xff\xff\xff\xff" + b"\0" * 300, "is not a font"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_font_is_known_by_its_tables(kind: str, tmp_path: Path) -> None:
    content, why = BROKEN[kind]
    file = tmp_path / "font.ttf"
    file.write_bytes(content)
    assert fonts.trouble(str(file)) == why


def test_other_things_than_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ttf")
    assert [fonts.trouble(str(tmp_path / name)) for name in ("pipe.ttf", "nothing.ttf", ".")] == ["is not there"] * 3
    collection = b"ttcf\0\1\0\0\0\0\0\1" + (16).to_bytes(4)
    shifted = bytearray(SANS)
    for at in range(DIRECTORY, DIRECTORY + 16 * int.from_bytes(SANS[4:6]), 16):
        shifted[at + 8 : at + 12] = (int.from_bytes(SANS[at + 8 : at + 12]) + 16).to_bytes(4)
    (tmp_path / "whole.ttc").write_bytes(collection + shifted)
    assert fonts.trouble(str(tmp_path / "whole.ttc")) == ""


def test_the_shipped_fonts_are_whole_and_small() -> None:
    shipped = [fonts.SANS, fonts.BOLD, fonts.SERIF, fonts.ICONS]
    assert [fonts.trouble(path) for path in shipped] == [""] * 4
    assert sum(Path(path).stat().st_size for path in shipped) < 2 << 20
    licences = {path.name for path in fonts.SHIPPED.glob("*-LICENSE.txt")}
    assert licences == {"Inter-LICENSE.txt", "SourceSerif4-LICENSE.txt", "Lucide-LICENSE.txt"}


PROGRAM = """
import time
from client.window.loop import Window
from client.window.icons import ICONS
from client.window import fonts
from imgui_bundle import imgui
window = Window("tcp://127.0.0.1:1")
told = ""
give_up = time.monotonic() + 30
while "DejaVuSans" not in told and time.monotonic() < give_up:
    window.app.take_events()
    window.frame()
    told += "".join(notice.text for notice in window.app.state.notices)
    time.sleep(0.01)
print(told)
panel = imgui.get_io().font_default
print([name for name, icon in ICONS.items() if not panel.is_glyph_in_font(ord(icon))], panel.get_debug_name())
window.frame()
window.close()
"""


def test_broken_fonts_end_nothing_chosen_or_not(screen: str, home: Path) -> None:
    """The window starts with the built-in ones, says which files it leaves out, and has its icons."""
    installed = home / ".fonts"
    installed.mkdir()
    for (content, _), name in zip(BROKEN.values(), fonts.FALLBACKS, strict=False):
        (installed / f"{name}.ttf").write_bytes(content)
    (home / "page.ttf").write_bytes(SANS[:30_000])
    kept = home / "config" / "gpt2d" / "client.json"
    kept.parent.mkdir(parents=True)
    chosen = {"font": str(installed / "DroidSansFallbackFull.ttf"), "page_font": str(home / "page.ttf")}
    kept.write_text(json.dumps(chosen))
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"DISPLAY": screen, "HOME": str(home)},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    told, panel = done.stdout.splitlines()[-2:]
    assert panel == f"[] {Path(fonts.SANS).name}"
    assert f"the font {chosen['font']} is not a font; the built-in one is shown instead" in told
    assert f"the font {chosen['page_font']} is not whole; the built-in one is shown instead" in told
    for (_, why), name in zip(BROKEN.values(), fonts.FALLBACKS, strict=False):
        assert f"the font {installed / name}.ttf {why}; it is left out" in told


def test_a_labelled_button_keeps_its_identity() -> None:
    assert icons.labelled("x", "Close") == f"{icons.ICONS['x']}  Close###Close"
    assert icons.labelled("x", "Close###Panel") == f"{icons.ICONS['x']}  Close###Panel"
