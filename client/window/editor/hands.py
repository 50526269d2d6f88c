"""Keyboard and mouse of Dear ImGui, for the page: what they do is in editing.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imgui_bundle import ImVec2, imgui

from client.window.editor import editing
from client.window.editor.editing import Edit, Select, Way
from client.window.editor.layout import Layout
from client.window.editor.view import View

K = imgui.Key
WAYS: dict[imgui.Key, Way] = {
    K.left_arrow: "left",
    K.right_arrow: "right",
    K.up_arrow: "up",
    K.down_arrow: "down",
    K.home: "home",
    K.end: "end",
    K.page_up: "page up",
    K.page_down: "page down",
}
ERASERS = {K.backspace: False, K.delete: True}
ENTERS = (K.enter, K.keypad_enter)
SCROLLED_LINES = 3
"""Number of lines that one notch of the wheel goes by."""
PULL = 8.0
"""How many times the distance to the page's edge a drag beyond it scrolls in a second."""


@dataclass
class Primary:
    """The selection that a middle click pastes, where the system has one."""

    read: Callable[[], str] = lambda: ""
    write: Callable[[str], None] = lambda _text: None


PRIMARY = Primary()


class Working:
    """Text, caret and layout while the input of one frame is worked off: several keys may come in a frame."""

    def __init__(self, layout: Layout, selected: tuple[int, int], view: View) -> None:
        self.layout, self.view = layout, view
        self.selected = selected
        self.done: list[Edit | Select] = []

    @property
    def text(self) -> str:
        return self.layout.text

    @property
    def chosen(self) -> str:
        """The selected text."""
        return self.text[min(self.selected) : max(self.selected)]

    def do(self, what: Edit | Select | None) -> None:
        if isinstance(what, Select):
            self.selected = what.anchor, what.cursor
        elif isinstance(what, Edit):
            self.view.hands.column = None
            self.layout.lay(self.text[: what.start] + what.text + self.text[what.end :], self.layout.width)
            self.selected = (what.start + len(what.text),) * 2
        if what is not None:
            self.done.append(what)
            self.view.reveal = True

    def put(self, text: str, kind: editing.Put) -> None:
        if text:
            self.do(editing.put(self.selected, text, kind))


def keyboard(work: Working, *, enter: bool) -> None:
    """Work off the keys and characters of a frame. `enter`: Enter begins a line; else Shift or Ctrl with it does."""
    io = imgui.get_io()
    if not io.key_super and (not io.key_ctrl or io.key_alt):  # Ctrl+Alt is AltGr
        work.put("".join(chr(c) for c in io.input_queue_characters if c >= 32 and c != 127), "typed")
    mac = io.config_mac_osx_behaviors
    if io.key_alt and not mac:
        return
    for key, way in WAYS.items():
        if imgui.is_key_pressed(key):
            work.do(_moved(work, way, mac))
    for key, forward in ERASERS.items():
        if imgui.is_key_pressed(key):
            if forward and io.key_shift and not io.key_ctrl:
                wish(work, "cut")
            else:
                far = io.key_alt if mac else io.key_ctrl
                work.do(editing.erase(work.text, work.selected, forward=forward, far=far))
    if any(imgui.is_key_pressed(key) for key in ENTERS) and (not io.key_ctrl if enter else io.key_ctrl or io.key_shift):
        work.put("\n", "typed")
    if imgui.is_key_pressed(K.tab) and not io.key_ctrl and not io.key_shift:
        work.put("\t", "typed")
    for key, shift, asked in (
        (K.a, False, "select all"),
        (K.c, False, "copy"),
        (K.insert, False, "copy"),
        (K.x, False, "cut"),
        (K.v, None, "paste"),
    ):
        if io.key_ctrl and not io.key_alt and shift in {None, io.key_shift} and imgui.is_key_pressed(key, key == K.v):
            wish(work, asked)
    if io.key_shift and not io.key_ctrl and imgui.is_key_pressed(K.insert):
        wish(work, "paste")
    if work.chosen and any(isinstance(what, Select) for what in work.done):
        PRIMARY.write(work.chosen)


def _moved(work: Working, way: Way, mac: bool) -> Select:
    io = imgui.get_io()
    far = io.key_ctrl
    if mac and way in {"left", "right"}:
        far = io.key_alt
        if io.key_ctrl:
            way = "home" if way == "left" else "end"
            far = False
    rows = work.view.rows
    return editing.move(work.layout, work.view.hands, work.selected, way, extend=io.key_shift, far=far, rows=rows)


def wish(work: Working, asked: str) -> None:
    """Do what a key or a menu asks for."""
    if asked == "select all":
        work.do(Select(0, len(work.text)))
        work.view.reveal = False
    elif asked == "paste":
        work.put(imgui.get_clipboard_text(), "pasted")
    elif asked in {"copy", "cut"} and work.chosen:
        imgui.set_clipboard_text(work.chosen)
        if asked == "cut":
            work.do(Edit(min(work.selected), max(work.selected), "", "cut"))


def mouse(work: Working, origin: ImVec2, *, hovered: bool) -> None:
    """Work off the mouse. `origin`: where the text begins on the screen, scrolled as it is."""
    io, view = imgui.get_io(), work.view
    at = io.mouse_pos
    line, x = int((at.y - origin.y) // view.line), at.x - origin.x
    offset = work.layout.offset_at(line, x)
    if at.y < origin.y:
        offset = 0
    elif line >= work.layout.count:
        offset = len(work.text)
    if hovered and imgui.is_mouse_clicked(0):
        view.dragging = True
        pressed = editing.press(
            work.layout, view.hands, work.selected, offset, io.mouse_clicked_count[0], extend=io.key_shift
        )
        _select(work, pressed)
    elif view.dragging:
        if imgui.is_mouse_dragging(0, 2.0) or view.moving:
            _select(work, editing.drag(work.layout, view.hands, offset))
        if not imgui.is_mouse_down(0):
            view.dragging = False
            if work.chosen:
                PRIMARY.write(work.chosen)
    if hovered and imgui.is_mouse_clicked(2):
        work.do(Select(offset, offset))
        work.put(PRIMARY.read(), "pasted")
    if hovered and imgui.is_mouse_clicked(1):
        view.menu = True
        if not min(work.selected) <= offset < max(work.selected):
            _select(work, Select(offset, offset))
    view.hovered = work.layout.character_at(line, x) if hovered and not view.dragging and at.y >= origin.y else None


def _select(work: Working, what: Select) -> None:
    """Select by the mouse, under which the page stays as it is."""
    if (what.anchor, what.cursor) != work.selected:
        before = work.view.reveal
        work.do(what)
        work.view.reveal = before


def scroll(view: View, top: float, bottom: float, *, hovered: bool) -> None:
    """Scroll by the wheel, and under a drag that has left the page."""
    io = imgui.get_io()
    if hovered and io.mouse_wheel and not io.key_ctrl:
        view.scroll -= io.mouse_wheel * min(SCROLLED_LINES * view.line, view.height * 0.67)
    beyond = min(0.0, io.mouse_pos.y - top) + max(0.0, io.mouse_pos.y - bottom)
    view.moving = view.dragging and bool(beyond)
    if view.moving:
        view.scroll += beyond * PULL * min(io.delta_time, 0.1)
