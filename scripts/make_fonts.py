"""Makes the fonts that the window ships, from three packages of npm. Needs fontTools (`pip install fonttools`) and:

    npm pack @expo-google-fonts/inter@0.4.2 @expo-google-fonts/source-serif-4@0.4.1 lucide-static@1.62.0
    for file in *.tgz; do mkdir "${file%.tgz}"; tar xzf "$file" -C "${file%.tgz}"; done
    python -m scripts.make_fonts FOLDER_OF_THE_THREE

Source Serif stays as it is: its name is reserved for the unchanged font. Of Inter what the window cannot use is left
out (kerning and ligatures, private characters), and its digits become as wide as each other; of Lucide's icons those
remain that the window draws.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

from client.window.icons import ICONS

TARGET = Path(__file__).parent.parent / "client" / "window" / "assets" / "fonts"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FONTS = {
    "Inter-Regular.ttf": "expo-google-fonts-inter-*/package/400Regular/Inter_400Regular.ttf",
    "Inter-SemiBold.ttf": "expo-google-fonts-inter-*/package/600SemiBold/Inter_600SemiBold.ttf",
    "SourceSerif4-Regular.ttf": "expo-google-fonts-source-serif-4-*/package/400Regular/SourceSerif4_400Regular.ttf",
    "Lucide.ttf": "lucide-static-*/package/font/lucide.ttf",
}
LOWER = 0.14
"""By how much icons are lowered, in their size."""
UNCHANGED = {"SourceSerif4-Regular.ttf"}
LICENCES = {
    "Inter-LICENSE.txt": "expo-google-fonts-inter-*/package/LICENSE_FONT",
    "SourceSerif4-LICENSE.txt": "expo-google-fonts-source-serif-4-*/package/LICENSE_FONT",
    "Lucide-LICENSE.txt": "lucide-static-*/package/LICENSE",
}


def make(source: Path, target: Path) -> None:
    """Write one font without what the window cannot use."""
    font = TTFont(source, recalcTimestamp=False)  # the same packages make the same files
    if target.name.startswith("Inter"):
        for table in font["cmap"].tables:
            for digit in DIGITS:
                table.cmap[ord("0") + DIGITS.index(digit)] = f"{digit}.tf"
    known = font.getBestCmap()
    if target.name == "Lucide.ttf":
        wanted = {ord(icon) for icon in ICONS.values()}
        missing = wanted - set(known)
        if missing:
            raise SystemExit(f"{source} lacks {sorted(map(hex, missing))}")
        for glyph in font["glyf"].glyphs.values():  # the icons' middle comes to that of capital letters
            glyph.expand(font["glyf"])
            if glyph.numberOfContours > 0:
                glyph.coordinates.translate((0, -LOWER * font["head"].unitsPerEm))
                glyph.recalcBounds(font["glyf"])
    else:
        wanted = {code for code in known if not 0xE000 <= code <= 0xF8FF}
    options = Options()
    options.layout_features = []
    options.drop_tables += ["GDEF", "GPOS", "GSUB", "STAT"]
    options.name_IDs = [0, 1, 2, 4, 5, 6, 13, 14]
    options.notdef_outline = True
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    font.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER_OF_THE_THREE")
    folder = parser.parse_args().folder
    TARGET.mkdir(parents=True, exist_ok=True)
    for files in (FONTS, LICENCES):
        for name, pattern in files.items():
            found = sorted(folder.glob(pattern))
            if not found:
                raise SystemExit(f"{folder} has no {pattern}")
            if files is FONTS and name not in UNCHANGED:
                make(found[0], TARGET / name)
            else:
                shutil.copyfile(found[0], TARGET / name)
            print(f"{name}: {(TARGET / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
