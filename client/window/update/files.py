"""Part of update.apply for opening, saving, exporting and keeping, with the questions about what would be lost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Literal, assert_never

from client.window import events as e, sidecar
from client.window.autosave import Autosaved
from client.window.document import Document
from client.window.preferences import MAX_FILES
from client.window.state import AppState
from client.window.textfile import TextFile, is_text, told
from client.window.tree import Tree
from client.window.update import branches, notices

AUTOSAVE_S = 2.0
"""Seconds between two times that a page is kept."""


def apply(state: AppState, message: e.FileEvent) -> list[e.Effect]:
    page, dialog = state.page, state.files
    match message:
        case e.Listed(folder, listing):
            dialog.folder, dialog.listing = folder, listing
            dialog.error = ""
            if dialog.waiting:  # what was typed is a folder
                dialog.name, dialog.waiting = "", False
            elif dialog.proposed and dialog.proposed == dialog.name:
                dialog.name, dialog.replaced = _free(dialog.name, listing), True
            dialog.proposed = ""
        case e.Opened():
            return _opened(state, message)
        case e.Recovered():
            return _recovered(state, message)
        case e.Saved(path, file, trouble):
            page.path, page.file = path, file
            page.branches_saved, page.offered = page.tree.version, None
            _close(state)
            remember(state)
            notices.inform(state, "file", f"saved {path}")
            if trouble:
                notices.warn(state, "branches", trouble)
            forgets = [] if page.dirty else [e.ForgetPage()]  # what was typed meanwhile is kept
            return [*forgets, *(_confirmed(state) if state.confirm else [])]
        case e.Exists(path, content):
            _close(state)
            dialog.exists, dialog.content = path, content
        case e.Exported(path):
            _close(state)
            notices.inform(state, "file", f"exported to {path}")
        case e.DiskFailed(error):
            dialog.error, state.confirm = error, ""
            dialog.waiting, dialog.proposed = False, ""
            if not dialog.purpose:
                notices.warn(state, "file", error)
        case e.NotKept(what, error):
            if error:
                notices.warn(state, what, f"{what}: {error}")
            else:
                notices.drop(state, what)
        case _:
            assert_never(message)
    return []


def act(state: AppState, action: e.FileAction) -> list[e.Effect]:
    match action:
        case e.ChooseFile():
            return _choose_file(state, action)
        case e.OpenRecent(path):
            return _leave(state, "recent", path)
        case e.Dropped(paths):
            if len(paths) > 1:
                notices.inform(state, "dropped", f"{len(paths)} files were dropped; the page is for one: {paths[0]}")
            return _leave(state, "recent", paths[0]) if paths else []
        case e.Recover(name):
            state.recovering = False
            return _leave(state, "recover", name)
        case e.Forget(name):
            state.left_behind.pop(name, None)
            state.recovering = state.recovering and bool(state.left_behind)
            return [e.ForgetPage(name)]
        case _:
            assert_never(action)


def do(state: AppState, what: e.FileWord) -> list[e.Effect]:
    page = state.page
    match what:
        case "new" | "open" | "quit":
            return _leave(state, what)
        case "confirmed":
            return _confirmed(state)
        case "dismissed":
            state.confirm, state.files.exists = "", None
        case "close files":
            _close(state)
            state.confirm = ""
        case "save":
            return _save(state, page.path) if page.path else show_files(state, "save", "page.txt")
        case "save as":
            other, state.files.exists = state.files.exists, None
            if other and state.files.content:
                return show_files(state, "export", told(other.name), state.files.content)
            name = told(page.path.name) if page.path else "page.txt"
            effects = show_files(state, "save", name)
            if page.path and page.path.name == name and not other:  # its own file may be replaced
                state.files.proposed = ""
            return effects
        case "replace":
            path, state.files.exists = state.files.exists, None
            if path and state.files.content:
                return [e.Export(path, state.files.content, replace=True)]
            return _save(state, path, replace=True) if path else []
        case "recover":
            state.recovering = bool(state.left_behind)
        case "recover later":
            state.recovering = False
        case "use branches":
            _use_branches(state)
        case "clear history":
            history = state.history
            history.kept = history.entries[-1].number if history.entries else history.kept
            history.entries.clear()
            history.chosen = None
            return [e.ForgetHistory()]
        case _:
            assert_never(what)
    return []


def keep(state: AppState) -> list[e.Effect]:
    """Keep what has changed, some seconds after the last time."""
    return [*_keep_history(state), *_keep_page(state)]


def _keep_history(state: AppState) -> list[e.Effect]:
    history = state.history
    new = list(itertools.takewhile(lambda entry: entry.number > history.kept, reversed(history.entries)))[::-1]
    history.kept = new[-1].number if new else history.kept
    return [e.KeepHistory(new)] if new else []


def _keep_page(state: AppState) -> list[e.Effect]:
    page = state.page
    if state.now < page.autosaved_at + AUTOSAVE_S:
        return []
    if page.dirty and page.autosaved != page.document.version:
        page.autosaved, page.autosaved_at = page.document.version, state.now
        return [e.KeepPage(kept(state))]
    if page.path and not (page.dirty or page.generating) and page.branches_saved != page.tree.version:
        page.branches_saved, page.autosaved_at = page.tree.version, state.now
        beside = sidecar.snapshot(page.document, page.tree)
        return [e.SaveBranches(page.path, beside)] if beside and not page.offered else []
    return []


def kept(state: AppState) -> Autosaved:
    """Return the page as it is kept for a restart after a crash."""
    page = state.page
    return Autosaved(
        page.document.text,
        named(page.path),
        state.unix,
        sidecar.snapshot(page.document, page.tree),
    )


def named(path: Path | None) -> str:
    """Return a path as text; empty for none, and for one in another encoding, which no file of ours can name."""
    text = str(path) if path else ""
    return text if is_text(text) else ""


def remember(state: AppState) -> None:
    """Note the page's file among the recent ones, with the place of the cursor."""
    page, preferences = state.page, state.preferences
    preferences.last = named(page.path)
    if preferences.last:
        others = [recent for recent in preferences.files if recent[0] != preferences.last]
        preferences.files = [(preferences.last, page.document.cursor), *others][:MAX_FILES]


def show_files(
    state: AppState, purpose: Literal["open", "save", "export"], name: str, content: str = ""
) -> list[e.Effect]:
    """Open the file dialog, where the page's file is, or where it was last."""
    dialog = state.files
    dialog.purpose, dialog.name = purpose, name
    dialog.proposed = name
    dialog.content, dialog.error = content, ""
    dialog.waiting = False
    near = state.page.path or next((Path(path) for path, _ in state.preferences.files), None)
    folder = str(state.page.path.parent) if state.page.path else dialog.folder
    folder = folder or (str(near.parent) if near else "~")
    if folder != dialog.folder:  # a name that is given before the list comes belongs there, and none of it is known
        dialog.folder, dialog.listing = folder, []
    return [e.ListFolder(folder)]


def _free(name: str, listing: list[tuple[str, bool]]) -> str:
    """Return a name that no file has: this one, or with the first number that makes it one."""
    taken, path = {other for other, _ in listing}, Path(name)
    others = (f"{path.stem} {number}{path.suffix}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], others) if free not in taken)


def _close(state: AppState) -> None:
    state.files.purpose, state.files.waiting = "", False


def _show(state: AppState, path: Path | None, file: TextFile) -> list[e.Effect]:
    """Put another text on the page."""
    page = state.page
    effects = _end_writing(state)
    for going in page.late.values():
        going.nodes = {}  # those of the other page
    remember(state)
    page.document, page.tree = Document(file.text), Tree()
    page.document.select(0)
    page.path, page.file = path, file
    page.offered, page.autosaved = None, 0
    page.branches_saved = page.tree.version
    page.move_cursor = True
    page.uncount()
    state.focus_page = max(1, state.focus_page)  # whoever opens a text writes on at its end
    notices.drop(state, "page", "branches", "file")
    _close(state)
    remember(state)
    return effects


def _end_writing(state: AppState) -> list[e.Effect]:
    """End what is being written on the page, or waits for its model; a result is left to the history."""
    page, going = state.page, state.page.generating
    wanted, page.wanted = page.wanted, None
    state.asking = None
    page.branch, page.batch = None, []
    if going is None:
        return [e.Cancel("load")] if wanted and state.models.loading else []
    page.leave(going)
    branches.ended(state, "")
    return [e.Cancel("page")]


def _opened(state: AppState, message: e.Opened) -> list[e.Effect]:
    page, path = state.page, message.path
    if message.at_start and (page.dirty or page.path or page.document.version or page.busy):
        return []
    effects = _show(state, path, message.file)
    if message.file.keeps:
        notices.inform(state, "file", f"{path.name} has {message.file.keeps}: a line that you change loses them")
    if message.trouble:
        notices.warn(state, "branches", message.trouble)
    _take_branches(state, message.branches)
    page.document.select(message.cursor)
    remember(state)
    return [*effects, e.ForgetPage()]


def _recovered(state: AppState, message: e.Recovered) -> list[e.Effect]:
    """Put a page on this one that a crashed session has left behind; once it is kept here, that one is not needed."""
    page, saved = state.page, message.saved
    effects = _show(state, message.path, message.file)
    page.document.edit(0, len(page.document.text), saved.text, "restored")
    _take_branches(state, saved.branches)
    page.document.select(e.END)
    state.left_behind.pop(message.name, None)
    if state.left_behind:
        many = len(state.left_behind)
        also = "another page was" if many == 1 else f"{many} other pages were"
        notices.inform(state, "file", f"{also} left behind", e.Do("recover"), "Show")
    page.autosaved, page.autosaved_at = page.document.version, state.now
    return [*effects, e.KeepPage(kept(state)), e.ForgetPage(message.name)]


def _take_branches(state: AppState, branches: sidecar.Branches | None) -> None:
    """Use branches that belong to the page's text; those of another text are offered."""
    page = state.page
    if branches is None:
        return
    if branches.belong_to(page.document.text):
        page.tree.restore(branches.nodes, branches.places, branches.bare)
        page.document.written = branches.written()
        page.branches_saved = page.tree.version
        return
    page.offered = branches
    text = "the branches beside this file belong to another version of its text"
    notices.inform(state, "branches", text, e.Do("use branches"), "Show them in the tree", until=math.inf)


def _use_branches(state: AppState) -> None:
    """Add branches of another version of the text to the tree."""
    page = state.page
    if page.offered:
        page.tree.add_all(page.offered.nodes, page.offered.places)
    page.offered = None
    notices.drop(state, "branches")


def _save(state: AppState, path: Path, *, replace: bool = False) -> list[e.Effect]:
    page = state.page
    effects = _end_writing(state) if state.confirm else []  # the page is left then: what came later would be lost
    if not page.generating:
        page.tree.settle(page.document)
    if page.tree.nodes:
        _use_branches(state)  # what was beside the file is not lost where others take its place
    beside = sidecar.snapshot(page.document, page.tree)
    known = page.file.data if path == page.path else None
    return [*effects, e.SaveFile(path, page.file.with_text(page.document.text), beside, known, replace)]


def _choose_file(state: AppState, message: e.ChooseFile) -> list[e.Effect]:
    """Do what the file dialog is for; it stays open until that is done."""
    dialog = state.files
    dialog.name = message.name
    if not message.done or not message.name:
        return [e.ListFolder(message.folder)]
    unknown = message.name == dialog.proposed  # whether it is free, until the list comes
    if dialog.waiting or unknown or not dialog.purpose:
        return []
    dialog.waiting, dialog.error = True, ""
    path = Path(message.name) if message.name.startswith("~") else Path(message.folder) / message.name
    listed = (message.name, False) in dialog.listing  # of such a name the dialog says that it is replaced
    match dialog.purpose:
        case "open":
            return _open(state, path)
        case "export":
            return [e.Export(path, dialog.content, replace=listed)]
        case "save":
            return _save(state, path, replace=path != state.page.path and listed)
        case _:
            assert_never(dialog.purpose)


def _open(state: AppState, path: Path) -> list[e.Effect]:
    """Open a file at the place where the cursor was, if it is one of the recent ones."""
    return [e.OpenFile(path, dict(state.preferences.files).get(named(path), e.END))]


def _leave(
    state: AppState, what: Literal["new", "open", "quit", "recent", "recover"], wanted: str = ""
) -> list[e.Effect]:
    """Leave the page for something else, once the user has said what becomes of unsaved changes."""
    state.confirm, state.files.wanted = what, wanted
    return [] if state.page.dirty else _confirmed(state)


def _confirmed(state: AppState) -> list[e.Effect]:
    """Go on with what waited for the answer about unsaved changes."""
    what, state.confirm = state.confirm, ""
    wanted = state.files.wanted
    match what:
        case "new":
            return [*_show(state, None, TextFile()), e.ForgetPage()]
        case "open":
            return show_files(state, "open", "")
        case "recent":
            return _open(state, Path(wanted))
        case "recover":
            saved = state.left_behind.get(wanted)
            return [e.OpenRecovered(wanted, saved)] if saved else []
        case "quit":
            remember(state)
            state.quitting = True
            return [e.ForgetPage()]
        case "":
            return []
        case _:
            assert_never(what)
