"""Messages inside the window: actions of the user and events from outside into update.apply, effects out of it.

The views return actions; `link` and `disk` give events and carry out effects, each in a thread of its own. Each message
has one handler: whoever adds one finds by mypy (`assert_never`) where it is still missing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from client.window.autosave import Autosaved
from client.window.editor import editing
from client.window.preferences import Preferences
from client.window.results import Entry
from client.window.sidecar import Branches
from client.window.textfile import TextFile
from client.window.tree import Pruned
from protocol import connection, messages as m

END = sys.maxsize
"""The cursor of a text in which nobody has been: behind whatever it has."""

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


Edit: TypeAlias = editing.Edit
Select: TypeAlias = editing.Select


@dataclass(frozen=True)
class ReplaceAll:
    """Each of the edits, (start, end, text), the last place first; undone together."""

    edits: tuple[tuple[int, int, str], ...]


ModelWord: TypeAlias = Literal[
    "measure", "stop measuring", "calibrate", "stop calibrating", "reset settings", "agree", "decline"
]
WriteWord: TypeAlias = Literal["generate", "continue", "regenerate", "branches"]
ViewWord: TypeAlias = Literal[
    "find", "find and replace", "focus mode", "zoom in", "zoom out", "zoom 1", "cut", "copy", "paste", "select all"
]
PageWord: TypeAlias = WriteWord | Literal["stop", "undo", "redo", "earlier", "later", "close branches"]
CompareWord: TypeAlias = Literal["compare", "stop compare", "take page", "add column", "remove column"]
WindowWord: TypeAlias = Literal["keys", "menus", "to the page"]
FileWord: TypeAlias = Literal[
    "new",
    "open",
    "save",
    "save as",
    "replace",
    "quit",
    "confirmed",
    "dismissed",
    "recover",
    "recover later",
    "use branches",
    "clear history",
    "close files",
]

Word: TypeAlias = ModelWord | PageWord | ViewWord | CompareWord | WindowWord | FileWord


@dataclass(frozen=True)
class Do:
    """Something without an argument."""

    what: Word


Part: TypeAlias = Literal["link", "compare", "history", "files", "drafts", "models"]


@dataclass(frozen=True)
class Enter:
    """Something was typed into a field of a panel: the part of the state, its field, the value."""

    part: Part
    name: str
    value: Any


@dataclass(frozen=True)
class TakeToken:
    """Put another token in place of the one at `index` of the continuation that begins at `start`."""

    start: int
    index: int
    token: int


@dataclass(frozen=True)
class Recover:
    """A page that a crashed session has left behind is put on this one."""

    name: str


@dataclass(frozen=True)
class Forget:
    """A page that a crashed session has left behind is deleted."""

    name: str


@dataclass(frozen=True)
class OpenRecent:
    path: str


@dataclass(frozen=True)
class Dropped:
    """Files were dropped on the window; the first is opened."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class GoTo:
    """The page as it was last with this take; 0: without any."""

    node: int


@dataclass(frozen=True)
class Take:
    """One take of a place instead of another, also while both are being written."""

    node: int


@dataclass(frozen=True)
class NameNode:
    node: int
    name: str


@dataclass(frozen=True)
class KeepNode:
    """A take is never forgotten, or as others again."""

    node: int


@dataclass(frozen=True)
class PruneNode:
    """A take is cut off, with all that follows it."""

    node: int


@dataclass(frozen=True)
class Graft:
    """What was cut off is put back."""

    pruned: Pruned


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
class Dismiss:
    """The notice of this key has been read."""

    key: str


Form: TypeAlias = Literal["json", "python"]


@dataclass(frozen=True)
class ExportEntry:
    number: int
    form: Form


@dataclass(frozen=True)
class ChooseFile:
    """In the file dialog: go into a folder, or use this name."""

    folder: str
    name: str
    done: bool


Action: TypeAlias = (
    Connect
    | Disconnect
    | Choose
    | LoadModel
    | CancelLoad
    | UnloadModel
    | Edit
    | Select
    | ReplaceAll
    | Do
    | Enter
    | TakeToken
    | Recover
    | Forget
    | OpenRecent
    | Dropped
    | GoTo
    | Take
    | NameNode
    | KeepNode
    | PruneNode
    | Graft
    | SetSetting
    | Preset
    | Prefer
    | ChooseColumn
    | Restore
    | Dismiss
    | ExportEntry
    | ChooseFile
)

PageAction: TypeAlias = Edit | Select | ReplaceAll | TakeToken | Restore
TreeAction: TypeAlias = GoTo | Take | NameNode | KeepNode | PruneNode | Graft
WriteAction: TypeAlias = Do | TakeToken
"""Actions that have something written, with the chosen model: those of act.want."""
CompareAction: TypeAlias = ChooseColumn | ExportEntry

# Events: what happened outside

PageTag: TypeAlias = Literal["page", "count", "branch ids", "branch text"]
CompareTag: TypeAlias = Literal["compare", "compare load"]
Tag: TypeAlias = Literal["look", "models", "stats", "load", "measure", "calibrate", "unload"] | PageTag | CompareTag
"""Purpose of a request: `look` asks for a sign of life, both of `branch` what it takes to go on from another token."""


@dataclass(frozen=True)
class Replied:
    """An answer of the server to a request, or the error that it ended in. `tag` is the one it was sent with."""

    tag: Tag
    event: connection.Event
    took_ms: float
    """Since it was sent."""
    of: int = 0
    """The number with which the request was sent."""


@dataclass(frozen=True)
class NotConnected:
    """The address cannot be tried, or the window has disconnected from the server."""

    error: str


@dataclass(frozen=True)
class Broken:
    """The connection broke; another is being made."""


@dataclass(frozen=True)
class Opened:
    path: Path
    file: TextFile
    branches: Branches | None = None
    """Those that are kept beside it."""
    trouble: str = ""
    """What is wrong with them."""
    cursor: int = END
    at_start: bool = False
    """The page of the last session, which takes the place of nothing."""


@dataclass(frozen=True)
class Recovered:
    """A page that a crashed session has left behind, and its file as it is now."""

    name: str
    saved: Autosaved
    path: Path | None
    file: TextFile


@dataclass(frozen=True)
class Exists:
    """Nothing was written: there is a file that nobody said is to be replaced."""

    path: Path
    content: str = ""
    """Text that an export was to write; empty: the page was to be saved."""


@dataclass(frozen=True)
class Saved:
    path: Path
    file: TextFile
    trouble: str = ""
    """What is wrong with its branches."""


@dataclass(frozen=True)
class Exported:
    path: Path


@dataclass(frozen=True)
class DiskFailed:
    """What was asked for could not be done."""

    error: str


@dataclass(frozen=True)
class NotKept:
    """What is kept without being asked for cannot be, or can be again."""

    what: str
    """What that means, as the beginning of a sentence."""
    error: str = ""
    """Empty: it can be again."""


@dataclass(frozen=True)
class Listed:
    folder: str
    listing: list[tuple[str, bool]]


@dataclass(frozen=True)
class FontsListed:
    fonts: list[tuple[str, str]]


@dataclass(frozen=True)
class Unanswered:
    """What was to be pasted cannot be had: the program that holds it does not answer."""


@dataclass(frozen=True)
class FontsLeftOut:
    """Files of fonts that cannot be used, in sentences."""

    troubles: list[str]


@dataclass(frozen=True)
class Kept:
    """Names of the servers that were kept; `name` is that of the one that answers now, if it wanted a key."""

    names: list[str]
    name: str = ""
    endpoint: str = ""
    """Where that one is."""
    trouble: str = ""
    """Why its key could not be kept."""


@dataclass(frozen=True)
class Tick:
    """Time has passed: monotonic seconds, and the Unix time for what people read."""

    now: float
    unix: float


Event: TypeAlias = (
    Replied
    | NotConnected
    | Broken
    | Opened
    | Saved
    | Recovered
    | Exists
    | Exported
    | DiskFailed
    | NotKept
    | Listed
    | FontsListed
    | FontsLeftOut
    | Unanswered
    | Kept
    | Tick
)

# Effects: what is to be done outside


@dataclass(frozen=True)
class OpenLink:
    """Connect to a server; the address is read outside, since a kept name is in a file."""

    server: str
    server_key: str
    key_file: str


@dataclass(frozen=True)
class CloseLink:
    pass


@dataclass(frozen=True)
class Send:
    """A request. Of each tag one is open at a time; its answers come back as Replied with that tag. Where one
    with a number takes the place of another, that one is cancelled, and its last answer still comes.
    """

    tag: Tag
    request: m.AnyRequest
    timeout: float
    number: int = 0


@dataclass(frozen=True)
class Cancel:
    tag: Tag


@dataclass(frozen=True)
class KeepServer:
    """The address of the connection works: keep its keys."""


@dataclass(frozen=True)
class OpenFile:
    path: Path
    cursor: int = END
    at_start: bool = False


@dataclass(frozen=True)
class OpenRecovered:
    name: str
    saved: Autosaved


@dataclass(frozen=True)
class SaveFile:
    path: Path
    file: TextFile
    branches: Branches | None = None
    known: bytes | None = None
    """What the file has as far as the window knows; None: it is not there."""
    replace: bool = False
    """It is replaced whatever it has."""


@dataclass(frozen=True)
class SaveBranches:
    """The branches beside a page have changed, and its text has not."""

    path: Path
    branches: Branches


@dataclass(frozen=True)
class Export:
    path: Path
    text: str
    replace: bool = False
    """A file that is there is replaced."""


@dataclass(frozen=True)
class KeepPage:
    """The page is kept for a restart after a crash."""

    saved: Autosaved


@dataclass(frozen=True)
class ForgetPage:
    """A page that was kept is not needed any more: this window's, or by its name what another has left behind."""

    name: str = ""


@dataclass(frozen=True)
class KeepHistory:
    """New generations are kept for other sessions."""

    entries: list[Entry]


@dataclass(frozen=True)
class ForgetHistory:
    pass


@dataclass(frozen=True)
class ListFolder:
    folder: str


@dataclass(frozen=True)
class ListFonts:
    pass


@dataclass(frozen=True)
class SavePreferences:
    """What differs from the preferences that were saved last is kept; the rest may be another window's."""

    preferences: Preferences


Effect: TypeAlias = (
    OpenLink
    | CloseLink
    | Send
    | Cancel
    | KeepServer
    | OpenFile
    | OpenRecovered
    | SaveFile
    | SaveBranches
    | Export
    | KeepPage
    | ForgetPage
    | KeepHistory
    | ForgetHistory
    | ListFolder
    | ListFonts
    | SavePreferences
)
FileAction: TypeAlias = ChooseFile | Recover | Forget | OpenRecent | Dropped
FileEvent: TypeAlias = Opened | Recovered | Saved | Exists | Exported | DiskFailed | NotKept | Listed
Message: TypeAlias = Action | Event
