"""Files of texts as rows: .txt, .csv, .tsv and .jsonl, read one row at a time.

A file is read twice: once before anything is computed, so that what is wrong with it is said then, and the second time
as the work goes on. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import csv
import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

import msgspec

Per: TypeAlias = Literal["line", "paragraph", "file"]
KINDS = {".txt": "txt", ".text": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""What a file is, by the end of its name."""
MAX_COLUMNS = 1000
MAX_CELL = 2**31 - 1
"""Most characters of a cell, for the csv module, whose own limit is 131,072."""
JSON = msgspec.json.Decoder(float_hook=Decimal)
"""Numbers keep their digits."""


class Unusable(ValueError):
    """A file that cannot be taken as it is."""


@dataclass(frozen=True)
class Row:
    """A text, and what stands beside it in the file."""

    file: Path
    line: int
    """Where it begins, from 1."""
    cells: list[Any]
    """One for each of the table's columns."""
    text: str
    context: str


@dataclass
class Table:
    """The rows of one or several files, which have the same columns."""

    files: list[Path]
    column: str
    context_column: str | None
    per: Per
    columns: list[str] = field(default_factory=list)
    """Those of the files, in their order; of a .txt one with its texts."""
    kinds: dict[str, set[type]] = field(default_factory=dict)
    """The types of the values in each column; a whole number of more than 64 bits is an object."""
    plain: bool = False
    """Whether the files are .txt."""
    count: int = 0
    characters: int = 0
    longest: int = 0
    """Characters of the longest text or context."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file."""
    _stamps: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self) -> None:
        """Read everything once. Raises: Unusable for what cannot be used, OSError."""
        for file in self.files:
            _kind(file)
            self._stamps[file] = _stamp(file)  # before its bytes are read: what changes from here on is noticed
            with file.open("rb") as stream:
                self.digests[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
        self.plain = all(_kind(file) == "txt" for file in self.files)
        if self.plain:
            self.columns = [self.column]
        else:
            if any(_kind(file) == "txt" for file in self.files):
                raise Unusable("texts (.txt) and tables (.csv, .tsv, .jsonl) cannot be taken together")
            self._find_columns()
        for row in self.rows():
            self.count += 1
            self.characters += len(row.text)
            self.longest = max(self.longest, len(row.text), len(row.context))
            for name, cell in zip(self.columns, row.cells, strict=True):
                wide = isinstance(cell, int) and abs(cell) >= 2**63
                self.kinds.setdefault(name, set()).add(object if wide else type(cell))

    @property
    def source(self) -> dict[str, type | None]:
        """Our columns that say where a text is from, as far as its number does not."""
        found: dict[str, type | None] = {"file": str} if len(self.files) > 1 else {}
        return found | ({"line": int} if self.plain and self.per != "file" else {})

    def source_of(self, row: Row) -> list[Any]:
        """Return the cells of these columns."""
        values = {"file": str(row.file), "line": row.line}
        return [values[name] for name in self.source]

    def check_unchanged(self) -> None:
        """Raise ValueError if a file is not what it was at the first look."""
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise Unusable(f"{file} was changed while it was read; start again with --overwrite")

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all files. Raises: Unusable, which names file and line; OSError."""
        for file in self.files:
            if self.plain:
                for line, text in _texts(file, self.per):
                    yield Row(file, line, [text], text, "")
                continue
            for line, cells in self._records(file):
                text = self._text(file, line, cells, self.column)
                context = self._text(file, line, cells, self.context_column) if self.context_column else ""
                yield Row(file, line, cells, text, context)

    def _find_columns(self) -> None:
        found: dict[str, None] = {}
        for file in self.files:
            own = list(_keys(file)) if _kind(file) == "jsonl" else _header(file)
            tables = _kind(file) != "jsonl"
            if tables and found and own != list(found):
                raise Unusable(f"{file} has other columns than {self.files[0]}: {_listed(own)}")
            found |= dict.fromkeys(own)
        self.columns = list(found)
        for name in filter(None, (self.column, self.context_column)):
            if name not in found:
                raise Unusable(f"there is no column {name!r} in {self.files[0]}; its columns are {_listed(found)}")

    def _records(self, file: Path) -> Iterator[tuple[int, list[Any]]]:
        if _kind(file) == "jsonl":
            for line, record in _objects(file):
                yield line, [record.get(name) for name in self.columns]
            return
        rows = _cells(file)
        _, header = next(rows)
        others: list[Any] = [None] * (len(self.columns) - len(header))  # columns that a .jsonl beside it has
        for line, cells in rows:
            if len(cells) != len(header):
                raise Unusable(
                    f"{file}, line {line}: {len(cells)} cells, where the header has {len(header)}; a cell with "
                    'separators or line breaks in it must be in quotes, "like this"'
                )
            yield line, cells + others

    def _text(self, file: Path, line: int, cells: list[Any], column: str) -> str:
        value = cells[self.columns.index(column)]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Unusable(f"{file}, line {line}: {column!r} must be a text, and is {value!r}")
        return value


def _kind(file: Path) -> str:
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        raise Unusable(f"{file}: its name must end in {', '.join(KINDS)}, which says what is in it")
    return kind


def _stamp(file: Path) -> tuple[int, int]:
    """Return what tells that a file was changed. Raises: Unusable for what cannot be read twice; OSError."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"{file} is a folder, a pipe or a device; texts are read twice, so they must be in a file")
    return found.st_size, found.st_mtime_ns


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(shown[:20]) + more


def _open(file: Path) -> TextIO:
    """Open a text, with its line breaks as they are; a byte order mark is no part of it."""
    return file.open(encoding="utf-8-sig", newline="")


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text with their ends. Raises: Unusable where it is not UTF-8."""
    try:
        with _open(file) as stream:
            yield from stream
    except UnicodeDecodeError:
        with file.open("rb") as stream:
            wide = stream.read(2) in (b"\xff\xfe", b"\xfe\xff")
        what = "it is UTF-16, which Excel calls Unicode text" if wide else "its bytes are of another encoding"
        raise Unusable(f"{file} is not UTF-8: {what}; save it as UTF-8") from None


def _texts(file: Path, per: Per) -> Iterator[tuple[int, str]]:
    """Yield the texts of a .txt, each with the number of its first line, and without the line breaks at its end; blank
    lines and paragraphs are none.
    """
    if per == "file":
        text = "".join(_lines(file)).rstrip("\r\n")
        if text.strip():
            yield 1, text
        return
    held: list[str] = []
    first = 1
    for number, line in enumerate(_lines(file), 1):
        blank = not line.strip()
        if held and (blank or per == "line"):
            yield first, "".join(held).rstrip("\r\n")
            held = []
        if not blank:
            first = first if held else number
            held.append(line)
    if held:
        yield first, "".join(held).rstrip("\r\n")


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a .csv or .tsv, the header first; blank lines are none. Raises: Unusable."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(_lines(file), delimiter="\t" if _kind(file) == "tsv" else ",", strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            why = "a quote is not closed" if "unexpected end" in str(e) else str(e)
            raise Unusable(
                f'{file}, line {line}: {why}; a cell that begins with a quote ends with one, and has "" for those in it'
            ) from None
        if cells:
            yield line, cells


def _header(file: Path) -> list[str]:
    """Return the names of the columns. Raises: Unusable where there are none, or two alike."""
    _, header = next(_cells(file), (1, list[str]()))
    if not header:
        raise Unusable(f"{file} is empty: its first line must name the columns")
    if len(header) > MAX_COLUMNS:
        raise Unusable(f"{file} has {len(header)} columns; {MAX_COLUMNS} are the most")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise Unusable(f"{file}: two columns are called {twice!r}; rename one")
    return header


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a .jsonl; blank lines are none. Raises: Unusable."""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = JSON.decode(line)
        except (msgspec.DecodeError, RecursionError) as e:
            raise Unusable(f"{file}, line {number}: not an object of JSON: {e}") from None
        if not isinstance(record, dict):
            raise Unusable(f'{file}, line {number}: every line must be an object, like {{"text": "..."}}')
        yield number, record


def _keys(file: Path) -> dict[str, None]:
    """Return the names of all fields in a .jsonl, in the order in which they appear."""
    found: dict[str, None] = {}
    for _, record in _objects(file):
        found |= dict.fromkeys(record)
        if len(found) > MAX_COLUMNS:
            raise Unusable(f"{file} has more than {MAX_COLUMNS} different fields")
    return found
