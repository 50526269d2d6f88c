"""The same prompt and seed with two to four models or settings, one after the other; where the texts part is marked."""

from __future__ import annotations

import math

from imgui_bundle import ImVec2, imgui

from client import replicas
from client.window import theme
from client.window.events import Action, ChooseColumn, Do, Enter
from client.window.icons import ICONS
from client.window.results import Column
from client.window.state import AppState
from client.window.views import widgets

BAR = 0.35
"""Height of a bar, in font sizes."""
BESIDE, SETTINGS = 48.0, 17.0
"""Width of the panel from which its settings stand beside the results, which then have all of its height; and their
own. In font sizes.
"""
NUMBER, SMALL = 7.0, 4.0
"""Width of a field for a number with its buttons, and without them, in font sizes."""
LINES = 2.0
"""Height of the prompt above the results, in lines."""
COLUMNS = imgui.TableFlags_.borders_inner_v | imgui.TableFlags_.resizable


def draw(state: AppState) -> list[Action]:
    size, room = imgui.get_font_size(), imgui.get_content_region_avail()
    if room.x < size * BESIDE:
        height = imgui.get_text_line_height() * LINES
        return [*draw_settings(state, room.x, height, steps=False), *draw_columns(state, 0)]
    rows = 4 * imgui.get_frame_height_with_spacing()
    imgui.begin_group()
    height = max(imgui.get_text_line_height() * LINES, room.y - rows)
    actions = draw_settings(state, size * SETTINGS, height, steps=True)
    imgui.end_group()
    imgui.same_line(0, size)
    return [*actions, *draw_columns(state, imgui.TableFlags_.scroll_y)]


def draw_settings(state: AppState, width: float, height: float, *, steps: bool) -> list[Action]:
    """Draw what all columns have in common; `height` is that of the prompt. `steps`: numbers have buttons."""
    compare, actions = state.compare, list[Action]()
    running, left = compare.running is not None, imgui.get_cursor_pos_x()
    changed, prompt = imgui.input_text_multiline(
        "##prompt", compare.prompt, (width, height), imgui.InputTextFlags_.word_wrap
    )
    if changed:
        actions.append(Enter("compare", "prompt", prompt))

    def follow(needed: float) -> None:
        """Go on in the same line, where there is room."""
        imgui.same_line()
        if imgui.get_cursor_pos_x() + needed > left + width:
            imgui.new_line()

    def of_button(label: str) -> float:
        return imgui.calc_text_size(label).x + 2 * imgui.get_style().frame_padding.x

    imgui.begin_disabled(running)
    if imgui.button("Take the page's text"):
        actions.append(Do("take page"))
    widgets.tip("What stands before the page's cursor becomes the prompt.")
    imgui.end_disabled()
    numbers = (
        ("seed", "seed", compare.seed, 0, None),
        ("new tokens", "max_new_tokens", compare.max_new_tokens, 1, 1000),
    )
    number = imgui.get_font_size() * (NUMBER if steps else SMALL)
    for label, name, value, least, most in numbers:
        follow(number + imgui.get_style().item_inner_spacing.x + imgui.calc_text_size(label).x)
        imgui.set_next_item_width(number)
        changed, entered = imgui.input_int(label, value, int(steps))
        if changed:
            actions.append(Enter("compare", name, min(most or entered, max(least, entered))))
    label = "Stopping" if compare.stopping else "Compare"
    follow(of_button("Stop" if running else label))
    if running:
        if imgui.button("Stop###Compare"):
            actions.append(Do("stop compare"))
    else:
        imgui.begin_disabled(state.link.status != "ready" or compare.stopping)
        if widgets.primary_button(f"{label}###Compare"):
            actions.append(Do("compare"))
        imgui.end_disabled()
    widgets.tip("The columns take turns, so that the times can be compared. The model of a column is loaded first.")
    imgui.begin_disabled(running)
    follow(of_button(ICONS["plus"] + ICONS["minus"]))
    if imgui.button(f"{ICONS['plus']}###+"):
        actions.append(Do("add column"))
    widgets.tip("One more column")
    imgui.same_line(0, 2)
    if imgui.button(f"{ICONS['minus']}###-"):
        actions.append(Do("remove column"))
    widgets.tip("One column less")
    imgui.end_disabled()
    return actions


def draw_columns(state: AppState, flags: int) -> list[Action]:
    """Draw a column for each way: what it is and how fast it was, and below that its text. Where the table scrolls, the
    texts do.
    """
    actions, columns = list[Action](), state.compare.columns
    if imgui.begin_table("columns", len(columns), COLUMNS | flags):
        imgui.table_setup_scroll_freeze(0, 1)
        for draw_part in (draw_head, draw_text):
            imgui.table_next_row()
            for index, column in enumerate(columns):
                imgui.table_next_column()
                imgui.push_id(index)
                actions += draw_part(state, index, column)
                imgui.pop_id()
        imgui.end_table()
    return actions


def draw_head(state: AppState, index: int, column: Column) -> list[Action]:
    actions = list[Action]()
    imgui.begin_disabled(state.compare.running is not None)
    ways = ["as in Model"]
    ways += [replicas.name((info.name, p.engine, p.precision)) for info in state.models.known for p in info.precisions]
    now = replicas.name(column.way) if column.model else ways[0]
    presets = ["as in Sampling", *state.preferences.presets]
    preset = column.preset or presets[0]
    half = (imgui.get_content_region_avail().x - imgui.get_style().item_spacing.x) / 2
    beside = half >= max(map(widgets.width_of_combo, (now, preset)))
    imgui.set_next_item_width(half if beside else -1)
    if chosen := widgets.combo(f"##way {index}", now, ways):
        way = chosen.rsplit("/", 2) if chosen != ways[0] else ["", "", ""]
        fields = dict(zip(("model", "engine", "precision"), way, strict=True))
        actions.append(ChooseColumn(index, {**fields, "as_chosen": not way[0]}))
    if beside:
        imgui.same_line()
    imgui.set_next_item_width(-1)
    if chosen := widgets.combo(f"##preset {index}", preset, presets):
        preset = "" if chosen == presets[0] else chosen
        actions.append(
            ChooseColumn(index, {"preset": preset, "settings": dict(state.preferences.presets.get(preset, {}))})
        )
    imgui.end_disabled()
    draw_speed(state, column)
    if state.compare.running == index:
        widgets.colored("writing" if column.text else "loading", "dim")
    return actions


def draw_text(_state: AppState, _index: int, column: Column) -> list[Action]:
    if column.error:
        widgets.wrapped(column.error, "bad")
    draw_parts(column.parts or [(column.text, False)])
    if column.result and imgui.small_button("Copy"):
        imgui.set_clipboard_text(widgets.printable(column.text))
    return []


def draw_speed(state: AppState, column: Column) -> None:
    """Draw how fast a column was, as a bar: the fastest one's is as wide as its column."""
    if column.result is None:
        return
    ledger = column.result.ledger
    rates = [c.result.ledger.tokens_per_second for c in state.compare.columns if c.result]
    fastest = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
    share = ledger.tokens_per_second / fastest if fastest > 0 else 0.0
    at, width = imgui.get_cursor_screen_pos(), imgui.get_content_region_avail().x
    height, paint = imgui.get_font_size() * BAR, imgui.get_window_draw_list()
    paint.add_rect_filled(at, (at.x + width, at.y + height), imgui.get_color_u32(widgets.color("line")), height / 2)
    end = at.x + width * min(1.0, share) if share > 0 else at.x
    paint.add_rect_filled(at, (end, at.y + height), imgui.get_color_u32(widgets.color("accent")), height / 2)
    imgui.dummy((width, height))
    widgets.wrapped(f"{ledger.tokens_per_second:,.0f} tokens/s, {ledger.inference_ms:,.0f} ms", "dim")


def draw_parts(parts: list[tuple[str, bool]]) -> None:
    """Draw text by words, with a background for the word where it becomes another text."""
    space = imgui.calc_text_size(" ").x
    left = imgui.get_cursor_screen_pos().x
    right = left + imgui.get_content_region_avail().x
    paint, height = imgui.get_window_draw_list(), imgui.get_text_line_height()
    x, y = left, imgui.get_cursor_screen_pos().y
    shade, ink = imgui.get_color_u32(theme.mark("differs")), imgui.get_color_u32(imgui.Col_.text)
    for part, differs in parts:
        for line_number, line in enumerate(part.split("\n")):
            if line_number:
                x, y = left, y + height
            for word in line.split():
                width = imgui.calc_text_size(word).x
                if x > left and x + width > right:
                    x, y = left, y + height
                if differs:
                    paint.add_rect_filled((x - 1, y), (x + width + 1, y + height), shade)
                paint.add_text((x, y), ink, widgets.printable(word))
                x += width + space
    imgui.dummy(ImVec2(1, y + height - imgui.get_cursor_screen_pos().y))
