"""What travels inside the client: actions of the user and events from outside into update.apply, effects out of it.

The views return actions; `link` and `disk` give events and carry effects out, each in a thread of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from client.window.state import Preferences
from protocol import connection, messages as m

# Actions: what the user did


@dataclass(frozen=True)
class Connect:
    pass


@dataclass(frozen=True)
class Disconnect:
    pass


@dataclass(frozen=True)
class Choose:
    """Another model, engine or precision in the Model panel."""

    model: str
    engine: str
    precision: str


@dataclass(frozen=True)
class LoadModel:
    pass


@dataclass(frozen=True)
class CancelLoad:
    pass


@dataclass(frozen=True)
class UnloadModel:
    model: str
    engine: str
    precision: str


@dataclass(frozen=True)
class Typed:
    """The text field holds another text now."""

    text: str
    cursor: int


@dataclass(frozen=True)
class Moved:
    """The cursor is at another byte."""

    cursor: int


@dataclass(frozen=True)
class Do:
    """Something without an argument."""

    what: Literal[
        "generate", "stop", "continue", "regenerate", "undo", "redo", "earlier", "later", "new", "open", "save", "save as", "quit", "confirmed",
        "dismissed", "restore", "forget", "compare", "stop compare", "add column", "remove column", "close files", "reset settings", "measure", "stop measuring",
    ]  # fmt: skip


Part: TypeAlias = Literal["link", "compare", "history", "files", "drafts", "models"]


@dataclass(frozen=True)
class Enter:
    """Something was typed into a field of a panel: the part of the state, its field, the value."""

    part: Part
    name: str
    value: Any


@dataclass(frozen=True)
class TakeToken:
    """In the token view: this token instead of the one at `index`."""

    index: int
    token: int


@dataclass(frozen=True)
class SetSetting:
    """A generation setting; None: its default."""

    name: str
    value: Any


@dataclass(frozen=True)
class Preset:
    what: Literal["save", "load", "delete"]
    name: str


@dataclass(frozen=True)
class Prefer:
    """A preference has another value."""

    name: str
    value: Any


@dataclass(frozen=True)
class ChooseColumn:
    """Fields of a compared column have other values."""

    index: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Restore:
    """A generation of the history back onto the page."""

    number: int


@dataclass(frozen=True)
class ExportEntry:
    number: int
    form: Literal["json", "python"]


@dataclass(frozen=True)
class ChooseFile:
    """In the file dialog: go into a folder, or use this name."""

    folder: str
    name: str
    done: bool


Action: TypeAlias = (
    Connect | Disconnect | Choose | LoadModel | CancelLoad | UnloadModel | Typed | Moved | Do | Enter | TakeToken | SetSetting | Preset | Prefer
    | ChooseColumn | Restore | ExportEntry | ChooseFile
)  # fmt: skip

# Events: what happened outside


@dataclass(frozen=True)
class Replied:
    """The server's answer to a request, or the error that it ended in. `tag` is the one it was sent with."""

    tag: str
    event: connection.Event
    took_ms: float
    """Since it was sent."""


@dataclass(frozen=True)
class NotConnected:
    """The address cannot even be tried, or the server was left."""

    error: str


@dataclass(frozen=True)
class Broken:
    """The connection broke; another is being made."""


@dataclass(frozen=True)
class Opened:
    path: Path
    text: str


@dataclass(frozen=True)
class Saved:
    path: Path
    data: bytes


@dataclass(frozen=True)
class Exported:
    path: Path


@dataclass(frozen=True)
class DiskFailed:
    error: str


@dataclass(frozen=True)
class Listed:
    folder: str
    listing: list[tuple[str, bool]]


@dataclass(frozen=True)
class FontsListed:
    fonts: list[tuple[str, str]]


@dataclass(frozen=True)
class Kept:
    """Names of the servers that were kept."""

    names: list[str]


@dataclass(frozen=True)
class Tick:
    """Time has passed; the unix time too, for what people read."""

    now: float
    unix: float


Event: TypeAlias = (
    Replied | NotConnected | Broken | Opened | Saved | Exported | DiskFailed | Listed | FontsListed | Kept | Tick
)

# Effects: what is to be done outside


@dataclass(frozen=True)
class OpenLink:
    """Connect to a server; the address is read outside, since a kept name stands in a file."""

    server: str
    server_key: str
    key_file: str


@dataclass(frozen=True)
class CloseLink:
    pass


@dataclass(frozen=True)
class Send:
    """A request. One of a tag is under way at a time; its answers come back as Replied with that tag."""

    tag: str
    request: m.AnyRequest
    timeout: float


@dataclass(frozen=True)
class Cancel:
    tag: str


@dataclass(frozen=True)
class KeepServer:
    """The address of the connection works: keep its keys."""


@dataclass(frozen=True)
class OpenFile:
    path: Path


@dataclass(frozen=True)
class SaveFile:
    path: Path
    data: bytes


@dataclass(frozen=True)
class Export:
    path: Path
    text: str


@dataclass(frozen=True)
class Autosave:
    """None: there is nothing to restore any more."""

    data: bytes | None


@dataclass(frozen=True)
class ListFolder:
    folder: str


@dataclass(frozen=True)
class ListFonts:
    pass


@dataclass(frozen=True)
class SavePreferences:
    preferences: Preferences


Effect: TypeAlias = (
    OpenLink | CloseLink | Send | Cancel | KeepServer | OpenFile | SaveFile | Export | Autosave | ListFolder | ListFonts
    | SavePreferences
)  # fmt: skip
Message: TypeAlias = Action | Event
