"""Dialogs: files, unsaved changes, a text to restore; and the list of keys."""

from __future__ import annotations

from pathlib import Path

from imgui_bundle import ImVec2, imgui

from client.window import chords
from client.window.events import Action, ChooseFile, Do, Enter, Forget, OpenRecent, Recover
from client.window.state import AppState
from client.window.views import widgets

LISTING = 32
"""Width of a folder's list, in font sizes."""
NAME = "##file name"
TITLES = {"open": "Open", "save": "Save as", "export": "Export"}


def draw(state: AppState) -> list[Action]:
    asked = [*draw_question(state), *draw_exists(state), *draw_download(state), *draw_recovered(state)]
    return [*draw_files(state), *asked]


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
    imgui.push_text_wrap_pos(imgui.get_cursor_pos_x() + size * LISTING)
    imgui.text_disabled(widgets.printable(files.folder))
    imgui.pop_text_wrap_pos()
    if imgui.begin_child("listing", (size * LISTING, size * 16), imgui.ChildFlags_.borders):
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
            twice = imgui.is_item_hovered() and imgui.is_mouse_double_clicked(imgui.MouseButton_.left)
            if twice and files.purpose == "open" and not is_folder:
                actions.append(ChooseFile(files.folder, name, done=True))
    imgui.end_child()
    imgui.set_next_item_width(-1)
    if imgui.is_window_appearing():
        imgui.set_keyboard_focus_here()
    field = imgui.internal.get_input_text_state(imgui.get_id(NAME))
    if files.replaced and field is not None:
        field.reload_user_buf_and_select_all()
    files.replaced = False  # the field has the new text now
    actions += widgets.field(NAME, "name, or a folder", "files", "name", files.name)
    there = files.purpose != "open" and (files.name, False) in files.listing
    if there:
        widgets.colored("a file of this name exists and will be replaced", "warn")
    if files.error:
        widgets.wrapped(files.error, "bad")
    imgui.begin_disabled(not files.name or files.waiting)
    if imgui.button(f"{'Replace' if there else TITLES[files.purpose]}###OK") or (files.name and enters()):
        actions.append(ChooseFile(files.folder, files.name, done=True))
    imgui.end_disabled()
    imgui.same_line()
    if imgui.button("Cancel###CancelFiles") or imgui.is_key_pressed(imgui.Key.escape):
        actions.append(Do("close files"))
    imgui.end_popup()
    return actions


def enters() -> bool:
    """Return True if Enter was pressed, after the one that opened the dialog."""
    enter = imgui.is_key_pressed(imgui.Key.enter, False) or imgui.is_key_pressed(imgui.Key.keypad_enter, False)
    on_button = imgui.is_any_item_focused() and not imgui.get_io().want_text_input
    return enter and not on_button and not imgui.is_window_appearing()


def draw_question(state: AppState) -> list[Action]:
    if not state.confirm or state.files.purpose or state.files.exists or not modal("Unsaved changes"):
        return []
    imgui.text("The page has changes that are not saved.")
    return answer((("Save", Do("save")), ("Do not save", Do("confirmed")), ("Cancel", Do("dismissed"))))


def draw_exists(state: AppState) -> list[Action]:
    path = state.files.exists
    if path is None or state.files.purpose or not modal("The file is there"):
        return []
    changed = path == state.page.path and bool(state.page.file.data) and not state.files.content
    what = "was changed by another program since it was opened here" if changed else "exists already"
    imgui.text(widgets.printable(f"{path.name} {what}."))
    imgui.text_disabled(widgets.printable(str(path.parent)))
    return answer((("Save as another file", Do("save as")), ("Replace it", Do("replace")), ("Cancel", Do("dismissed"))))


def answer(buttons: tuple[tuple[str, Action], ...]) -> list[Action]:
    """Draw the answers to a question and end its dialog: Enter is the first, which loses nothing, Esc the last."""
    actions = list[Action]()
    for number, (label, action) in enumerate(buttons):
        if imgui.button(label):
            actions.append(action)
        if not number:
            imgui.set_item_default_focus()
            if not actions and enters():
                actions.append(action)
        imgui.same_line()
    if imgui.is_key_pressed(imgui.Key.escape):
        actions.append(buttons[-1][1])
    imgui.end_popup()
    return actions[:1]


def draw_download(state: AppState) -> list[Action]:
    """Ask whether models may be downloaded."""
    if state.asking is None or not modal("Download"):
        return []
    for info in state.asking.downloads:
        size = (
            f"of {widgets.megabytes(info.file_bytes)}" if info.file_bytes else "whose size is known once it has begun"
        )
        imgui.text(widgets.printable(f"{info.name} is not on the server's disk yet. It is a download {size}."))
    return answer((("Download and go on", Do("agree")), ("Cancel", Do("decline"))))


def draw_recovered(state: AppState) -> list[Action]:
    """Offer the pages that crashed sessions have left behind."""
    actions = list[Action]()
    if not state.recovering or state.confirm or state.files.exists or not modal("Restore"):
        return actions
    many = len(state.left_behind)
    imgui.text("A session ended unexpectedly. Its page was kept:" if many == 1 else f"{many} pages were left behind:")
    for number, (name, saved) in enumerate(state.left_behind.items()):
        at = widgets.moment(saved.at, "%Y-%m-%d %H:%M")
        imgui.text(widgets.printable(f"{at}  {Path(saved.path).name if saved.path else 'not saved yet'}"))
        imgui.text_disabled(widgets.printable(" ".join(saved.text[:300].split()[:20])[:100]))
        chosen = imgui.button(f"Restore it###restore {name}")
        if not number:
            imgui.set_item_default_focus()
        if chosen or (not number and enters()):
            actions.append(Recover(name))
        imgui.same_line()
        if imgui.button(f"Discard it###discard {name}"):
            actions.append(Forget(name))
        imgui.separator()
    if imgui.button("Later") or imgui.is_key_pressed(imgui.Key.escape):
        actions.append(Do("recover later"))
    imgui.end_popup()
    return actions


def draw_recent(state: AppState) -> list[Action]:
    """Draw the end of the File menu: recent files, and pages that were left behind."""
    actions = list[Action]()
    imgui.separator()
    if imgui.begin_menu("Open recent", bool(state.preferences.files)):
        for path, _ in state.preferences.files:
            if imgui.menu_item(widgets.item(f"{Path(path).name}   {Path(path).parent}"), "", False)[0]:
                actions.append(OpenRecent(path))
        imgui.end_menu()
    if imgui.menu_item("Pages left behind", "", False, bool(state.left_behind))[0]:
        actions.append(Do("recover"))
    return actions


def draw_keys(_state: AppState) -> list[Action]:
    if imgui.begin_table("keys", 2):
        imgui.table_setup_column("keys", imgui.TableColumnFlags_.width_stretch, 1.0)
        imgui.table_setup_column("what", imgui.TableColumnFlags_.width_stretch, 1.2)
        for key, what in chords.listed():
            imgui.table_next_row()
            imgui.table_next_column()
            widgets.wrapped(key, "text")
            imgui.table_next_column()
            widgets.wrapped(what, "dim")
        imgui.end_table()
    return []
