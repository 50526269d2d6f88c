"""Every generation, of earlier sessions too: search, restore, copy, export."""

from __future__ import annotations

from typing import Any

from imgui_bundle import imgui

from client import replicas
from client.window.events import Action, Do, Enter, ExportEntry, Restore
from client.window.parameters import OF_THE_WINDOW, OWN
from client.window.results import Entry
from client.window.speed import tokens_per_second
from client.window.state import AppState
from client.window.views import widgets

BESIDE = 45.0
"""Width from which a generation is shown beside the list, in font sizes."""
BEFORE, AFTER = 40, 80
"""Characters of a prompt's end and of its continuation in the list."""
SHOWN = 2000
"""Characters of a prompt's end that are shown, and searched in every frame: the whole page of each entry would take too
long.
"""


def draw(state: AppState) -> list[Action]:
    history, actions = state.history, list[Action]()
    imgui.set_next_item_width(-1)
    actions += widgets.field("##search", "search prompts, texts, models", "history", "search", history.search)
    found = [entry for entry in reversed(history.entries) if matches(entry, history.search)]
    imgui.text_disabled(f"{len(found)} of {len(history.entries)} generations")
    if history.entries:
        imgui.same_line()
        if imgui.small_button("Clear"):
            actions.append(Do("clear history"))
        widgets.tip("Forget them all, those of other sessions too. The page and its branches stay.")
    chosen = next((entry for entry in found if entry.number == history.chosen), None)
    room = imgui.get_content_region_avail()
    beside = room.x > imgui.get_font_size() * BESIDE
    share = 0.45 if chosen else 1.0
    size = (room.x * share, 0) if beside else (0, room.y * share)
    if imgui.begin_child("entries", size):
        clipper = imgui.ListClipper()
        clipper.begin(len(found))
        while clipper.step():
            for entry in found[clipper.display_start : clipper.display_end]:
                result = entry.result
                today = entry.at > state.unix - 86_400
                at = widgets.moment(entry.at, "%H:%M:%S" if today else "%Y-%m-%d")
                label = f"{at}  {result.model}/{result.precision}  {one_line(entry)}"
                if imgui.selectable(f"{label}###entry {entry.number}", entry.number == history.chosen)[0]:
                    actions.append(Enter("history", "chosen", entry.number))
    imgui.end_child()
    if chosen is None:
        return actions
    if beside:
        imgui.same_line()
    imgui.begin_group()
    actions += draw_entry(chosen)
    imgui.end_group()
    return actions


def draw_entry(entry: Entry) -> list[Action]:
    actions, result = list[Action](), entry.result
    if imgui.button("Restore"):
        actions.append(Restore(entry.number))
    widgets.tip("Put its prompt and text on the page.")
    imgui.same_line()
    if imgui.button("Copy"):
        imgui.set_clipboard_text(widgets.printable(entry.prompt + result.text))
    imgui.same_line()
    if imgui.button("Export JSON"):
        actions.append(ExportEntry(entry.number, "json"))
    imgui.same_line()
    if imgui.button("Export Python"):
        actions.append(ExportEntry(entry.number, "python"))
    widgets.tip("A script that repeats this generation through the protocol module.")
    ledger = result.ledger
    imgui.text_disabled(
        f"{ledger.inference_ms:.0f} ms, {tokens_per_second(result):.0f} tokens/s, {result.finish_reason}"
    )
    told = {
        name: value for name, value in result.settings.items() if name not in OF_THE_WINDOW and is_unusual(name, value)
    }
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    imgui.text_wrapped(widgets.printable(settings or "every setting as usual"))
    widgets.selectable_text("##entry text", entry.prompt[-SHOWN:] + result.text, -1)
    return actions


def is_unusual(name: str, value: Any) -> bool:
    """True if a setting was not at its default."""
    return name not in OWN or value != OWN[name].default


def matches(entry: Entry, search: str) -> bool:
    words = search.casefold().split()
    if not words:
        return True
    result = entry.result
    text = f"{entry.prompt[-SHOWN:]} {result.text} {replicas.name(result)}".casefold()
    return all(word in text for word in words)


def one_line(entry: Entry) -> str:
    """Return the end of a prompt and the beginning of what followed it, as a part of a label."""
    dots = "... " if len(entry.prompt) > BEFORE else ""
    line = " ".join(f"{entry.prompt[-BEFORE:]}|{entry.result.text[:AFTER]}".split())
    return widgets.item(f"{dots}{line}{' ...' if len(entry.result.text) > AFTER else ''}")
