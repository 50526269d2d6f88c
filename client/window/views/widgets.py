"""Small things that several panels draw."""

from __future__ import annotations

import time
from typing import Any

from imgui_bundle import ImVec4, imgui

from client.window import fonts, theme
from client.window.events import Action, Enter, Part
from client.window.icons import ICONS
from client.window.state import Doing
from client.window.textfile import told

THIN = 0.25
"""Size of a thin slider, in that of text."""
MAX_SHOWN = 20_000
"""Most characters of a text that a label shows."""


def color(name: str, alpha: float = 1.0) -> ImVec4:
    """Return a colour of the present theme, by its name in theme.Palette."""
    return theme.rgba(getattr(theme.palette(), name), alpha)


def colored(text: str, name: str) -> None:
    imgui.text_colored(color(name), printable(text))


def wrapped(text: str, name: str) -> None:
    imgui.push_style_color(imgui.Col_.text, color(name))
    imgui.text_wrapped(printable(text))
    imgui.pop_style_color()


def printable(text: str) -> str:
    """Return the text as a label can show it: without NUL, which would end it, or bytes of a file's name that are not
    text, and not longer than anybody reads.
    """
    return told(text[:MAX_SHOWN].replace("\0", "\ufffd"))


def item(text: str) -> str:
    """Return a label that can identify an item: an empty one, or nothing after ###, is an error, and ## hides what
    follows. So no two # are beside each other, nor the last one beside what comes after the label.
    """
    return printable(text).replace("#", "#\u200b") or " "


def visible(text: str) -> str:
    """Return a token as a label shows it."""
    shown = item(text[:80]).replace("\n", "\u00b6").replace("\t", "\u2192")
    return shown if text else "\u00b7"


def tip(text: str) -> None:
    """Explain the item above when the mouse rests on it."""
    if imgui.is_item_hovered(imgui.HoveredFlags_.for_tooltip):
        imgui.set_tooltip(printable(text))


def name_and_value(name: str, value: str, colour: str, room: float = 0.0) -> None:
    """Draw a name, and at the right end of the line a value, with some room behind it."""
    imgui.text_unformatted(name)
    room += imgui.calc_text_size(value).x + (imgui.get_style().item_spacing.x if room else 0.0)
    imgui.same_line(imgui.get_cursor_pos_x() + imgui.get_content_region_avail().x - room)
    colored(value, colour)


def thin_slider(
    label: str, value: float, low: float, high: float, *, whole: bool, flags: int = 0
) -> tuple[bool, float]:
    """Draw a slider on a line of its own, under the line with its value; Ctrl+click makes it a field."""
    typed = imgui.internal.temp_input_is_active(imgui.get_id(label))
    shown = typed or (imgui.get_io().key_ctrl and imgui.is_mouse_clicked(imgui.MouseButton_.left))
    new: float
    imgui.set_next_item_width(-1)
    imgui.push_font(None, imgui.get_style().font_size_base * (1.0 if typed else THIN))
    if whole:
        changed, new = imgui.slider_int(label, int(value), int(low), int(high), "%d" if shown else "", flags)
    else:
        changed, new = imgui.slider_float(label, float(value), low, high, "%.2f" if shown else "", flags)
        new = round(new, 2) if changed else value
    imgui.pop_font()
    return changed, new


def heading(text: str) -> None:
    """Draw a title, in the heavier weight."""
    large(text, 1.1)


def large(text: str, size: float) -> None:
    """Draw a text in the heavier weight, `size` times as large as others."""
    imgui.push_font(fonts.bold(), imgui.get_style().font_size_base * size)
    imgui.text_unformatted(printable(text))
    imgui.pop_font()


def beside(label: str) -> None:
    """Put a button of this label beside the item before it, or on a new line where there is no room."""
    imgui.same_line()
    if imgui.get_content_region_avail().x < imgui.calc_text_size(label).x + 2 * imgui.get_style().frame_padding.x:
        imgui.new_line()


def section(label: str) -> bool:
    """Draw the heading of a part that unfolds; return True if it is unfolded."""
    for which, colour in (
        (imgui.Col_.header_hovered, "button"),
        (imgui.Col_.header_active, "button_hovered"),
    ):
        imgui.push_style_color(which, color(colour))
    imgui.push_style_color(imgui.Col_.header, color("base", 0.0))
    imgui.push_style_color(imgui.Col_.border, color("base", 0.0))
    opened = imgui.collapsing_header(label)
    imgui.pop_style_color(4)
    return opened


def icon_button(icon: str, identity: str, explained: str, *, small: bool = False) -> bool:
    """Draw a flat button that is an icon; a small one is as high as a line of text."""
    imgui.push_style_color(imgui.Col_.button, color("base", 0.0))
    imgui.push_style_color(imgui.Col_.border, color("base", 0.0))
    style = imgui.get_style()
    padding = (2 * style.font_scale_dpi, 0.0 if small else style.frame_padding.y)
    imgui.push_style_var(imgui.StyleVar_.frame_padding, padding)
    clicked = imgui.button(f"{ICONS[icon]}###{identity}")
    imgui.pop_style_var()
    imgui.pop_style_color(2)
    tip(explained)
    return clicked


def primary_button(label: str) -> bool:
    """Draw the button that matters most."""
    for which, colour in (
        (imgui.Col_.button, "accent"),
        (imgui.Col_.button_hovered, "accent_hovered"),
        (imgui.Col_.button_active, "accent_active"),
        (imgui.Col_.text, "on_accent"),
    ):
        imgui.push_style_color(which, color(colour))
    clicked = imgui.button(label)
    imgui.pop_style_color(4)
    return clicked


def row(name: str, value: str, colour: str = "", indent: float = 6.5) -> None:
    """Draw a name and, `indent` font sizes from the left, its value."""
    imgui.text_disabled(name)
    imgui.same_line(imgui.get_font_size() * indent)
    if colour:
        wrapped(value, colour)
    else:
        imgui.text_wrapped(printable(value))


def amount(doing: Doing) -> str:
    """Return how much of a load or a measurement is done."""
    if doing.unit == "bytes":
        return f"{megabytes(doing.done)} of {megabytes(doing.total)}, {doing.rate / 1e6:.1f} MB/s"
    return f"{doing.done:,} of {doing.total:,} {doing.unit}" if doing.total > 1 else ""


def progress(doing: Doing, cancel: str) -> bool:
    """Draw the progress of a load or a measurement; return True if it is to be cancelled."""
    imgui.text_wrapped(printable(f"{doing.name}: {doing.stage}  {amount(doing)}"))
    imgui.progress_bar(min(1.0, doing.done / doing.total), (-imgui.get_font_size() * 5, 0), "")
    imgui.same_line()
    return imgui.button(f"Cancel###{cancel}", (-1, 0))


def width_of_combo(value: str) -> float:
    """Return the width in which a drop-down list shows all of its value."""
    return imgui.calc_text_size(value).x + 2 * imgui.get_style().frame_padding.x + imgui.get_frame_height()


def combo(label: str, value: str, choices: list[str]) -> str | None:
    """Draw a drop-down list; return what was chosen."""
    chosen = None
    if imgui.begin_combo(label, value):
        for choice in choices:
            if imgui.selectable(item(choice), choice == value)[0]:
                chosen = choice
        imgui.end_combo()
    return chosen


def field(label: str, hint: str, part: Part, name: str, value: str) -> list[Action]:
    """Draw an input for a line of text that is a field of the state."""
    changed, new = imgui.input_text_with_hint(label, hint, value)
    return [Enter(part, name, new)] if changed else []


def selectable_text(label: str, text: str, height: float) -> None:
    """Draw wrapped text that can be selected and copied."""
    flags = imgui.InputTextFlags_.read_only | imgui.InputTextFlags_.word_wrap
    imgui.input_text_multiline(label, printable(text), (-1, height), flags)


def moment(unix: float, form: str) -> str:
    """Return a time as people read it; a damaged file may have one that no calendar has."""
    try:
        return time.strftime(form, time.localtime(unix))
    except (OverflowError, ValueError, OSError):
        return "?"


def megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def value_text(value: Any) -> str:
    if value is None:
        return "new each time"
    return f"{value:g}" if isinstance(value, float) else str(value)
