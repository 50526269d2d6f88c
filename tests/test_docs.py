"""The documents and what they describe: every link leads somewhere, the tree of docs/architecture.md names every file
of the product and no other, docs/window.md names the keys that act and what is drawn, docs/settings.md every setting.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from protocol.parameters import parameters
from protocol.programs import VERSION
from server.catalogue.architecture import PUBLISHED
from server.settings import settings
from tests.conftest import WINDOW

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ELSEWHERE = {"client/window/update", "client/window/views", "server/kernels/gpt2d_kernels"}
"""Folders that the tree names as one line."""
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "protocol" / "PROTOCOL.md",
    ROOT / "server" / "demo_model" / "README.md",
]


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
    for document in set(DOCUMENTS) - {ROOT / "CHANGELOG.md"}:  # which names what was
        for path in re.findall(
            r"`((?:server|client|protocol|scripts|tests)/[\w/]+\.\w+)`", document.read_text("utf-8")
        ):
            if not (ROOT / path).exists():
                missing.append(f"{document.name}: {path}")
    assert missing == []


def test_every_page_that_a_source_names_exists() -> None:
    named = {
        page
        for room in ("protocol", "server", "client", "scripts")
        for source in (ROOT / room).rglob("*.py")
        for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md\b", source.read_text("utf-8"))
    }
    assert len(named) > 3 and {page for page in named if not (ROOT / page).exists()} == set()


def anchors(document: Path) -> set[str]:
    """Return what a link can name of a document: its headings, as GitHub makes names of them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
        if not link.startswith(("http://", "https://"))
    ]
    lost = []
    for document, link in links:
        path, anchor = link.partition("#")[::2]
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(f"{document.name}: {link}")
    assert len(links) > 100 and lost == []


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)", index.read_text("utf-8"))}
    named |= {folder / "README.md" for folder in named}
    decisions = set((ROOT / "docs" / "decisions").glob("*.md"))
    assert {path for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")} - named - decisions == {index}


def setting_rows() -> list[str]:
    """Return the rows of docs/settings.md: every setting of a generation."""
    rows = []
    for p in parameters():
        limits = [f"{limit:,}" for limit in (p.minimum, p.maximum) if limit is not None]
        allowed = ", ".join(p.choices) or " to ".join(limits) or ("no, yes" if p.type == "bool" else "")
        default = "" if p.default in (None, []) else str(p.default).replace("False", "no").replace("True", "yes")
        description = p.description.replace("|", "\\|")
        rows.append(f"| `{p.name}` | {default} | {allowed} | {description} |")
    return rows


def test_every_setting_of_a_generation_is_in_its_document() -> None:
    wanted = setting_rows()
    section = (ROOT / "docs" / "settings.md").read_text("utf-8").split("\n## ")[1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == wanted, "put these rows into docs/settings.md:\n" + "\n".join(wanted)


def test_every_setting_of_the_daemon_is_in_its_document() -> None:
    section = (ROOT / "docs" / "settings.md").read_text("utf-8").split("\n## Of the daemon\n")[1]
    named = set(re.findall(r"`(--[\w-]+)`", section))
    assert {setting.flag for setting in settings().values()} <= named


def test_the_times_of_calibration_are_those_that_are_estimated() -> None:
    document = " ".join((ROOT / "docs" / "engines.md").read_text("utf-8").split())
    for name, arch in PUBLISHED.items():
        found = re.search(rf"([\d.]+) (?:minutes )?for {name}\b(?!-)", document)
        assert found and abs(float(found[1]) - arch.calibration_seconds(2) / 60) < 0.5, name


def test_one_version_is_told_everywhere() -> None:
    """Package gpt2d takes protocol's, as `hello`, `--version` and the metrics do."""
    kernels = tomllib.loads((ROOT / "server" / "kernels" / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0]
    logged = re.findall(r"INFO gpt2d (\S+) listens", "".join(document.read_text("utf-8") for document in DOCUMENTS))
    assert {VERSION} == {kernels, newest, *logged}


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
