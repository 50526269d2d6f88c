"""Icons of the window: names, and their characters in the font that is shipped for them (Lucide)."""

from __future__ import annotations

ICONS = {
    "arrow-left": "\ue048",
    "arrow-right": "\ue049",
    "check": "\ue06c",
    "chevron-down": "\ue06d",
    "chevron-left": "\ue06e",
    "chevron-right": "\ue06f",
    "chevron-up": "\ue070",
    "circle": "\ue076",
    "circle-alert": "\ue077",
    "clipboard-paste": "\ue3e8",
    "columns": "\ue098",
    "copy": "\ue09e",
    "cpu": "\ue0a9",
    "download": "\ue0b2",
    "ellipsis": "\ue0b6",
    "eye": "\ue0ba",
    "file": "\ue0cc",
    "folder": "\ue0d7",
    "gauge": "\ue1bf",
    "git-branch": "\ue0e2",
    "history": "\ue1f5",
    "info": "\ue0f9",
    "keyboard": "\ue284",
    "list-tree": "\ue408",
    "maximize": "\ue113",
    "minimize": "\ue11b",
    "minus": "\ue11c",
    "moon": "\ue11e",
    "panel-bottom": "\ue42c",
    "panel-right": "\ue431",
    "pen": "\ue130",
    "pin": "\ue259",
    "play": "\ue13c",
    "plus": "\ue13d",
    "redo": "\ue2a0",
    "refresh": "\ue145",
    "reset": "\ue148",
    "save": "\ue14d",
    "scissors": "\ue14e",
    "search": "\ue151",
    "server": "\ue153",
    "settings": "\ue154",
    "skip": "\ue3ea",
    "sliders": "\ue29a",
    "split": "\ue440",
    "square": "\ue167",
    "sun": "\ue178",
    "tag": "\ue17f",
    "trash": "\ue18e",
    "triangle-alert": "\ue193",
    "undo": "\ue2a1",
    "unplug": "\ue45d",
    "x": "\ue1b2",
    "zap": "\ue1b4",
}
"""Name -> character. A new one: its code stands in lucide-static's codepoints.json; then scripts/make_fonts.py."""


def labelled(icon: str, label: str) -> str:
    """Return the label of a button with an icon before its words; what identifies it stays the label's own."""
    words = label.split("###", maxsplit=1)[0]
    identity = label if "###" in label else f"{words}###{words}"
    return f"{ICONS[icon]}  {identity}"
