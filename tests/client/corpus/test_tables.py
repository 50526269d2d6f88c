"""Files of texts, as rows: whatever spreadsheets and scripts put into them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.corpus import tables
from client.corpus.output import Sheet, as_csv
from client.corpus.tables import Per, Table, Unusable


def table(*files: Path, column: str = "text", per: Per = "line") -> Table:
    made = Table(list(files), column, None, per)
    made.look()
    return made


def write(folder: Path, name: str, data: bytes | str) -> Path:
    file = folder / name
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def test_a_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """A byte order mark, line breaks and quotes in a cell, an empty cell, a blank line, a cell of a megabyte."""
    long = "word " * 200_000
    file = write(tmp_path, "a.csv", f'\ufeffid,text\r\n1,"two\r\nlines, ""so"""\r\n\r\n2,\r\n3,{long}\r\n')
    found = table(file)
    assert (found.columns, found.count, found.longest) == (["id", "text"], 3, len(long))
    rows = list(found.rows())
    assert [(row.line, row.cells[0], row.text) for row in rows] == [
        (2, "1", 'two\r\nlines, "so"'),
        (5, "2", ""),
        (6, "3", long),
    ]


@pytest.mark.parametrize(
    ("per", "wanted"),
    [
        ("line", [(1, "one"), (2, " two "), (5, "three"), (6, "four")]),
        ("paragraph", [(1, "one\r\n two "), (5, "three\nfour")]),
        ("file", [(1, "one\r\n two \r\n\n\nthree\nfour")]),
    ],
)
def test_texts_of_a_txt(tmp_path: Path, per: Per, wanted: list[tuple[int, str]]) -> None:
    file = write(tmp_path, "a.txt", "\ufeffone\r\n two \r\n\n\nthree\nfour\n")
    assert [(row.line, row.text) for row in table(file, per=per).rows()] == wanted


def test_fields_of_a_jsonl_keep_what_they_are(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", '{"text": "x", "a": 1.10, "b": [1]}\n\n{"c": null, "text": "y", "a": 2}\n{}\n')
    found = table(file)
    assert found.columns == ["text", "a", "b", "c"]
    assert [row.cells for row in found.rows()] == [
        ["x", Decimal("1.10"), [1], None],
        ["y", 2, None, None],
        [None, None, None, None],
    ]
    sheet = Sheet("csv", found.kinds, {"n": int})
    assert sheet.header + sheet.rows([*row.cells, 1] for row in found.rows()) == (
        "text,a,b,c,n\nx,1.10,[1],,1\ny,2,,,1\n,,,,1\n"
    )
    assert '"a":1.10' in Sheet("jsonl", found.kinds, {}).rows(row.cells for row in found.rows())


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.doc", "x", "must end in .txt"),
        ("a.csv", "", "is empty"),
        ("a.csv", "id;text\n1;x\n", "no column 'text' in .*'id;text'"),
        ("a.csv", "text,text\n", "two columns are called 'text'"),
        ("a.csv", "id,text\n1,x,y\n", "line 2: 3 cells, where the header has 2"),
        ("a.csv", 'id,text\n1,"x\n2,y\n', "line 2: a quote is not closed"),
        ("a.tsv", 'text\n"so", he said\n', "line 2: .*a cell that begins with a quote ends with one"),
        ("a.csv", b"text\ncaf\xe9\n", "not UTF-8: its bytes are of another encoding"),
        ("a.csv", "text\nx\n".encode("utf-16"), "not UTF-8: it is UTF-16"),
        ("a.jsonl", '{"text": 1}\n', "line 1: 'text' must be a text, and is 1"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "line 2: every line must be an object"),
        ("a.jsonl", '{"text": "x"\n', "line 1: not an object of JSON"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "line 1: not an object of JSON"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_done(
    tmp_path: Path, name: str, data: bytes | str, says: str
) -> None:
    with pytest.raises(Unusable, match=says):
        table(write(tmp_path, name, data))


def test_several_files(tmp_path: Path) -> None:
    one, two = write(tmp_path, "1.txt", "a\nb\n"), write(tmp_path, "2.txt", "c\n")
    found = table(one, two)
    assert [found.source_of(row) for row in found.rows()] == [[str(one), 1], [str(one), 2], [str(two), 1]]
    other = write(tmp_path, "3.csv", "text,x\n")
    with pytest.raises(Unusable, match="cannot be taken together"):
        table(one, other)
    with pytest.raises(Unusable, match=r"other columns than .*3\.csv: 'x', 'text'"):
        table(other, write(tmp_path, "4.csv", "x,text\n"))


def test_a_csv_beside_a_jsonl_that_has_more_columns(tmp_path: Path) -> None:
    found = table(write(tmp_path, "1.csv", "text\nx\n"), write(tmp_path, "2.jsonl", '{"id": 7, "text": "y"}\n'))
    assert found.columns == ["text", "id"] and [row.cells for row in found.rows()] == [["x", None], ["y", 7]]
    with pytest.raises(Unusable, match=r"3\.csv, line 2: 2 cells, where the header has 1"):
        table(write(tmp_path, "3.csv", "text\nx,7\n"), tmp_path / "2.jsonl")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "one\n")
    found = table(file)
    found.check_unchanged()
    write(tmp_path, "a.txt", "one\ntwo\n")
    with pytest.raises(Unusable, match="was changed while it was read"):
        found.check_unchanged()


def test_a_file_that_changes_while_it_is_read_for_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest would be that of a text which nobody scored."""
    file = write(tmp_path, "a.txt", "one\n")
    digest = hashlib.file_digest

    def slowly(stream: Any, name: str) -> Any:
        found = digest(stream, name)
        write(tmp_path, "a.txt", "another\n")
        return found

    monkeypatch.setattr(hashlib, "file_digest", slowly)
    with pytest.raises(Unusable, match="was changed while it was read"):
        table(file).check_unchanged()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_what_cannot_be_read_twice_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.csv").mkdir()
    for name in ("a.txt", "b.csv"):
        with pytest.raises(Unusable, match="texts are read twice, so they must be in a file"):
            table(tmp_path / name)


def test_memory_does_not_grow_with_the_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_COLUMNS", 3)
    with pytest.raises(Unusable, match="more than 3 different fields"):
        table(write(tmp_path, "a.jsonl", "".join(f'{{"{n}": 1}}\n' for n in range(4))))


CELLS: list[Any] = ["a\rb", "a\nb", 'say "so"', "a,b", " the", "", "é\u2028", "\x00"]


def test_every_text_comes_back_from_a_csv() -> None:
    """The csv module's own writer leaves a carriage return without quotes, and readers end the row there."""
    line = as_csv([*CELLS, None, 3, 0.5, True, ["x", 1.5]])
    (read,) = csv.reader(io.StringIO(line, newline=""), strict=True)
    assert read == [*CELLS, "", "3", "0.5", "TRUE", '["x",1.5]']


def test_our_columns_have_names_of_their_own() -> None:
    sheet = Sheet("jsonl", {"word": {str}, "gpt2d_word": {str}}, {"word": str, "rank": int})
    assert (sheet.names, sheet.renamed) == (["word", "gpt2d_word", "gpt2d_gpt2d_word", "rank"], ["gpt2d_gpt2d_word"])
    assert json.loads(sheet.rows([["a", "b", "c", 1]])) == dict(zip(sheet.names, ["a", "b", "c", 1], strict=True))


def test_parquet_has_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    theirs: dict[str, set[type]] = {"a": {int, Decimal, type(None)}, "b": {list, str}, "c": {bool}, "d": {object, int}}
    sheet = Sheet("parquet", theirs, {"word": str, "rank": int, "top": None})
    lines = tmp_path / "lines"
    rows: list[list[Any]] = [
        [1, [1, "x"], True, 2**70, "a\r", 3, None],
        [None, "text", False, 1, "", None, [{"id": 1}]],
    ]
    lines.write_text(sheet.rows(rows))
    sheet.convert(lines, tmp_path / "out.parquet")
    found = parquet.read_table(tmp_path / "out.parquet")
    kinds = ["double", "string", "bool", "string", "string", "int64", "string"]
    assert [str(kind) for kind in found.schema.types] == kinds
    assert found.to_pydict() == {
        "a": [1.0, None], "b": ['[1,"x"]', "text"], "c": [True, False], "d": [str(2**70), "1"], "word": ["a\r", ""],
        "rank": [3, None], "top": [None, msgspec.json.encode([{"id": 1}]).decode()],
    }  # fmt: skip
