"""Absence of ways from a message or a model to running code, as docs/security.md promises, by reading the sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = [file for folder in ("protocol", "server", "client") for file in Path(folder).rglob("*.py")]
FORBIDDEN = {
    r"\bpickle\b": "pickle",
    r"\bmarshal\b|\bshelve\b|\bdill\b|\bjoblib\b": "a relative of pickle",
    r"(?<![\w.])(eval|exec|compile)\(": "eval",
    r"\b__import__\(|\bimportlib\b": "an import by name",
    r"torch\.load\(|np\.load\(|numpy\.load\(|allow_pickle": "a loader that can unpickle",
    r"trust_remote_code": "remote code",
    r"shell=True|os\.system\(|os\.popen\(": "a shell",
    r"yaml\.load\(|from_pretrained\(": "a loader that does more than it says",
}


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=FORBIDDEN.values())
def test_there_is_none_of(pattern: str) -> None:
    assert len(SOURCES) > 30
    found = [
        f"{file}: {line}"
        for file in SOURCES
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    assert found == []


def test_no_message_has_a_path() -> None:
    """Clients name models. A field that named a file would give access to every file that the server can read."""
    messages = Path("protocol/messages.py").read_text(encoding="utf-8")
    assert not re.findall(r"^    \w*(?:path|file|folder|dir|url)\w*: (?!int)", messages, re.MULTILINE)
