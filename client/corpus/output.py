"""The table that is written: rows as lines of CSV or JSON, or in Parquet's format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from protocol.programs import install

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]
ENDS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""The format of a file, by the end of its name."""
BATCH = 20_000
"""Rows of Parquet that are made at a time."""
JSON = msgspec.json.Encoder(decimal_format="number")
SPECIAL = frozenset(',"\r\n')


def format_of(out: Path, given: Format | None) -> Format:
    """Return the format to write. Raises: ValueError where neither an option nor the file's name says it."""
    found = given or ENDS.get(out.suffix.lower())
    if found is None:
        raise ValueError(f"{out}: its name must end in {', '.join(ENDS)}, or say which --format it has")
    if found == "parquet":
        arrow()
    return found


def arrow() -> Any:
    """Return the library that writes Parquet. Raises: ValueError, which says how to install it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(
            f"parquet needs pyarrow ({e}); in the checkout of gpt2d type: {install('parquet')}; "
            "csv and jsonl need nothing"
        ) from None
    return pa


class Sheet:
    """The columns of an output, and its rows as bytes of a format."""

    def __init__(self, kind: Format, theirs: dict[str, set[type]], ours: dict[str, type | None]) -> None:
        """Put our columns after the input's; one whose name the input has already gets another."""
        self._kind = kind
        self._columns = {name: _type_of(types) for name, types in theirs.items()}
        for column, of in ours.items():
            name = column
            while name in self._columns:
                name = f"gpt2d_{name}"
            self._columns[name] = of
        self.names = list(self._columns)
        self.renamed = [name for name in self.names[len(theirs) :] if name not in ours]

    @property
    def header(self) -> str:
        return as_csv(self.names) if self._kind == "csv" else ""

    def rows(self, rows: Iterable[Iterable[Any]]) -> str:
        if self._kind == "csv":
            return "".join(map(as_csv, rows))
        return "".join(JSON.encode(dict(zip(self.names, row, strict=True))).decode() + "\n" for row in rows)

    def convert(self, lines: Path, to: Path) -> None:
        """Write rows of JSON as a file of Parquet. Raises: OSError.

        Such a file has its table of contents at its end, and one that is cut off has none: rows are kept as JSON until
        all are there.
        """
        pa = arrow()
        types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        schema = pa.schema([(name, types[of or str]) for name, of in self._columns.items()])
        with pa.parquet.ParquetWriter(str(to), schema) as writer, lines.open("rb") as stream:
            while batch := [msgspec.json.decode(line) for line in itertools.islice(stream, BATCH)]:
                arrays = [
                    pa.array([_typed(row[name], of) for row in batch], types[of or str])
                    for name, of in self._columns.items()
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))


def _type_of(types: set[type]) -> type | None:
    """Return the one type of a column's values; None where there are several, or lists: then it has texts of JSON."""
    found = {float if of is Decimal else of for of in types} - {type(None)}
    if found == {int, float}:
        return float
    return next(iter(found)) if len(found) == 1 and found <= {str, int, float, bool} else None


def as_csv(cells: Iterable[Any]) -> str:
    """Return a row as a line of CSV: what is not a text or a number stands there as JSON, and None as nothing.

    The csv module leaves a carriage return without quotes where lines end in a newline, and readers end the row there.
    """
    return ",".join(map(_cell, cells)) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        return "TRUE" if value else "FALSE"  # of which R, pandas and spreadsheets make truth values
    elif isinstance(value, int | float | Decimal):
        return str(value)
    else:
        text = JSON.encode(value).decode()
    return '"' + text.replace('"', '""') + '"' if SPECIAL.intersection(text) else text


def _typed(value: Any, kind: type | None) -> Any:
    if value is None or (kind is None and isinstance(value, str)):
        return value
    return JSON.encode(value).decode() if kind is None else kind(value)
