"""Notices: toasts in the lower right corner of the page, each with the way out as a button."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.events import Action, Dismiss
from client.window.icons import ICONS
from client.window.state import AppState, Notice
from client.window.views import widgets

WIDTH = 24.0
"""In font sizes."""
MAX_TEXT, MAX_LABEL = 400, 40
"""Characters that are shown of a notice, and of its button."""
FLAGS = (
    imgui.WindowFlags_.no_decoration
    | imgui.WindowFlags_.no_docking
    | imgui.WindowFlags_.no_move
    | imgui.WindowFlags_.no_saved_settings
    | imgui.WindowFlags_.no_focus_on_appearing
    | imgui.WindowFlags_.no_nav_inputs
    | imgui.WindowFlags_.always_auto_resize
)


def draw(state: AppState) -> list[Action]:
    actions, window = list[Action](), imgui.internal.find_window_by_name("Page")
    if window is None or not state.notices:
        return actions
    margin = imgui.get_font_size() * 0.8
    right = window.pos.x + window.size.x - margin
    bottom = window.pos.y + window.size.y - margin - imgui.get_frame_height_with_spacing() * 1.4
    width = min(imgui.get_font_size() * WIDTH, window.size.x - 2 * margin)
    for notice in reversed(state.notices):
        imgui.set_next_window_pos((right, bottom), 0, (1, 1))
        imgui.set_next_window_size_constraints((width, 0), (width, window.size.y))
        actions += draw_toast(notice)
        toast = imgui.internal.find_window_by_name(f"##toast {notice.key}")
        bottom -= (toast.size.y if toast else 0.0) + margin * 0.6
        if bottom < window.pos.y + margin:
            break
    return actions


def draw_toast(notice: Notice) -> list[Action]:
    actions, failed = list[Action](), notice.kind == "failed"
    colour = widgets.color("bad" if failed else "accent")
    imgui.push_style_color(imgui.Col_.window_bg, widgets.color("raised"))
    imgui.push_style_color(imgui.Col_.border, colour)
    shown = imgui.begin(f"##toast {notice.key}", None, FLAGS)[0]
    imgui.pop_style_color(2)
    if shown:
        imgui.text_colored(colour, ICONS["circle-alert" if failed else "info"])
        imgui.same_line()
        left, close = imgui.get_cursor_pos_x(), imgui.get_frame_height()
        imgui.push_text_wrap_pos(imgui.get_window_width() - close - imgui.get_style().window_padding.x)
        if failed:
            imgui.push_style_color(imgui.Col_.text, colour)
        imgui.text_unformatted(widgets.printable(sentence(notice.text)))
        if failed:
            imgui.pop_style_color()
        imgui.pop_text_wrap_pos()
        imgui.same_line(imgui.get_window_width() - close - imgui.get_style().window_padding.x * 0.5)
        if widgets.icon_button("x", "close", "Close"):
            actions.append(Dismiss(notice.key))
        if notice.action is not None:
            imgui.set_cursor_pos_x(left)
            if imgui.button(f"{widgets.item(short(notice.label, MAX_LABEL))}###way out"):
                actions += [Dismiss(notice.key), notice.action]  # which may have something new to say
    imgui.end()
    return actions


def sentence(text: str) -> str:
    """Return what is shown of a notice: it begins with a capital, unless with a name, and is not longer than anybody
    reads.
    """
    shown = short(text, MAX_TEXT)
    return shown[:1].upper() + shown[1:] if shown.split(" ", 1)[0].isalpha() else shown


def short(text: str, most: int) -> str:
    """Return a text in one line and not longer than `most` characters: servers' names and sentences are in it."""
    words = " ".join(text[: 10 * most].split())
    return words if len(words) <= most else f"{words[:most]} ..."
