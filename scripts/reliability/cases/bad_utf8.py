"""Strings that are not UTF-8: cut characters, surrogates, overlong forms, and past the last character.

Each is sent as a value and in a list. A field of an unknown name is ignored, whatever its name is.
"""

from __future__ import annotations

BAD = [
    b"\xff",
    b"\x80",
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xed\xb0\x80",
    b"\xc0\x80",
    b"\xe0\x80\x80",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
]
TEXTS = [bytes([0xA0 | len(bad) + 2]) + b"a" + bad + b"b" for bad in BAD] + [
    bytes([0xA0 | len(bad)]) + bad for bad in BAD
]
HEAD = b"\x83\xa1v\x01\xa4type"
FRAMES = [
    *(HEAD + b"\xa8generate\xa6prompt" + text for text in TEXTS),
    *(HEAD + b"\xa5hello\xa6client" + text for text in TEXTS),
    *(HEAD + text + b"\xa2id\x01" for text in TEXTS),
    *(b"\x84\xa1v\x01\xa4type\xa8generate\xa6prompt\xa1x\xa4stop\x91" + text for text in TEXTS),
    *(HEAD + b"\xa8generate\xa6prompt\xdb\x00\x03\x00\x00" + (bad * 200_000)[:196_608] for bad in BAD),
]
