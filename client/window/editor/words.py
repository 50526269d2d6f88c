"""How many words a text has, counted again only around what has changed."""

from __future__ import annotations

import regex

from client.window.editor.layout import difference

SPACE = regex.compile(r"\s")
SPACE_BEFORE = regex.compile(r"(?r)\s")


class Words:
    def __init__(self) -> None:
        self._text, self._count = "", 0

    def count(self, text: str) -> int:
        """Return what len(text.split()) is."""
        if text is not self._text and text != self._text:
            old, differs = self._text, difference(self._text, text)
            before = SPACE_BEFORE.search(text, 0, differs.start)
            start = int(before.start()) if before else 0
            after = SPACE.search(text, differs.new_end)
            more = (int(after.start()) if after else len(text)) - differs.new_end
            self._count += len(text[start : differs.new_end + more].split())
            self._count -= len(old[start : differs.old_end + more].split())
            self._text = text
        return self._count
