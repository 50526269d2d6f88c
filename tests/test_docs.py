"""Tree of docs/architecture.md: it names every file of the product, and no other. Keys of docs/window.md: those that
act; names of panels and buttons in it: those that are drawn.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import WINDOW

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ELSEWHERE = {"client/window/update", "client/window/views", "server/kernels/gpt2d_kernels"}
"""Folders that the tree names as one line."""


def tree() -> set[str]:
    """Return the files that the tree names, as paths from the root."""
    (block,) = [b for b in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) if b.startswith("protocol/")]
    found, folders = set(), list[str]()
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        if name.endswith(".py"):
            found.add("/".join(folders))
    return found


def test_the_tree_names_every_file() -> None:
    files = {p for room in ("protocol", "server", "client") for p in (ROOT / room).rglob("*.py")}
    there = {p.relative_to(ROOT) for p in files if p.name != "__init__.py"}
    assert tree() == {p.as_posix() for p in there if p.parent.as_posix() not in ELSEWHERE}


def test_every_path_in_the_documents_exists() -> None:
    missing = []
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "protocol" / "PROTOCOL.md"]:
        for path in re.findall(
            r"`((?:server|client|protocol|scripts|tests)/[\w/]+\.\w+)`", document.read_text("utf-8")
        ):
            if not (ROOT / path).exists():
                missing.append(f"{document.name}: {path}")
    assert missing == []


def test_the_keys_are_those_of_the_table_of_chords() -> None:
    chords = pytest.importorskip("client.window.chords", exc_type=ImportError, reason=WINDOW)
    section = (ROOT / "docs" / "window.md").read_text("utf-8").split("## Keys\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    wanted = [f"| `{keys}` | {told} |" for keys, told in chords.listed()]
    assert rows == wanted, "put these rows into docs/window.md:\n" + "\n".join(wanted)


def test_what_the_windows_document_names_is_drawn() -> None:
    sources = "\n".join(file.read_text("utf-8") for file in (ROOT / "client" / "window").rglob("*.py"))
    names = re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", (ROOT / "docs" / "window.md").read_text("utf-8"))
    parts = {part for name in names for part in name.split(" > ")}
    assert len(parts) > 15 and {part for part in parts if not re.search(rf"[\"']{re.escape(part)}\b", sources)} == set()
