"""House style that no linter checks: no assignment with more than two targets, no conditional inside another.

One value may be given to several names: `a = b = c = 0`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("client", "docs", "protocol", "scripts", "server", "tests")
"""Folders of the source."""


def sources() -> list[Path]:
    return sorted({file for place in PLACES for file in (ROOT / place).rglob("*.py")})


def offences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the kind of each offence in a source."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Assign(targets):
                if any(isinstance(target, ast.Tuple | ast.List) and len(target.elts) > 2 for target in targets):
                    yield node.lineno, "an assignment with more than two targets"
            case ast.IfExp() if any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node):
                yield node.lineno, "a conditional expression inside another"


def test_offences_are_found() -> None:
    text = """
a, b = 1, 2
a, b, c = 1, 2, 3
self.a, self.b, *rest = 1, 2, 3
a = b = 1
a = b = c = 1
a = 1 if b else 2
a = 1 if b else (2 if c else 3)
a = [1 if b else 2 for b in (c if d else e)]
a = 1 if b else [2 if c else 3 for c in d]
"""
    wide, nested = "an assignment with more than two targets", "a conditional expression inside another"
    assert sorted(offences(text)) == [(3, wide), (4, wide), (8, nested), (10, nested)]


def test_every_source_keeps_to_the_style() -> None:
    files = sources()
    assert {ROOT / "server" / "link.py", ROOT / "server" / "gateway" / "gateway.py", Path(__file__)} <= set(files)
    found = [
        f"{file.relative_to(ROOT)}:{line}: {kind}"
        for file in files
        for line, kind in sorted(offences(file.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)
