"""Fonts of the window: those that are shipped look the same everywhere, and the system's complete them.

A file that is not a whole font ends a program: Dear ImGui asserts. So each one is read first, and whatever cannot be
used is left out, and its user is told; also a fallback that nobody has chosen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from imgui_bundle import imgui

from client.window import theme
from client.window.preferences import Preferences

SHIPPED = Path(__file__).parent / "assets" / "fonts"
SANS, BOLD = str(SHIPPED / "Inter-Regular.ttf"), str(SHIPPED / "Inter-SemiBold.ttf")
SERIF, ICONS = str(SHIPPED / "SourceSerif4-Regular.ttf"), str(SHIPPED / "Lucide.ttf")
BOLD_NAME = Path(BOLD).name
BUILT_IN = {"": "Built-in", "sans": "Built-in sans", "serif": "Built-in serif"}
"""What a preference says instead of a path -> its name. The empty one is sans in the panels, serif on the page."""
FALLBACKS = (
    "DejaVuSans",
    "DroidSansFallbackFull",
    "NotoSansCJK-Regular",
    "Symbola_hint",
    "Symbola",
    "NotoEmoji-Regular",
    "seguiemj",
    "msyh",
    "Arial Unicode",
)
"""Fonts from which glyphs are taken that the chosen one does not have, as far as they are installed."""
MIN_BYTES, MAX_BYTES = 200, 64 << 20
TABLES = {b"cmap", b"head", b"hhea", b"hmtx", b"maxp"}
OUTLINES = ({b"glyf", b"loca"}, {b"CFF "}, {b"CFF2"})


@dataclass
class Fonts:
    """The fonts that are loaded."""

    panel: imgui.ImFont
    bold: imgui.ImFont
    page: imgui.ImFont
    troubles: list[str] = field(default_factory=list)
    """Sentences about files that cannot be used."""


def load(preferences: Preferences, fonts: list[tuple[str, str]], before: Fonts | None) -> Fonts:
    """Load the fonts that the preferences name to replace those before. `fonts`: (name, path) of the system's."""
    known, troubles = dict(fonts), list[str]()
    fallbacks = [known[name] for name in FALLBACKS if name in known]
    panel = {"": SANS, "sans": SANS, "serif": SERIF}.get(preferences.font, preferences.font)
    page = {"": SERIF, "sans": SANS, "serif": SERIF}.get(preferences.page_font, preferences.page_font)
    usable = []
    for path in dict.fromkeys(fallbacks):
        if why := trouble(path):
            troubles.append(f"the font {path} {why}; it is left out")
        else:
            usable.append(path)
    old = [before.panel, before.bold, before.page] if before else []
    loaded = Fonts(
        _load(panel, SANS, usable, troubles),
        # A chosen font comes in one weight.
        _load(BOLD if panel == SANS else panel, BOLD, usable, []),
        _load(page, SERIF, usable, troubles),
        troubles,
    )
    imgui.get_io().font_default = loaded.panel
    for font in old:
        imgui.get_io().fonts.remove_font(font)
    return loaded


def set_style(preferences: Preferences, screen: float) -> None:
    """Set theme, scale and size. `screen`: the screen's own scale."""
    theme.apply(preferences.theme, preferences.scale * screen, preferences.font_size)


def bold() -> imgui.ImFont | None:
    """Return the font of headings; None, which is the present one, where it is not loaded."""
    return next((font for font in imgui.get_io().fonts.fonts if font.get_debug_name() == BOLD_NAME), None)


def trouble(path: str) -> str:
    """Return why a file cannot be used as a font, as the end of a sentence; empty: it can."""
    try:
        file = Path(path)
        if not file.is_file():  # a pipe would wait for ever
            return "is not there"
        size = file.stat().st_size
        if size > MAX_BYTES:
            return f"is larger than {MAX_BYTES >> 20} MB"
        if size < MIN_BYTES:
            return "is empty" if not size else "is not a font"
        with file.open("rb") as stream:
            head = stream.read(16)
            if head[:4] == b"ttcf":
                stream.seek(struct.unpack(">I", head[12:16])[0])
                head = stream.read(16)
            else:
                stream.seek(16)
            if head[:4] not in {b"\0\1\0\0", b"OTTO", b"true"}:
                return "is not a font"
            count = struct.unpack(">H", head[4:6])[0]
            stream.seek(-4, 1)
            directory = stream.read(16 * count)
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    except struct.error:
        return "is not whole"
    tables = [struct.unpack(">4s4xII", directory[i : i + 16]) for i in range(0, len(directory) - 15, 16)]
    if len(tables) < count or any(offset + length > size for _, offset, length in tables):
        return "is not whole"
    names = {name for name, _, length in tables if length}
    if not any(names >= outlines for outlines in OUTLINES):
        return "has no outlines, colour pictures alone, which cannot be shown"
    missing = TABLES - names
    return f"lacks its table {min(missing).decode()}" if missing else ""


def _load(path: str, own: str, fallbacks: list[str], troubles: list[str]) -> imgui.ImFont:
    """Load a font, or `own` where it cannot be used, with all that it is completed by."""
    why = "" if path in {SANS, BOLD, SERIF} else trouble(path)
    font = None if why else _add(path)
    if font is None:
        troubles.append(f"the font {path} {why or 'cannot be used'}; the built-in one is shown instead")
        path, font = own, _add(own)
    if font is None:
        raise RuntimeError(f"{own} cannot be loaded: install gpt2d again")
    completing = [more for more in dict.fromkeys([ICONS, SANS, *fallbacks]) if more != path]
    left_out = [more for more in completing if _add(more, merge=True) is None]
    troubles += [f"the font {more} cannot be used; it is left out" for more in left_out]
    return font


def _add(path: str, *, merge: bool = False) -> imgui.ImFont | None:
    """Add a font's file to the atlas; return None if Dear ImGui does not take it."""
    how = imgui.ImFontConfig()
    how.merge_mode = merge
    try:
        font: imgui.ImFont | None = imgui.get_io().fonts.add_font_from_file_ttf(path, 0.0, how)
    except RuntimeError:
        return None
    return font
