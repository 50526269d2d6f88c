"""What is in a file and not on the page: it stays in the lines that nobody changed."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, strategies as st

from client.window.document import clean
from client.window.textfile import TextFile

pieces = st.lists(st.sampled_from(["a", "b", "\u4e2d", "\ufeff", "\u2028", "\x00", "\x1b", "\r", "\n", "\r\n"])).map(
    "".join
)


@given(pieces, pieces, st.booleans())
def test_a_file_of_any_lines_takes_any_text(raw: str, text: str, bom: bool) -> None:
    file = TextFile(codecs.BOM_UTF8 * bom + raw.encode())
    assert file.text == clean(raw if bom else raw.removeprefix("\ufeff"))
    assert file.with_text(file.text) is file, "what nobody changed is written as it was"
    text = clean(text)
    new = file.with_text(text)
    assert new.text == text
    assert new.data.startswith(codecs.BOM_UTF8) or not file.data.startswith(codecs.BOM_UTF8)
    assert len(new.data) <= file.most_bytes(len(text.encode()), text.count("\n")) or text.startswith("\ufeff")


@pytest.mark.parametrize(
    ("data", "old", "new", "wanted"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "two", "2\n3", b"\xef\xbb\xbfone\r\n2\r\n3\r\n"),
        (b"one\r\ntwo\nthree\x00\r", "two", "2", b"one\r\n2\r\nthree\x00\r"),
        (b"\x1b[1mone\ntwo\n\x0c", "two", "2", b"\x1b[1mone\n2\n\x0c"),
        (b"one\rtwo\r", "two", "2\n\n3", b"one\r2\r\r3\r"),
        (b"one\r\ntwo\n", "two", "\ntwo", b"one\r\n\r\ntwo\n"),
    ],
    ids=["BOM and CRLF", "mixed", "control characters", "CR", "a line more"],
)
def test_lines_that_were_not_changed_keep_their_bytes(data: bytes, old: str, new: str, wanted: bytes) -> None:
    file = TextFile(data)
    changed = file.with_text(file.text.replace(old, new))
    assert changed.data == wanted
    assert changed.with_text(file.text).text == file.text


def test_what_a_page_does_not_show_is_said() -> None:
    assert TextFile(b"one\r\ntwo\r\n").keeps == "" == TextFile(codecs.BOM_UTF8).keeps
    assert TextFile(b"one\r\ntwo\n\x00").keeps == "1 control character and line ends of several kinds (LF, CRLF)"
    with pytest.raises(UnicodeDecodeError):
        TextFile(b"\xff")
