"""Dialogs: files, unsaved changes, a text to restore; and the list of keys."""

from __future__ import annotations

from pathlib import Path

from imgui_bundle import ImVec2, imgui

from client.window import chords
from client.window.events import Action, ChooseFile, Do, Enter
from client.window.state import AppState
from client.window.views import widgets

TITLES = {"open": "Open", "save": "Save as", "export": "Export"}


def draw(state: AppState) -> list[Action]:
    return [*draw_files(state), *draw_question(state), *draw_download(state), *draw_recovered(state)]


def modal(title: str) -> bool:
    """Begin a dialog in the middle of the window, which is open for as long as it is drawn."""
    if not imgui.is_popup_open(title):
        imgui.open_popup(title)
    imgui.set_next_window_pos(imgui.get_main_viewport().get_center(), imgui.Cond_.appearing, ImVec2(0.5, 0.5))
    return imgui.begin_popup_modal(title, None, imgui.WindowFlags_.always_auto_resize)[0]


def draw_files(state: AppState) -> list[Action]:
    files, actions = state.files, list[Action]()
    if not files.purpose or not modal(f"{TITLES[files.purpose]}###Files"):
        return actions
    size = imgui.get_font_size()
    imgui.text_disabled(files.folder)
    if imgui.begin_child("listing", (size * 32, size * 16), imgui.ChildFlags_.borders):
        if imgui.selectable("..", False, imgui.SelectableFlags_.no_auto_close_popups)[0]:
            actions.append(ChooseFile(str(Path(files.folder).parent), "", done=False))
        for name, is_folder in files.listing:
            label = widgets.item(f"{name}{'/' if is_folder else ''}")
            if imgui.selectable(label, name == files.name, imgui.SelectableFlags_.no_auto_close_popups)[0]:
                actions.append(
                    ChooseFile(str(Path(files.folder) / name), "", done=False)
                    if is_folder
                    else Enter("files", "name", name)
                )
    imgui.end_child()
    imgui.set_next_item_width(-1)
    actions += widgets.field("##file name", "name", "files", "name", files.name)
    there = files.purpose != "open" and (files.name, False) in files.listing
    if there:
        widgets.colored("a file of this name exists and will be replaced", "warn")
    if files.error:
        widgets.wrapped(files.error, "bad")
    imgui.begin_disabled(not files.name)
    if imgui.button(f"{'Replace' if there else TITLES[files.purpose]}###OK"):
        actions.append(ChooseFile(files.folder, files.name, done=True))
    imgui.end_disabled()
    imgui.same_line()
    if imgui.button("Cancel###CancelFiles") or imgui.is_key_pressed(imgui.Key.escape):
        actions.append(Do("close files"))
    imgui.end_popup()
    return actions


def draw_question(state: AppState) -> list[Action]:
    actions = list[Action]()
    if not state.confirm or state.files.purpose or not modal("Unsaved changes"):
        return actions
    imgui.text("The page has changes that are not saved.")
    for label, action in (
        ("Save", Do("save")),
        ("Do not save", Do("confirmed")),
        ("Cancel###CancelQuestion", Do("dismissed")),
    ):
        if imgui.button(label):
            actions.append(action)
        imgui.same_line()
    if imgui.is_key_pressed(imgui.Key.escape):
        actions.append(Do("dismissed"))
    imgui.end_popup()
    return actions


def draw_download(state: AppState) -> list[Action]:
    """Ask whether models may be downloaded."""
    actions = list[Action]()
    if state.asking is None or not modal("Download"):
        return actions
    for info in state.asking.downloads:
        size = (
            f"of {widgets.megabytes(info.file_bytes)}" if info.file_bytes else "whose size is known once it has begun"
        )
        imgui.text(widgets.printable(f"{info.name} is not on the server's disk yet. It is a download {size}."))
    imgui.set_item_default_focus()
    enter = imgui.is_key_pressed(imgui.Key.enter, False) or imgui.is_key_pressed(imgui.Key.keypad_enter, False)
    if imgui.button("Download and go on") or (enter and not imgui.is_window_appearing()):
        actions.append(Do("agree"))
    imgui.same_line()
    if imgui.button("Cancel###CancelDownload") or imgui.is_key_pressed(imgui.Key.escape):
        actions.append(Do("decline"))
    imgui.end_popup()
    return actions


def draw_recovered(state: AppState) -> list[Action]:
    actions = list[Action]()
    if state.recovered is None or not modal("Restore"):
        return actions
    imgui.text("The last session ended unexpectedly. Its text was saved:")
    imgui.text_disabled(widgets.printable(" ".join(state.recovered[:300].split()[:30])))
    if imgui.button("Restore it"):
        actions.append(Do("restore"))
    imgui.same_line()
    if imgui.button("Discard it"):
        actions.append(Do("forget"))
    imgui.end_popup()
    return actions


def draw_keys() -> None:
    if imgui.begin_table("keys", 2):
        for key, what in chords.listed():
            imgui.table_next_row()
            imgui.table_next_column()
            imgui.text(key)
            imgui.table_next_column()
            imgui.text_disabled(what)
        imgui.end_table()
