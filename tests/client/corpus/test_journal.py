"""An output that was interrupted: it goes on where it was complete, and never becomes something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client.corpus import journal as module
from client.corpus.journal import Done, Journal

SETTINGS: dict[str, Any] = {"unit": "word", "files": {"a.txt": "1"}}


@pytest.fixture(autouse=True)
def _note_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", -1.0)


def begun(out: Path, settings: dict[str, Any] = SETTINGS, *, overwrite: bool = False) -> Journal:
    return Journal(out, settings, "header\n", overwrite=overwrite)


def test_what_a_killed_process_leaves_is_cut_off_where_it_was_complete(tmp_path: Path) -> None:
    """One is killed between any two steps: the copies of its files are what it left behind."""
    out = tmp_path / "out.csv"
    left = []
    with begun(out) as journal:
        for number in range(3):
            journal.write(Done([], 5, 1, whole=number % 2 == 1, number=number), f"row {number}\n")
            journal._file.flush()
            left.append((journal.part.read_bytes(), journal.progress.read_bytes()))
        journal.finish()
    assert {file.name for file in tmp_path.iterdir()} == {"out.csv"}
    whole = out.read_bytes()
    assert whole == b"header\nrow 0\nrow 1\nrow 2\n"
    for number, (part, progress) in enumerate(left):
        for torn in (part, part + b"row", part + b"row 1\nrow 2\nro"):
            out.unlink(missing_ok=True)
            journal.part.write_bytes(torn)
            journal.progress.write_bytes(progress)
            with begun(out) as again:
                at = again.position
                assert (at.done, at.number, at.texts, at.characters) == (
                    number + 1,
                    number,
                    (number + 1) // 2,
                    5 * (number + 1),
                )
                for later in range(at.done, 3):
                    again.write(Done([], 5, 1, number=later), f"row {later}\n")
                again.finish()
            assert out.read_bytes() == whole


def test_a_start_that_was_killed(tmp_path: Path) -> None:
    """Nothing was done yet, so that other settings are none of its business; nor does such a run leave anything."""
    out, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    part.touch()
    with begun(out) as journal:
        left = part.read_bytes(), journal.progress.read_bytes()
    assert list(tmp_path.iterdir()) == []
    for torn in (left[0], b"header\n", b"hea"):
        part.write_bytes(torn)
        journal.progress.write_bytes(left[1])
        with begun(out, SETTINGS | {"unit": "token"}) as again:
            again.write(Done([], 1, 1), "row\n")
            again.finish()
        assert out.read_bytes() == b"header\nrow\n"
        out.unlink()


def test_an_end_that_was_killed(tmp_path: Path) -> None:
    """Between the last two steps the output is whole, and its file of progress is still there."""
    out = tmp_path / "out.csv"
    with begun(out) as journal:
        journal.write(Done([], 1, 1), "row\n")
    (tmp_path / "out.csv.part").replace(out)
    with pytest.raises(ValueError, match="exists already"):
        begun(out)
    with begun(out, overwrite=True) as journal:
        assert journal.position.done == 0
        assert out.read_bytes() == b"header\nrow\n", "until the new one is done"
        journal.finish()
    assert out.read_bytes() == b"header\n"


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("a result\n")
    with pytest.raises(ValueError, match="exists already; give another --out, or --overwrite"):
        begun(out)
    assert {file.name for file in tmp_path.iterdir()} == {"out.csv"}
    out.unlink()
    part = tmp_path / "out.csv.part"
    part.write_text("something\n")
    with pytest.raises(ValueError, match=r"is there without out\.csv\.progress"):
        begun(out)
    assert part.read_text() == "something\n"
    (tmp_path / "out.csv.progress").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        begun(out)
    with pytest.raises(ValueError, match="is a folder"):
        begun(tmp_path)


def test_what_came_while_it_was_interrupted_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with begun(out) as journal:
        journal.write(Done([], 1, 1), "row\n")
    out.write_text("another result\n")
    with pytest.raises(ValueError, match="exists already; give another --out, or --overwrite"):
        begun(out)
    assert out.read_text() == "another result\n"
    with begun(out, overwrite=True) as journal:
        assert journal.position.done == 1, "nothing is lost by it"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such file")
def test_a_device_is_not_replaced_by_a_file() -> None:
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="--out must name a file"):
            begun(Path(os.devnull), overwrite=overwrite)


def test_other_settings_are_refused_unless_all_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with begun(out) as journal:
        journal.write(Done([], 1, 1), "row\n")
    with pytest.raises(ValueError, match="begun with another unit \\('word', now 'token'\\)"):
        begun(out, SETTINGS | {"unit": "token"})
    with begun(out, overwrite=True) as journal:
        assert journal.position.done == 1, "the same command goes on, --overwrite or not"
    with begun(out, SETTINGS | {"unit": "token"}, overwrite=True) as journal:
        assert journal.position.done == 0
        journal.write(Done([], 1, 1), "other\n")
    assert (tmp_path / "out.csv.part").read_text() == "header\nother\n"


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with begun(out):
        code = (
            "import pathlib, sys\nfrom client.corpus.journal import Journal\n"
            "Journal(pathlib.Path(sys.argv[1]), {}, '', overwrite=True)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=60)
    assert "another process is writing" in done.stderr


def test_a_conversion_that_fails_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"

    def fail(rows: Path, to: Path) -> None:
        to.write_text(rows.read_text()[:3])
        raise OSError(28, "No space left on device")

    def shout(rows: Path, to: Path) -> None:
        to.write_bytes(rows.read_bytes().upper())

    with begun(out) as journal:
        journal.write(Done([], 1, 1), "row\n")
        with pytest.raises(OSError, match="No space left"):
            journal.finish(fail)
    assert not out.exists()
    with begun(out) as journal:
        assert journal.position.done == 1
        journal.finish(shout)
    assert out.read_bytes() == b"HEADER\nROW\n"
