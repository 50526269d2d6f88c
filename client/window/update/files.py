"""Part of update.apply for opening, saving and exporting, with the questions about unsaved changes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from client.window import events as e
from client.window.document import Document
from client.window.state import AppState
from client.window.textfile import TextFile
from client.window.tree import Tree
from client.window.update import notices


def apply(state: AppState, message: e.FileMessage) -> list[e.Effect]:
    match message:
        case e.Listed(folder, listing):
            state.files.folder, state.files.listing = folder, listing
            state.files.error = ""
        case e.Opened(path, file):
            if file.keeps:
                notices.inform(state, "file", f"{path.name} has {file.keeps}: a line that you change loses them")
            return [*_show(state, path, file), e.Autosave(None)]
        case e.Saved(path, file):
            state.page.path, state.page.file = path, file
            notices.inform(state, "file", f"saved {path}")
            return [e.Autosave(None), *(_confirmed(state) if state.confirm else [])]
        case e.Exported(path):
            notices.inform(state, "file", f"exported to {path}")
        case e.DiskFailed(error):
            state.files.error, state.confirm = error, ""
            notices.warn(state, "file", error)
        case e.ChooseFile():
            return _choose_file(state, message)
        case _:
            assert_never(message)
    return []


def do(state: AppState, what: e.FileWord) -> list[e.Effect]:
    page = state.page
    match what:
        case "new" | "open" | "quit":
            state.confirm = what
            return [] if page.dirty else _confirmed(state)
        case "confirmed":
            return _confirmed(state)
        case "dismissed":
            state.confirm = ""
        case "close files":
            state.files.purpose, state.confirm = "", ""
        case "save":
            if page.path:
                return [e.SaveFile(page.path, page.file.with_text(page.document.text))]
            return show_files(state, "save", "page.txt")
        case "save as":
            return show_files(state, "save", page.path.name if page.path else "page.txt")
        case "restore":
            if state.recovered is not None and not page.generating:
                page.document.edit(0, len(page.document.text), state.recovered, "restored")
                page.move_cursor, state.recovered = True, None
        case "forget":
            state.recovered = None
            return [e.Autosave(None)]
        case _:
            assert_never(what)
    return []


def show_files(
    state: AppState, purpose: Literal["open", "save", "export"], name: str, content: str = ""
) -> list[e.Effect]:
    """Open the file dialog."""
    files = state.files
    files.purpose, files.name = purpose, name
    files.content, files.error = content, ""
    files.folder = files.folder or (str(state.page.path.parent) if state.page.path else "~")
    return [e.ListFolder(files.folder)]


def _show(state: AppState, path: Path | None, file: TextFile) -> list[e.Effect]:
    """Put another text on the page."""
    page = state.page
    was_generating = page.generating is not None
    page.generating = page.branch = None
    page.batch = []
    page.document, page.tree = Document(file.text), Tree()
    page.document.select(0)
    page.path, page.file = path, file
    page.move_cursor, page.counted = True, -1
    notices.drop(state, "page")
    state.files.purpose = ""
    return [e.Cancel("page")] if was_generating else []


def _choose_file(state: AppState, message: e.ChooseFile) -> list[e.Effect]:
    files = state.files
    files.name = message.name
    if not message.done or not message.name:
        files.folder = message.folder
        return [e.ListFolder(message.folder)]
    path = Path(message.folder) / message.name
    purpose, files.purpose = files.purpose, ""
    match purpose:
        case "open":
            return [e.OpenFile(path)]
        case "export":
            return [e.Export(path, files.content)]
        case "save":
            return [e.SaveFile(path, state.page.file.with_text(state.page.document.text))]
        case "":  # the dialog was closed in this frame
            return []
        case _:
            assert_never(purpose)


def _confirmed(state: AppState) -> list[e.Effect]:
    """Go on with what waited for the answer about unsaved changes."""
    what, state.confirm = state.confirm, ""
    match what:
        case "new":
            return [*_show(state, None, TextFile()), e.Autosave(None)]
        case "open":
            return show_files(state, "open", "")
        case "quit":
            state.quitting = True
            return [e.Autosave(None)]
        case "":
            return []
        case _:
            assert_never(what)
