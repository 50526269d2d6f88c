"""Part of AppState: choices that are kept in the user's config folder, and the panels that there are."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, TypeVar

from protocol.keys import DEFAULT_ENDPOINT

LEAST_ZOOM, MOST_ZOOM = 0.5, 4.0
"""Sizes of the page's letters, as shares of the usual one."""
SIDE, DRAWER = ("Model", "Sampling"), ("Inference", "Tokens", "Tree", "History", "Compare")
"""Panels beside the page, and below it."""
POPOVERS = ("Connection", "Settings", "Keys")
"""Panels that are open for as long as they have the focus."""
LAYOUT_VERSION = 3
"""Raised when the panels or their first places change: a layout of other panels is not applied."""
MAX_FILES, MAX_SERVERS = 12, 10
"""Most recent files and servers that are kept."""
Entry = TypeVar("Entry")
Settings: TypeAlias = dict[str, Any]
"""Generation settings by name, those of messages.SETTINGS that differ from the default."""


@dataclass(slots=True)
class Preferences:
    """Choices that are kept in the user's config folder."""

    font: str = ""
    """Path of a font file, or a name of fonts.BUILT_IN."""
    page_font: str = ""
    font_size: float = 16.0
    page_font_size: float = 20.0
    zoom: float = 1.0
    """What the page's size of letters is multiplied by."""
    scale: float = 1.0
    theme: Literal["dark", "light"] = "dark"
    enter_generates: bool = False
    shade_tokens: bool = False
    """What the model wrote is shaded on the page: the stronger, the less likely it was."""
    spare_spaces: bool = True
    """Spaces at the end of a prompt are not sent to a byte-level tokenizer, which has them in the next word's token."""
    server: str = DEFAULT_ENDPOINT
    chosen: list[str] = field(default_factory=list)
    """Model, engine and precision that were chosen last."""
    recent: list[str] = field(default_factory=list)
    sampling: Settings = field(default_factory=dict)
    presets: dict[str, Settings] = field(default_factory=dict)
    layout: str = ""
    """Dear ImGui's own description of where the panels are."""
    layout_version: int = 0
    """The LAYOUT_VERSION that it belongs to."""
    closed: list[str] = field(default_factory=lambda: [*POPOVERS])
    """Panels that are not shown."""
    files: list[tuple[str, int]] = field(default_factory=list)
    """The files of the last pages, and where the cursor was in each."""
    last: str = ""
    """The file of the page that was open last."""
    folded: list[Literal["side", "drawer"]] = field(default_factory=list)
    """What is folded away where there would be room for it."""
    width: int = 1360
    height: int = 860
    x: int | None = None
    """Where the window was; None: it has not been anywhere."""
    y: int | None = None
    maximised: bool = False


def merged(before: Preferences, now: Preferences, there: Preferences) -> Preferences:
    """Return what a window has changed since `before`, with what others have kept meanwhile: `there`. Of presets and of
    recent files and servers, each counts by itself.
    """
    changed = {f.name: getattr(now, f.name) for f in fields(now) if getattr(now, f.name) != getattr(before, f.name)}
    files = _entries(dict(before.files), dict(now.files), dict(there.files))
    servers = _entries(*(dict.fromkeys(each.recent, 0) for each in (before, now, there)))
    changed["presets"] = _entries(before.presets, now.presets, there.presets)
    changed["files"], changed["recent"] = [*files.items()][:MAX_FILES], [*servers][:MAX_SERVERS]
    return replace(there, **changed)


def _entries(before: dict[str, Entry], now: dict[str, Entry], there: dict[str, Entry]) -> dict[str, Entry]:
    if now == before:
        return there
    own = {key: entry for key, entry in now.items() if key not in before or before[key] != entry}
    kept = {key: own[key] if key in own else there[key] for key in now if key in own or key in there}
    return kept | {key: entry for key, entry in there.items() if key not in before and key not in now}
