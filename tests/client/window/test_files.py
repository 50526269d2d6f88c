"""Files of pages: what is opened, saved and kept is never lost to another program, another window or a crash."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import disk, events as e, past, sidecar
from client.window.app import App
from client.window.autosave import Autosave, Autosaved
from client.window.document import Document
from client.window.marks import Passage
from client.window.sidecar import Branches
from client.window.state import AppState
from client.window.textfile import MAX_FILE_BYTES, TextFile
from client.window.tree import Node, Place, Tree
from client.window.update.apply import apply
from tests.client.window.test_tree import page, piece, takes, typed, written
from tests.client.window.test_update import ready

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")


def run(state: AppState, message: e.Message) -> None:
    """Apply a message and what the disk answers, as the window's loop does."""
    for effect in apply(state, message):
        if isinstance(effect, disk.DiskEffect) and not isinstance(effect, e.KeepPage | e.ForgetPage):
            try:
                answer = disk.carry_out(effect)
            except (OSError, ValueError) as error:
                answer = e.DiskFailed(disk.describe(error))
            if answer:
                run(state, answer)


def save_as(state: AppState, folder: Path, name: str) -> None:
    run(state, e.Do("save as"))
    run(state, e.ChooseFile(str(folder), name, done=True))


def open_(state: AppState, folder: Path, name: str) -> None:
    run(state, e.Do("open"))
    run(state, e.ChooseFile(str(folder), name, done=True))


def test_an_untouched_file_is_saved_as_it_was(tmp_path: Path) -> None:
    file, state = tmp_path / "a.txt", page("")
    for data in (b"\xef\xbb\xbfone\r\ntwo\nthree\x00\r", b"", b"\n\n", "\u2028\ufeff\u00e9".encode()):
        file.write_bytes(data)
        state.preferences.files, state.focus_page = [], 0
        open_(state, tmp_path, "a.txt")
        assert state.focus_page and not state.page.dirty and state.page.document.cursor == len(state.page.document.text)
        run(state, e.Do("save"))
        assert file.read_bytes() == data
    file.write_bytes(b"one\r\ntwo\n\x00")
    open_(state, tmp_path, "a.txt")
    assert "1 control character and line ends of several kinds" in state.said("file")


def test_what_another_program_wrote_is_not_replaced_unasked(tmp_path: Path) -> None:
    file, state = tmp_path / "a.txt", page("")
    file.write_bytes(b"one")
    open_(state, tmp_path, "a.txt")
    typed(state, "my ", 0)
    file.write_bytes(b"another's")
    run(state, e.Do("save"))
    assert file.read_bytes() == b"another's" and state.files.exists == file and state.page.dirty
    run(state, e.Do("dismissed"))
    assert state.files.exists is None and file.read_bytes() == b"another's"
    run(state, e.Do("save"))
    run(state, e.Do("replace"))
    assert file.read_bytes() == b"my one" and not state.page.dirty and state.files.exists is None
    typed(state, "!")
    run(state, e.Do("save"))
    assert file.read_bytes() == b"my !one", "it knows what it wrote"
    (tmp_path / "b.txt").write_bytes(b"new")
    run(state, e.Do("save as"))
    state.files.listing = []  # it was made after the folder was listed, or is in another
    run(state, e.ChooseFile(str(tmp_path), "b.txt", done=True))
    assert (tmp_path / "b.txt").read_bytes() == b"new" and state.files.exists == tmp_path / "b.txt"
    run(state, e.Do("dismissed"))
    save_as(state, tmp_path, "b.txt")
    assert (tmp_path / "b.txt").read_bytes() == b"my !one", "the dialog had said that it is replaced"


def test_the_name_that_is_proposed_is_that_of_no_other_file(tmp_path: Path) -> None:
    """Ctrl+S and Enter, once for each of several pages: none of them takes the place of another."""
    state = page("")
    state.preferences.files = [(str(tmp_path / "gone.txt"), 0)]
    for text in ("one", "two", "three"):
        run(state, e.Do("new"))
        typed(state, text)
        run(state, e.Do("save"))
        run(state, e.ChooseFile(state.files.folder, state.files.name, done=True))
        assert not state.page.dirty
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert written == {"page.txt": "one", "page 2.txt": "two", "page 3.txt": "three"}
    run(state, e.Do("save as"))
    assert state.files.name == "page 3.txt", "it may take its own place"
    run(state, e.Do("close files"))
    (tmp_path / "page 3.txt").write_text("another's")
    typed(state, "!")
    run(state, e.Do("save"))
    run(state, e.Do("save as"))
    assert state.files.name == "page 3 2.txt"


def test_a_name_is_not_saved_before_it_is_known_to_be_free(tmp_path: Path) -> None:
    """Ctrl+S and Enter while the disk is late: the list in memory is that of the last time."""
    state = page("one")
    state.preferences.files = [(str(tmp_path / "gone.txt"), 0)]
    run(state, e.Do("save"))
    run(state, e.ChooseFile(str(tmp_path), "page.txt", done=True))
    run(state, e.Do("save as"))
    run(state, e.Do("close files"))
    assert ("page.txt", False) in state.files.listing
    run(state, e.Do("new"))
    typed(state, "two")
    (listing,) = apply(state, e.Do("save"))
    assert isinstance(listing, e.ListFolder)
    assert apply(state, e.ChooseFile(str(tmp_path), "page.txt", done=True)) == []
    listed = disk.carry_out(listing)
    assert listed
    apply(state, listed)
    run(state, e.ChooseFile(str(tmp_path), state.files.name, done=True))
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert written == {"page.txt": "one", "page 2.txt": "two"}
    run(state, e.Do("new"))
    typed(state, "three")
    apply(state, e.Do("save"))
    apply(state, e.DiskFailed("the folder cannot be listed"))
    assert apply(state, e.ChooseFile(str(tmp_path), "page.txt", done=True)), "no list comes"


def test_an_export_replaces_no_file_unasked(tmp_path: Path) -> None:
    state = page("Once")
    written(state, " x")
    save_as(state, tmp_path, ".page.txt")  # the list leaves it out
    run(state, e.ExportEntry(1, "json"))
    run(state, e.ChooseFile(str(tmp_path), ".page.txt", done=True))
    assert state.files.exists == tmp_path / ".page.txt" and (tmp_path / ".page.txt").read_text() == "Once x"
    run(state, e.Do("save as"))
    assert (state.files.purpose, state.files.name) == ("export", ".page.txt")
    run(state, e.ChooseFile(str(tmp_path), "other.json", done=True))
    exported = (tmp_path / "other.json").read_text()
    assert '"prompt": "Once"' in exported and state.files.exists is None
    (tmp_path / ".old.json").write_text("old")
    run(state, e.ExportEntry(1, "json"))
    run(state, e.ChooseFile(str(tmp_path), ".old.json", done=True))
    assert (tmp_path / ".old.json").read_text() == "old"
    run(state, e.Do("replace"))
    assert (tmp_path / ".old.json").read_text() == exported and not state.files.exists
    assert (tmp_path / ".page.txt").read_text() == "Once x"
    run(state, e.ExportEntry(1, "json"))
    run(state, e.ChooseFile(str(tmp_path), "other.json", done=True))
    assert state.files.exists is None, "the dialog had said that it is replaced"
    (tmp_path / ".page.txt").write_text("another's")
    typed(state, "!")
    run(state, e.Do("save"))
    run(state, e.Do("replace"))
    assert (tmp_path / ".page.txt").read_text() == "Once x!", "the page, and no export"


def test_an_edit_makes_no_page_that_cannot_be_opened_again(tmp_path: Path) -> None:
    state, text = page("a" * 5000), "\u4e2d" * 300
    apply(state, e.Edit(0, 10, text * 5000, "pasted"))
    assert state.page.document.text == "a" * 5000 and "at most 4 MB" in state.said("page")
    apply(state, e.Dismiss("page"))
    apply(state, e.ReplaceAll(tuple((at, at + 1, text) for at in reversed(range(5000)))))
    assert state.page.document.text == "a" * 5000 and "at most 4 MB" in state.said("page")
    apply(state, e.ReplaceAll(tuple((at, at + 1, text) for at in reversed(range(4000)))))
    save_as(state, tmp_path, "a.txt")
    open_(state, tmp_path, "a.txt")
    assert len(state.page.document.text) == 4000 * 300 + 1000


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_replace_all_counts_the_bytes_that_a_page_does_not_show(tmp_path: Path, mark: bytes) -> None:
    line = b"x" * 998 + b"\r\n"
    lines = (MAX_FILE_BYTES - len(mark)) // len(line)
    (tmp_path / "a.txt").write_bytes(mark + line * lines)
    state = page("")
    open_(state, tmp_path, "a.txt")
    room = MAX_FILE_BYTES - len(mark) - len(line) * lines
    apply(state, e.ReplaceAll(((0, 1, "y" * (room + 2)),)))
    assert state.page.document.text.startswith("x") and "at most 4 MB" in state.said("page")
    apply(state, e.ReplaceAll(((0, 1, "y" * (room + 1)),)))
    run(state, e.Do("save"))
    assert (tmp_path / "a.txt").stat().st_size == MAX_FILE_BYTES


def test_the_file_dialog_stays_until_it_has_done_something(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("text")
    (tmp_path / "inner" / "a.txt.gpt2d.json").write_text("{}")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    state = page("")
    open_(state, tmp_path, "inner")
    assert state.files.purpose == "open" and state.files.folder == str(tmp_path / "inner") and state.files.name == ""
    assert state.files.listing == [("a.txt", False)]
    for name, said in (("c.txt", "No such file"), ("../b.txt", "b.txt is not UTF-8 text")):
        run(state, e.ChooseFile(state.files.folder, name, done=True))
        assert state.files.purpose == "open" and said in state.files.error and name.split("/")[-1] in state.files.error
        assert not state.files.waiting and state.said("file") == "", "the dialog says it"
    run(state, e.ChooseFile(str(tmp_path / "nowhere"), "", done=False))
    assert state.files.folder == str(tmp_path / "inner"), "what cannot be listed is not where one is"
    run(state, e.ChooseFile("/", str(tmp_path / "inner" / "a.txt"), done=True))
    assert not state.files.purpose and state.page.document.text == "text"
    run(state, e.Do("new"))
    run(state, e.Do("open"))
    assert state.files.folder == str(tmp_path / "inner"), "its place is kept"
    save_as(state, tmp_path, "missing/\0")
    assert state.files.purpose == "save" and state.files.error


def test_a_name_given_before_the_list_comes_belongs_to_the_folder_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("home", "elsewhere", "other")]
    for folder in folders:
        folder.mkdir()
    home, elsewhere = folders[:2]
    other = folders[2]
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(elsewhere)
    state = page("text")
    apply(state, e.Do("save as"))  # the disk has not answered yet
    run(state, e.ChooseFile(state.files.folder, "a.txt", done=True))
    assert (home / "a.txt").read_text() == "text" and not list(elsewhere.iterdir())
    (other / "page.txt").write_text("mine")
    open_(state, other, "page.txt")
    (other / "a.txt").write_text("another's")
    run(state, e.ChooseFile(str(home), "", done=False))
    apply(state, e.Do("save as"))
    run(state, e.ChooseFile(state.files.folder, "a.txt", done=True))
    assert (other / "a.txt").read_text() == "another's", "that one of this name was seen elsewhere says nothing"
    assert state.files.exists == other / "a.txt"


@POSIX
def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        disk.write(tmp_path / "new.txt", b"1")
    finally:
        os.umask(before)
    (tmp_path / "link.txt").symlink_to("new.txt")
    (tmp_path / "new.txt").chmod(0o604)
    disk.write(tmp_path / "link.txt", b"2")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "new.txt").read_bytes() == b"2"
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o604
    (tmp_path / "new.txt").unlink()
    disk.write(tmp_path / "new.txt", b"3", 0o600)
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match=r"name\.txt") as failed:
        disk.write(tmp_path / "link.txt" / "name.txt", b"4")
    assert disk.describe(failed.value).startswith(str(tmp_path / "link.txt" / "name.txt")), "its own name, no draft's"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.txt", "new.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of 255 bytes for a name")
def test_a_name_as_long_as_a_file_can_have_is_saved(tmp_path: Path) -> None:
    for name in ("\u4e2d" * 85, "\U0001f600" * 63, "a" * 255):
        disk.write(tmp_path / name, b"1")
        disk.write(tmp_path / name, b"2")
        assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"2"
        (tmp_path / name).unlink()


def kept(state: AppState, now: float) -> list[Autosaved]:
    return [effect.saved for effect in apply(state, e.Tick(now, 1e9)) if isinstance(effect, e.KeepPage)]


def test_a_page_is_kept_once_in_two_seconds_whatever_is_written() -> None:
    state = page("Once")
    apply(state, e.Do("generate"))
    texts = list[str]()
    for frame in range(500):
        piece(state, "x")
        texts += [saved.text for saved in kept(state, 10 + frame / 50)]
    assert 4 <= len(texts) <= 6
    typed(state, "END", 0)
    texts += [saved.text for now in range(22, 30) for saved in kept(state, now)]
    assert len(texts) <= 7 and texts[-1] == state.page.document.text


def test_what_is_typed_while_the_page_is_saved_stays_kept(tmp_path: Path) -> None:
    state = page("Once")
    run(state, e.Do("save as"))
    (save,) = apply(state, e.ChooseFile(str(tmp_path), "a.txt", done=True))
    assert isinstance(save, e.SaveFile)
    typed(state, " upon")
    assert [saved.text for saved in kept(state, 99.0)] == ["Once upon"]
    assert apply(state, e.Saved(save.path, save.file)) == [], "it is in no file yet"
    assert state.page.dirty and state.page.file.text == "Once"


def kept_by(folder: Path, saved: Autosaved, code: str = "import os; os._exit(1)") -> None:
    """Let another process keep a page, and end as it does."""
    program = (
        "import sys, msgspec; from pathlib import Path; from client.window import disk\n"
        "from client.window.autosave import Autosave, Autosaved\n"
        "store = Autosave(Path(sys.argv[1]), disk.write)\n"
        f"store.write(msgspec.json.decode(sys.argv[2], type=Autosaved))\n{code}"
    )
    words = [sys.executable, "-P", "-c", program, str(folder), msgspec.json.encode(saved).decode()]
    subprocess.run(words, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())})


def test_each_process_keeps_its_own_page_and_all_that_crashed_are_offered(tmp_path: Path) -> None:
    mine = Autosave(tmp_path, disk.write)
    mine.write(Autosaved("mine"))
    kept_by(tmp_path, Autosaved("crashed", "/a.txt", 1.0))
    kept_by(tmp_path, Autosaved("ended well"), "store.clear()")
    (tmp_path / "1-damaged.json").write_text("{")
    other = Autosave(tmp_path, disk.write)
    ((name, saved),) = other.left_behind().items()
    assert saved == Autosaved("crashed", "/a.txt", 1.0), "not that of a window which is there"
    assert Autosave(tmp_path, disk.write).left_behind() == {}, "one window offers it"
    mine.write(Autosaved("mine again"))
    other.forget(name)
    mine.clear()
    assert [file.name for file in tmp_path.glob("*.json")] == ["1-damaged.json"]


def test_what_was_typed_last_is_kept_when_the_window_ends_unasked(home: Path) -> None:
    """By a signal, Ctrl+C in its terminal, or a fault, less than two seconds after the page was kept last."""
    app = App(lambda: None, "tcp://127.0.0.1:1")
    for at, word in ((0, "Once"), (4, " upon")):
        app.tell(e.Edit(at, at, word, "typed"))
        app.tell(e.Tick(app.state.now, 1e9))
    app.close()
    (file,) = (home / "data" / "gpt2d" / "autosave").glob("*.json")
    assert msgspec.json.decode(file.read_bytes(), type=Autosaved).text == "Once upon"


def test_a_page_that_was_left_behind_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Once\r\n")
    before = page("")
    open_(before, tmp_path, "a.txt")
    apply(before, e.Select(4, 4))
    written(before, " x")
    written(before, " y", "regenerate")
    (saved,) = kept(before, 199.0)
    state = page("")
    state.left_behind, state.recovering = {"one": saved, "two": Autosaved("two")}, True
    typed(state, "dirty")
    run(state, e.Recover("one"))
    assert state.confirm == "recover" and state.page.document.text == "dirty", "what is there is asked about"
    run(state, e.Do("confirmed"))
    assert state.page.document.text == "Once y\n" and state.page.path == tmp_path / "a.txt" and state.page.dirty
    assert state.page.document.cursor == 7, "one goes on where the text ends"
    apply(state, e.Select(5, 5))
    assert takes(state) == [" x", " y"]
    assert [*state.left_behind] == ["two"] and state.said("file") == "another page was left behind"
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once\n", "the file is a step of undo away"
    apply(state, e.Do("redo"))
    run(state, e.Do("save"))
    assert (tmp_path / "a.txt").read_bytes() == b"Once y\r\n"
    run(state, e.Forget("two"))
    assert state.left_behind == {}


def test_branches_stay_beside_the_text(tmp_path: Path) -> None:
    state = page("Once")
    written(state, " x")
    written(state, " y", "regenerate")
    save_as(state, tmp_path, "a.txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "a.txt.gpt2d.json"]
    assert (tmp_path / "a.txt").read_text() == "Once y"
    again = page("")
    open_(again, tmp_path, "a.txt")
    apply(again, e.Select(6, 6))
    assert takes(again) == [" x", " y"] and not again.page.dirty
    apply(again, e.NameNode(min(again.page.tree.nodes), "first"))
    for effect in apply(again, e.Tick(60.0, 1e9)):
        if isinstance(effect, e.SaveBranches):
            disk.carry_out(effect)
    third = page("")
    open_(third, tmp_path, "a.txt")
    assert [node.name for node in third.page.tree.nodes.values()] == ["first", ""]


@POSIX
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    state = page("")
    open_(state, tmp_path, "pipe")
    assert "pipe is not a file" in state.files.error
    typed(state, "Once")
    save_as(state, tmp_path, "pipe")
    assert "no file that could be replaced" in state.files.error and (tmp_path / "pipe").is_fifo()
    written(state, " x")
    (tmp_path / "a.txt.gpt2d.json").mkdir()
    save_as(state, tmp_path, "a.txt")
    assert (tmp_path / "a.txt").read_text() == "Once x" and not state.page.dirty
    assert state.said("branches").startswith("the text is saved, its branches are not:")


def test_branches_of_another_text_are_offered_and_never_lost(tmp_path: Path) -> None:
    state = page("Once")
    written(state, " x")
    save_as(state, tmp_path, "a.txt")
    (tmp_path / "a.txt").write_text("Twice")
    for use in (True, False):
        again = page("")
        open_(again, tmp_path, "a.txt")
        assert not again.page.tree.nodes and "another version" in again.said("branches")
        if use:
            apply(again, e.Do("use branches"))
            assert again.said("branches") == "" and again.page.document.text == "Twice"
            apply(again, e.GoTo(max(again.page.tree.nodes)))
            assert again.page.document.text == "Once x"
    apply(again, e.Select(5, 5))
    written(again, " y")
    run(again, e.Do("save"))
    last = page("")
    open_(last, tmp_path, "a.txt")
    assert sorted(node.text for node in last.page.tree.nodes.values()) == [" x", " y"]


NODE = Node(1, 2, Passage(" x", ((0, 2),)))
PLACE = Place(2, 0, Passage("Once"), [1], 1)
GOOD = Branches(sidecar.digest("Once x"), [NODE], [PLACE], Passage("Once"), [], [(4, 6, 1)])


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, places=[replace(PLACE, parent=1)]),
        replace(GOOD, places=[replace(PLACE, nodes=[])]),
        replace(GOOD, places=[replace(PLACE, nodes=[1, 1])]),
        replace(GOOD, places=[]),
        replace(GOOD, nodes=[NODE, NODE]),
        replace(GOOD, nodes=[replace(NODE, id=-1)]),
        replace(GOOD, nodes=[replace(NODE, passage=Passage("x", ((0, 2),)))]),
        replace(GOOD, nodes=[replace(NODE, passage=Passage("\0"))]),
        replace(GOOD, spans=[(4, 6, 1), (5, 7, 1)]),
        replace(GOOD, version=2),
    ],
)
def test_branches_that_somebody_else_wrote_are_checked(tmp_path: Path, bad: Branches) -> None:
    assert sidecar.unpacked(sidecar.packed(GOOD)) == GOOD
    (tmp_path / "a.txt").write_text("Once x")
    for data in (sidecar.packed(bad), b"", b"[" * 100_000, b'{"digest": 1}', sidecar.packed(bad)[:-9]):
        sidecar.beside(tmp_path / "a.txt").write_bytes(data)
        state = page("")
        open_(state, tmp_path, "a.txt")
        assert state.page.document.text == "Once x" and not state.page.tree.nodes
        assert state.said("branches").startswith("a.txt.gpt2d.json cannot be used")


def test_marks_beyond_the_text_are_those_of_another() -> None:
    assert GOOD.belong_to("Once x") and not replace(GOOD, spans=[(4, 7, 1)]).belong_to("Once x")
    assert sidecar.snapshot(Document("x"), Tree()) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is text")
def test_a_name_that_is_no_text_is_not_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("text")
    state = page("")
    run(state, e.OpenRecent(str(tmp_path / name)))
    assert state.page.document.text == "text" and state.preferences.last == "" and state.preferences.files == []
    typed(state, "!")
    (saved,) = kept(state, 99.0)
    Autosave(tmp_path / "kept", disk.write).write(saved)
    run(state, e.Do("save"))
    assert (tmp_path / name).read_text() == "text!" and msgspec.json.encode(state.preferences)
    (tmp_path / "caf?.txt").write_text("another's")
    run(state, e.Do("save as"))
    assert state.files.name == "caf? 2.txt", "what stands for its name is another file's"


def test_recent_files_open_where_one_was(tmp_path: Path) -> None:
    state = page("")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
        open_(state, tmp_path, f"{name}.txt")
        apply(state, e.Select(3, 3))
    run(state, e.OpenRecent(str(tmp_path / "a.txt")))
    assert state.page.document.text == "text a" and state.page.document.cursor == 3
    assert [Path(path).name for path, _ in state.preferences.files] == ["a.txt", "c.txt", "b.txt"]
    apply(state, e.Do("quit"))
    assert state.quitting and state.preferences.last == str(tmp_path / "a.txt")
    started = AppState(preferences=state.preferences)
    typed(started, "at once")
    apply(started, e.Opened(tmp_path / "a.txt", TextFile(b"text a"), at_start=True))
    assert started.page.document.text == "at once", "what is typed before it has come stays"
    started = ready()
    apply(started, e.Do("generate"))
    assert started.page.busy
    apply(started, e.Opened(tmp_path / "a.txt", TextFile(b"text a"), at_start=True))
    assert started.page.busy and not started.page.document.text, "and what is generated"


def test_the_history_is_kept_across_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, state = tmp_path / "generations.jsonl", page("Once")
    written(state, " x")
    written(state, " y", "regenerate")
    (effect,) = (effect for effect in apply(state, e.Tick(5.0, 1e9)) if isinstance(effect, e.KeepHistory))
    past.append(file, effect.entries)
    assert not any(isinstance(effect, e.KeepHistory) for effect in apply(state, e.Tick(6.0, 1e9))), "once"
    with file.open("ab") as stream:
        stream.write(b"damaged\n" + b"[" * 9_999 + b"\n\n")
    past.append(file, effect.entries[1:])
    entries = past.read(file, disk.write)
    assert [(entry.number, entry.result.text) for entry in entries] == [(1, " x"), (2, " y"), (3, " y")]
    assert all(entry.result.logprobs == [] and entry.prompt == "Once" for entry in entries)
    monkeypatch.setattr(past, "MAX_HISTORY", 2)
    assert [entry.result.text for entry in past.read(file, disk.write)] == [" y", " y"]
    assert file.read_bytes().count(b"\n") == 2, "a file that has grown too long is cut"
    again = page("")
    again.history.entries.extend(entries)
    again.history.kept = 3
    apply(again, e.Restore(1))
    assert again.page.document.text == "Once x"
    assert apply(again, e.Do("clear history")) == [e.ForgetHistory()] and not again.history.entries
    written(again, " z")
    assert [entry.number for entry in again.history.entries] == [4], "what the tree took for 3 would be another one"
    (effect,) = (effect for effect in apply(again, e.Tick(5.0, 1e9)) if isinstance(effect, e.KeepHistory))
    assert [entry.number for entry in effect.entries] == [4], "and it is kept on the disk"


@POSIX
def test_the_history_is_this_users_alone(tmp_path: Path) -> None:
    past.append(tmp_path / "folder" / "generations.jsonl", [])
    assert (tmp_path / "folder" / "generations.jsonl").stat().st_mode & 0o777 == 0o600


def test_who_saves_in_order_to_leave_saves_all_that_is_shown(tmp_path: Path) -> None:
    state = page("Once")
    apply(state, e.Do("generate"))
    piece(state, " upon")
    apply(state, e.Do("quit"))
    assert state.confirm == "quit"
    apply(state, e.Do("save"))
    piece(state, " a")
    effects = apply(state, e.ChooseFile(str(tmp_path), "a.txt", done=True))
    assert e.Cancel("page") in effects
    piece(state, " time")  # which was on its way
    (save,) = (effect for effect in effects if isinstance(effect, e.SaveFile))
    saved = disk.carry_out(save)
    assert saved
    apply(state, saved)
    assert state.quitting and (tmp_path / "a.txt").read_text() == state.page.document.text == "Once upon a"
