"""Draws the page and takes its keyboard and mouse: draw(text, ...) -> edits and selections. Only what is in sight is
drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from imgui_bundle import ImVec2, imgui
from numpy.typing import NDArray

from client.window.editor import hands
from client.window.editor.editing import Edit, Select
from client.window.editor.layout import NEWLINE, Advances, Codes, Layout
from client.window.editor.view import View

LABEL = "##page"
COLUMN = 70
"""Number of characters of a full line."""
SAMPLE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate."
LINE = 1.5
"""Height of a line, in font sizes."""
MARGIN = 1.2
"""Least space beside the text, in font sizes."""
TOP_MARGIN, BELOW = 1.0, 3.0
"""Space above the text and below it, in font sizes."""
CARET = 0.09
"""Width of the caret, in font sizes."""
LINE_END = 0.3
"""Width of a selected line end, in font sizes."""


@dataclass(frozen=True)
class Inks:
    """Colours of the page, as Dear ImGui packs them."""

    paper: int
    text: int
    model: int
    muted: int
    selection: int
    found: int
    chosen: int
    """The match of a search that is selected."""
    shade: int
    rule: int
    """The line where the model's sight begins."""
    caret: int


@dataclass(frozen=True)
class Sheet:
    """What is drawn of a page besides its text."""

    text: str
    selected: tuple[int, int]
    """Anchor and cursor."""
    written: Sequence[tuple[int, int]] = ()
    """Start and end of what the model wrote, in order."""
    found: Sequence[tuple[int, int]] = ()
    shades: Sequence[tuple[int, int, float]] = ()
    """Start, end and strength, 0 to 1."""
    sight: int = 0
    """Where the model's sight begins."""
    sight_label: str = ""
    placeholder: str = ""
    follow: int | None = None
    """Offset at which text is being written."""
    enter: bool = True
    """Enter begins a line."""


class Widths:
    """How wide each character is in a font: asked once for each."""

    def __init__(self, font: imgui.ImFont, size: float, baked: imgui.ImFontBaked) -> None:
        self.font, self.size = font, size
        self._advances: NDArray[np.float32] = np.zeros(0x110000, np.float32)
        """One more than each advance; 0 is not known yet. Pages of it that are never asked for take no memory."""
        self._advances[NEWLINE] = 1.0
        self._learn([ord(c) for c in set(SAMPLE)], baked)
        sample = self._advances[[ord(c) for c in SAMPLE]] - 1.0
        self.column = round(float(sample.mean()) * COLUMN)

    def __call__(self, codes: Codes) -> Advances:
        found = self._advances[codes]
        unknown = codes[found == 0]
        if len(unknown):
            self._learn(np.unique(unknown).tolist(), imgui.get_font_baked())
            found = self._advances[codes]
        return found.astype(np.float64) - 1.0

    def _learn(self, codes: Iterable[int], baked: imgui.ImFontBaked) -> None:
        for code in codes:
            self._advances[code] = 1.0 + baked.get_char_advance(code)


def draw(sheet: Sheet, view: View, inks: Inks, size: ImVec2, held: int | None) -> tuple[list[Edit | Select], int]:
    """Draw the page in the present font; return what the user did to it, and the offset of the first line in sight.
    `held`: that offset, moved by the edits since the last frame.
    """
    identity = imgui.get_id(LABEL)
    corner, font_size = imgui.get_cursor_screen_pos(), imgui.get_font_size()
    bar = imgui.get_style().scrollbar_size
    paint = imgui.get_window_draw_list()
    far = ImVec2(corner.x + size.x, corner.y + size.y)
    if view.bare:
        low, high = paint.get_clip_rect_min(), paint.get_clip_rect_max()
        view.paper = max(corner.x, low.x), max(corner.y, low.y), min(far.x, high.x), min(far.y, high.y)
    else:
        paint.add_rect_filled(corner, far, inks.paper)
    box = imgui.internal.ImRect(corner.x, corner.y, corner.x + size.x - bar, corner.y + size.y)
    layout = _laid(sheet, view, size.x - bar)
    view.line, view.height = float(round(font_size * LINE)), size.y - TOP_MARGIN * font_size
    _scrolled(sheet, view, layout, held)
    scrollbar(view, layout, ImVec2(corner.x + size.x - bar, corner.y), ImVec2(bar, size.y))
    imgui.set_cursor_screen_pos(corner)
    imgui.internal.item_size(ImVec2(size.x, size.y))
    if not imgui.internal.item_add(box, identity):
        return [], int(layout.starts[0])
    hovered = imgui.internal.item_hoverable(box, identity, 0)
    take_keyboard(view, identity, hovered)
    left = corner.x + round((size.x - bar - layout.width) / 2)
    top = corner.y + TOP_MARGIN * font_size
    work = hands.Working(layout, sheet.selected, view)
    hands.scroll(view, corner.y, corner.y + size.y, hovered=hovered)
    view.bound(BELOW * font_size)
    hands.mouse(work, ImVec2(left, top - view.scroll), hovered=hovered)
    if view.keyboard:
        hands.keyboard(work, enter=sheet.enter)
    wish, view.wish = view.wish, ""
    hands.wish(work, wish)
    if hovered:
        imgui.set_mouse_cursor(imgui.MouseCursor_.text_input)
    shown = layout if layout.text == sheet.text else view.lay(sheet.text, layout.width, layout.measure)
    paint.push_clip_rect((corner.x, corner.y), (corner.x + size.x - bar, corner.y + size.y), True)
    view.origin = left, top - view.scroll
    Painter(sheet, view, inks, shown).paint()
    paint.pop_clip_rect()
    view.followed = sheet.follow is not None and view.shows(shown.line_of(sheet.follow))
    first = min(shown.count - 1, int(view.scroll / view.line))
    return work.done, int(shown.starts[first])


def _laid(sheet: Sheet, view: View, width: float) -> Layout:
    """Return the layout of the text in the present font: a column in the middle of the width."""
    font, size = imgui.get_font(), imgui.get_font_size()
    measure = view.layout.measure if view.layout else None
    if not isinstance(measure, Widths) or measure.font is not font or measure.size != size:
        measure = Widths(font, size, imgui.get_font_baked())
    return view.lay(sheet.text, max(size, min(measure.column, width - 2 * MARGIN * size)), measure)


def _scrolled(sheet: Sheet, view: View, layout: Layout, held: int | None) -> None:
    """Keep the first line in sight where it is when the text before it or the width has changed, then bring into sight
    what has to be.
    """
    if held is not None:
        view.scroll = layout.line_of(min(held, len(layout.text))) * view.line + view.scroll % view.line
    line = layout.line_of(sheet.selected[1] if sheet.follow is None else sheet.follow)
    if view.reveal:
        view.bring(layout.line_of(sheet.selected[1]), view.line)
        view.reveal = False
    elif view.followed and sheet.selected[0] == sheet.selected[1] and not view.dragging:
        view.bring(line)


def take_keyboard(view: View, identity: int, hovered: bool) -> None:
    """Give the page the keyboard when it is clicked, when it is in front and nothing else takes it, and when a letter
    is typed that nothing else takes.
    """
    context, io = imgui.get_current_context(), imgui.get_io()
    active = imgui.internal.get_active_id()
    window = imgui.internal.get_current_window()
    clicked = hovered and any(imgui.is_mouse_clicked(button) for button in (0, 1, 2))
    popup = imgui.is_popup_open("", imgui.PopupFlags_.any_popup_id | imgui.PopupFlags_.any_popup_level)
    there = imgui.is_window_focused() or typed()  # what is typed where nothing takes it is meant for the page
    free = active == 0 and there and not popup and not view.lent and not imgui.is_any_mouse_down()
    if (clicked or free) and active != identity:
        imgui.internal.set_active_id(identity, window)
        imgui.internal.set_focus_id(identity, window)
        imgui.internal.focus_window(window)
        view.lent = False
    elif active == identity and ((imgui.is_mouse_clicked(0) and not hovered) or popup or view.lent):
        imgui.internal.clear_active_id()
    view.keyboard = imgui.internal.get_active_id() == identity
    if view.keyboard:
        context.active_id_allow_overlap = not imgui.is_mouse_down(0)  # other items can be hovered
        context.want_text_input_next_frame = 1
        # Navigation would take the arrows, Enter and Space; owned keys would take the shortcuts on them.
        io.config_flags &= ~imgui.ConfigFlags_.nav_enable_keyboard
    else:
        io.config_flags |= imgui.ConfigFlags_.nav_enable_keyboard


def typed() -> bool:
    """True if a character was typed that operates nothing: a space does, on what the keyboard has chosen."""
    io = imgui.get_io()
    chord = io.key_super or (io.key_ctrl and not io.key_alt)  # Ctrl+Alt is AltGr
    return not chord and any(code > 32 and code != 127 for code in io.input_queue_characters)


def scrollbar(view: View, layout: Layout, corner: ImVec2, size: ImVec2) -> None:
    """Draw the bar that scrolls, where the text is longer than the page."""
    whole = layout.count * view.line + BELOW * imgui.get_font_size()
    if whole <= view.height:
        return
    thumb = max(size.x * 1.5, size.y * view.height / whole)
    room, most = size.y - thumb, whole - view.height
    imgui.set_cursor_screen_pos(corner)
    imgui.invisible_button("##scroll", size)
    if imgui.is_item_active():
        y = imgui.get_io().mouse_pos.y - corner.y - thumb / 2
        view.scroll = max(0.0, min(1.0, y / room)) * most
    color = imgui.Col_.scrollbar_grab
    if imgui.is_item_active() or imgui.is_item_hovered():
        color = imgui.Col_.scrollbar_grab_active if imgui.is_item_active() else imgui.Col_.scrollbar_grab_hovered
    y = corner.y + room * min(1.0, view.scroll / most)
    paint = imgui.get_window_draw_list()
    paint.add_rect_filled(
        (corner.x + 2, y), (corner.x + size.x - 2, y + thumb), imgui.get_color_u32(color), size.x / 2 - 2
    )


class Painter:
    """One frame's drawing of the lines in sight."""

    def __init__(self, sheet: Sheet, view: View, inks: Inks, layout: Layout) -> None:
        self.sheet, self.inks = sheet, inks
        self.view, self.layout = view, layout
        self.origin = ImVec2(*view.origin)
        self.font, self.size = imgui.get_font(), imgui.get_font_size()
        self.list = imgui.get_window_draw_list()
        first = max(0, int(view.scroll / view.line) - 1)
        self.lines = range(first, min(layout.count, int((view.scroll + view.height) / view.line) + 2))
        self.span = int(layout.starts[first]), layout.span(self.lines[-1])[1] if self.lines else 0

    def paint(self) -> None:
        sheet, inks = self.sheet, self.inks
        for start, end, strength in sheet.shades:
            self.fill(start, end, _faded(inks.shade, strength))
        for start, end in sheet.found:
            chosen = (start, end) == (min(sheet.selected), max(sheet.selected))
            self.fill(start, end, inks.chosen if chosen else inks.found)
        self.fill(min(sheet.selected), max(sheet.selected), inks.selection)
        if sheet.sight:
            self.rule(sheet.sight)
        written = [span for span in sheet.written if span[0] < self.span[1] and span[1] > self.span[0]]
        for line in self.lines:
            self.write(line, written)
        if not sheet.text:
            self.put(self.origin.x, self.top(0), inks.muted, sheet.placeholder)
        self.caret()

    def top(self, line: int) -> float:
        return float(round(self.origin.y + line * self.view.line))

    def put(self, x: float, top: float, ink: int, text: str) -> None:
        y = top + round((self.view.line - self.size) / 2)
        self.list.add_text(self.font, self.size, ImVec2(x, y), ink, text)

    def write(self, line: int, written: Sequence[tuple[int, int]]) -> None:
        """Write a line, each part in its ink."""
        start, end = self.layout.span(line)
        if start == end:
            return
        xs, text = self.layout.positions(line), self.layout.text
        at = start
        for begin, stop in written:
            for to, ink in ((min(begin, end), self.inks.text), (min(stop, end), self.inks.model)):
                if to > at:
                    self.put(self.origin.x + float(xs[at - start]), self.top(line), ink, text[at:to])
                    at = to
        if at < end:
            self.put(self.origin.x + float(xs[at - start]), self.top(line), self.inks.text, text[at:end])

    def fill(self, start: int, end: int, ink: int) -> None:
        """Put a colour behind code points start to end."""
        if start >= end or start > self.span[1] or end < self.span[0]:
            return
        first = max(self.lines.start, self.layout.line_of(start))
        for line in range(first, min(self.lines.stop, self.layout.line_of(end) + 1)):
            begin, stop = self.layout.span(line)
            xs = self.layout.positions(line)
            left = float(xs[max(start, begin) - begin]) if start <= stop else None
            if left is None or end <= begin:
                continue
            right = min(float(xs[min(end, stop) - begin]), self.layout.width + self.size)
            if end > stop and stop < len(self.layout.text) and self.layout.text[stop] == "\n":
                right += self.size * LINE_END
            top = self.top(line)
            self.list.add_rect_filled((self.origin.x + left, top), (self.origin.x + right, top + self.view.line), ink)

    def rule(self, offset: int) -> None:
        """Draw the line below which the model sees the text."""
        top = self.top(self.layout.line_of(offset))
        right = self.origin.x + self.layout.width
        self.list.add_line((self.origin.x, top), (right, top), self.inks.rule, 1.0)
        size = self.size * 0.7
        width = imgui.calc_text_size(self.sheet.sight_label).x * size / self.size
        beside = right + size + width < self.list.get_clip_rect_max().x
        place = ImVec2(right + size * 0.5, top - size * 0.6) if beside else ImVec2(right - width, top - size)
        self.list.add_text(self.font, size, place, self.inks.rule, self.sheet.sight_label)

    def caret(self) -> None:
        line, x = self.layout.locate(self.sheet.selected[1])
        if line not in self.lines:
            return
        width = max(1.0, round(self.size * CARET))
        ink = self.inks.caret if self.view.keyboard else self.inks.muted
        left, top = round(self.origin.x + x - width / 2), self.top(line)
        space = round((self.view.line - self.size * 1.2) / 2)
        self.list.add_rect_filled((left, top + space), (left + width, top + self.view.line - space), ink)


def _faded(ink: int, strength: float) -> int:
    """Return a colour at a share of its own opacity."""
    alpha = round((ink >> 24) * max(0.0, min(1.0, strength)))
    return (ink & 0xFFFFFF) | alpha << 24
