"""Entries of menus that stand in more than one of them, with the keys that do the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from imgui_bundle import imgui

from client.window.chords import keys_of
from client.window.events import Action, Do, Prefer
from client.window.state import AppState

Item: TypeAlias = tuple[str, Action, bool]
"""What it says, what it does, whether it can be chosen."""


def draw(items: Sequence[Item]) -> list[Action]:
    """Draw entries; return what was chosen."""
    return [action for label, action, able in items if imgui.menu_item(label, keys_of(action), False, able)[0]]


def editing(state: AppState) -> tuple[Item, ...]:
    """Return what can be done with the page's selection and the clipboard."""
    document = state.page.document
    selected = document.cursor != document.anchor
    return (
        ("Cut", Do("cut"), selected),
        ("Copy", Do("copy"), selected),
        ("Paste", Do("paste"), True),
        ("Select all", Do("select all"), bool(document.text)),
    )


def draw_shading(state: AppState) -> list[Action]:
    """Draw what switches the shading of the page on and off."""
    shaded = state.preferences.shade_tokens
    chosen = imgui.menu_item("Shade by probability", "", shaded)[0]
    return [Prefer("shade_tokens", not shaded)] if chosen else []
