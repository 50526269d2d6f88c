"""A text file as it is on the disk, beside the text that a page shows of it: what the page does not show, a byte order
mark, line ends of other kinds and control characters, stays in the lines that nobody changed.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from client.window.document import HIDDEN, clean

MAX_FILE_BYTES = 4 << 20
"""Most bytes of a file that is opened, and of a text that a paste or *Replace all* makes."""
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
ENDS = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}


@dataclass(frozen=True)
class TextFile:
    """The content of a file. Raises: UnicodeDecodeError."""

    data: bytes = b""
    text: str = field(init=False)
    """What a page shows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean(self._raw))

    @cached_property
    def _raw(self) -> str:
        return self.data.decode("utf-8-sig")

    @cached_property
    def _ends(self) -> Counter[str]:
        return Counter(re.findall(r"\r\n|\r|\n", self._raw))

    @property
    def newline(self) -> str:
        """The line end that most of its lines have."""
        return next((end for end, _ in self._ends.most_common(1)), "\n")

    @property
    def keeps(self) -> str:
        """What its lines have that the page does not show; empty for a plain text file."""
        hidden = len(HIDDEN.findall(self._raw.replace("\r", "")))
        found = [f"{hidden} control character{'s' * (hidden != 1)}"] if hidden else []
        if len(self._ends) > 1:
            found.append(f"line ends of several kinds ({', '.join(ENDS[end] for end in ENDS if self._ends[end])})")
        return " and ".join(found)

    def most_bytes(self, size: int, lines: int) -> int:
        """Return the most bytes that the file has with another text, of `size` bytes and `lines` line ends."""
        beside = len(self.data) - len(self.text.encode()) - self._ends["\r\n"]
        return size + beside + lines * ("\r\n" in self._ends)

    def with_text(self, text: str) -> TextFile:
        """Return the file with another text: lines at its beginning and end that are as before keep their bytes."""
        if text == self.text:
            return self
        # Without one, a first character that is the mark's own would be taken for it.
        bom = codecs.BOM_UTF8 if self.data.startswith(codecs.BOM_UTF8) or text.startswith("\ufeff") else b""
        if self._raw == self.text:  # most files, and a large one would take half a second by its lines
            return TextFile(bom + text.encode())
        raw = _lines(self._raw)
        rest = raw.pop() if raw and not clean(raw[-1]) else ""
        before, after = [clean(line) for line in raw], _lines(text)
        start = _alike(before, after)
        end = _alike(before[start:][::-1], after[start:][::-1])
        changed = "".join(after[start : len(after) - end]).replace("\n", self.newline)
        kept = "".join(raw[:start]) + changed + "".join(raw[len(raw) - end :]) + rest
        new = TextFile(bom + kept.encode())
        # A CR that was kept and an LF that follows it now would be one line end.
        return new if new.text == text else TextFile(bom + text.replace("\n", self.newline).encode())


def _lines(text: str) -> list[str]:
    return [line for line in LINE.findall(text) if line]


def _alike(these: list[str], those: list[str]) -> int:
    """Return how many items at the start are the same."""
    pairs = zip(these, those, strict=False)
    return next((i for i, (this, that) in enumerate(pairs) if this != that), min(len(these), len(those)))


def is_text(name: str) -> bool:
    """Return False for a file's name in another encoding, which the window can neither show nor keep."""
    try:
        name.encode()  # labels of any length ask in every frame: a loop over their characters takes long
    except UnicodeEncodeError:
        return False
    return True


def told(name: str) -> str:
    """Return a file's name as the window can show it."""
    return name if is_text(name) else name.encode("utf-8", "replace").decode()
