"""The one table of chords. Menus, tips and the list of keys take their texts from here, so that they say what is so.

Chords are by the key's letter on the present layout (backend.py). Modifiers count exactly. A chord is seen before the
active text field has it, and is kept from that field: a field of one line has its own meaning for Ctrl+Enter and Esc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from imgui_bundle import imgui

from client.window.events import Action, Do, LoadModel
from client.window.state import AppState

K = imgui.Key
Where: TypeAlias = Literal["everywhere", "page"]
"""Where a chord acts: "page" where the page has the keyboard, or where it is in sight and nothing else takes text."""
PageKeys: TypeAlias = Literal["typed", "in sight", "hidden"]
"""What the page has: what is typed, or a place on the screen, or none."""
MODIFIERS = {"Ctrl": int(K.mod_ctrl), "Shift": int(K.mod_shift), "Alt": int(K.mod_alt)}
NAMED = {
    "Enter": int(K.enter), "Esc": int(K.escape), "Left": int(K.left_arrow), "Right": int(K.right_arrow),
    "Plus": int(K.equal), "Minus": int(K.minus),
}  # fmt: skip
"""Keys whose names differ from Dear ImGui's. Plus and Minus are also those of the keypad."""
CLAIM = imgui.InputFlags_.route_global | imgui.InputFlags_.route_over_active


@dataclass(frozen=True)
class Chord:
    keys: tuple[str, ...]
    """Each does the same; menus show the first."""
    action: Action
    told: str
    """What the list of keys says of it."""
    where: Where = "everywhere"
    repeats: bool = False
    """It acts again and again while it is held."""
    unless: str = ""
    """Name of the preference with which it is not bound."""
    in_fields: bool = False
    """Every text field does this for itself."""


CHORDS = (
    Chord(("Ctrl+Enter",), Do("generate"), "generate at the cursor", "page", unless="enter_generates"),
    Chord(("Esc",), Do("stop"), "stop"),
    Chord(("Ctrl+Shift+Enter",), Do("continue"), "continue at the end of the continuation at the cursor", "page"),
    Chord(("Ctrl+R",), Do("regenerate"), "regenerate", "page"),
    Chord(("Ctrl+B",), Do("branches"), "write 4 branches at the cursor", "page"),
    Chord(("Alt+Left",), Do("earlier"), "the continuation before", "page"),
    Chord(("Alt+Right",), Do("later"), "the next continuation", "page"),
    Chord(("Ctrl+Z",), Do("undo"), "undo", "page", repeats=True, in_fields=True),
    Chord(("Ctrl+Y", "Ctrl+Shift+Z"), Do("redo"), "redo", "page", repeats=True, in_fields=True),
    Chord(("Ctrl+N",), Do("new"), "new page"),
    Chord(("Ctrl+O",), Do("open"), "open"),
    Chord(("Ctrl+S",), Do("save"), "save"),
    Chord(("Ctrl+Shift+S",), Do("save as"), "save as"),
    Chord(("Ctrl+L",), LoadModel(), "load the chosen model"),
    Chord(("Ctrl+F",), Do("find"), "find in the page"),
    Chord(("Ctrl+H",), Do("find and replace"), "find and replace"),
    Chord(("F11",), Do("focus mode"), "the page alone, and back"),
    Chord(("Ctrl+Plus", "Ctrl+Shift+Plus"), Do("zoom in"), "larger letters in the page", repeats=True),
    Chord(("Ctrl+Minus",), Do("zoom out"), "smaller letters in the page", repeats=True),
    Chord(("Ctrl+0",), Do("zoom 1"), "letters of the usual size"),
    Chord(("Ctrl+E",), Do("to the page"), "back to the page"),
    Chord(("F1",), Do("keys"), "this list"),
    Chord(("F10",), Do("menus"), "the menus, by arrows and Enter"),
    Chord(("Ctrl+Q",), Do("quit"), "quit"),
)
TEXT_KEYS = {Do("cut"): "Ctrl+X", Do("copy"): "Ctrl+C", Do("paste"): "Ctrl+V", Do("select all"): "Ctrl+A"}
"""What every text field does for itself, the page too."""
OTHER_KEYS = (
    ("Ctrl+X, Ctrl+C, Ctrl+V, Ctrl+A", "cut, copy, paste, select all"),
    ("Ctrl+arrows, Ctrl+Backspace, Ctrl+Delete", "by words, and by paragraphs up and down"),
    ("Ctrl+wheel", "larger and smaller letters in the page"),
    ("Enter", "generate, where the settings say so"),
    ("Tab, arrows, Space", "through the panels and their fields"),
    ("Ctrl+Tab", "another panel"),
)
"""Keys that Dear ImGui or the page itself takes, for the list of keys."""


def code(keys: str) -> int:
    """Return Dear ImGui's number of a chord that is written as in the table."""
    *modifiers, key = keys.split("+")
    name = f"_{key}" if key.isdigit() else key.lower()
    chord = NAMED[key] if key in NAMED else int(getattr(K, name))
    for modifier in modifiers:
        chord |= MODIFIERS[modifier]
    return chord


CODES = tuple((chord, tuple(map(code, chord.keys))) for chord in CHORDS)


def keys_of(action: Action) -> str:
    """Return what a menu or a tip shows for an action, "" where no chord does it."""
    told = TEXT_KEYS.get(action, "") if isinstance(action, Do) else ""
    return next((chord.keys[0] for chord in CHORDS if chord.action == action), told)


def listed() -> list[tuple[str, str]]:
    """Return the list of keys: (keys, what they do)."""
    return [*((", ".join(chord.keys), chord.told) for chord in CHORDS), *OTHER_KEYS]


def struck(state: AppState, page: PageKeys) -> list[Action]:
    """Return the actions of the chords that are struck in this frame."""
    if state.asks or imgui.internal.get_top_most_popup_modal():
        return []
    in_field = imgui.get_io().want_text_input and page != "typed"
    actions = list[Action]()
    for chord, codes in CODES:
        not_bound = bool(chord.unless) and getattr(state.preferences, chord.unless)
        if not_bound or (in_field and chord.in_fields) or (state.esc_closes and "Esc" in chord.keys):
            continue
        acts = chord.where == "everywhere" or not (in_field or page == "hidden")
        for each in codes:
            # Keeps it from the active field, which may own the key, so that the answer is of no use.
            imgui.shortcut(each, CLAIM)
            if acts and imgui.internal.is_key_chord_pressed(each, imgui.InputFlags_.repeat if chord.repeats else 0):
                actions.append(chord.action)
                imgui.get_current_context().nav_windowing_toggle_layer = False  # Alt was for this, not for the menu
    return actions
