"""Files: the page, its autosave, exports, preferences, fonts. In a thread of its own, which answers with events."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias, assert_never, get_args, get_origin, get_type_hints

import msgspec
import platformdirs

from client.window import locks, past, sidecar
from client.window.autosave import Autosave
from client.window.events import (
    DiskFailed,
    Event,
    Exists,
    Export,
    Exported,
    FontsListed,
    ForgetHistory,
    ForgetPage,
    KeepHistory,
    KeepPage,
    Listed,
    ListFolder,
    ListFonts,
    NotKept,
    Opened,
    OpenFile,
    OpenRecovered,
    Recovered,
    SaveBranches,
    Saved,
    SaveFile,
    SavePreferences,
)
from client.window.preferences import LEAST_ZOOM, MOST_ZOOM, Preferences, merged
from client.window.results import MAX_HISTORY, Entry
from client.window.textfile import MAX_FILE_BYTES, TextFile, is_text

DiskEffect: TypeAlias = (
    OpenFile
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
BINARY = getattr(os, "O_BINARY", 0)
DRAFT_NAME = 60
"""Characters of a file's name in that of its draft: of four bytes each, they fit into a name."""
MAX_LISTED, MAX_FONTS = 2000, 2000
FONT_FOLDERS = {
    "linux": ["~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"],
    "darwin": ["~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"],
    "win32": ["~/AppData/Local/Microsoft/Windows/Fonts", "C:/Windows/Fonts"],
}
UNASKED: dict[type[DiskEffect], str] = {
    KeepPage: "changes that you do not save would not survive a crash",
    ForgetPage: "what was kept of a page for a crash cannot be deleted",
    KeepHistory: "the history cannot be kept",
    SaveBranches: "the branches cannot be kept beside the page",
    SavePreferences: "the settings cannot be kept",
}
"""What is done without being asked for, and how its failure is told."""
CLOSE_S = 5.0
log = logging.getLogger(__name__)
Line: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[^\0]+$")]
"""Text that can be an item of a list on the screen."""
SettingsKept: TypeAlias = dict[str, bool | int | float | str | list[str | tuple[int, float]] | None]
KINDS = get_type_hints(Preferences) | {
    "sampling": SettingsKept,
    "presets": dict[Line, SettingsKept],
    "recent": list[Line],
}


def folder() -> Path:
    return platformdirs.user_config_path("gpt2d")


def history_file() -> Path:
    return platformdirs.user_data_path("gpt2d") / "generations.jsonl"


class Disk:
    """`do` and `events` never wait."""

    def __init__(self, wake: Callable[[], None], saved: Preferences | None = None) -> None:
        """`saved`: the preferences as they were read; without them, the defaults."""
        self._wake = wake
        self._saved = saved or Preferences()
        self._autosave = Autosave(platformdirs.user_data_path("gpt2d") / "autosave", _write_private)
        self.left_behind = self._autosave.left_behind()
        """Pages of sessions that crashed."""
        self._asked = threading.Condition()
        self._effects = deque[DiskEffect | None]()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._not_kept = set[tuple[str, str]]()
        """What has failed of what nobody asked for, and of which file, which is said once."""
        self._unkept = list[Entry]()
        """Generations that could not be kept, which come with the next ones."""
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def do(self, effect: DiskEffect) -> None:
        with self._asked:
            if isinstance(effect, KeepPage):  # the newest counts: a disk may stand still while pages go on coming
                self._effects = deque(other for other in self._effects if not isinstance(other, KeepPage))
            self._effects.append(effect)
            self._asked.notify()

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """Finish what was asked for."""
        with self._asked:
            self._effects.append(None)
            self._asked.notify()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (effect := self._next()) is not None:
            if event := self._done(effect):
                self._events.put(event)
                self._wake()

    def _next(self) -> DiskEffect | None:
        """Wait for what is asked for next; None: for nothing more."""
        with self._asked:
            self._asked.wait_for(lambda: self._effects)
            return self._effects.popleft()

    def _done(self, effect: DiskEffect) -> Event | None:
        """Do what was asked for; return what is to be told of it."""
        what = UNASKED.get(type(effect), ""), _file(effect)
        try:
            event = self._carry_out(effect)
        except (OSError, ValueError) as e:
            return self._failed(what, describe(e))
        except Exception as e:  # a fault of the window itself: the thread must go on, what comes after is to be saved
            log.exception("%s failed", type(effect).__name__)
            return self._failed(what, f"{type(e).__name__}: {e}")
        if what in self._not_kept:
            self._not_kept.remove(what)
            return NotKept(what[0])
        return event

    def _failed(self, what: tuple[str, str], error: str) -> Event | None:
        """Tell a failure; of what nobody asked for once for each file, until it has worked again."""
        if not what[0]:
            return DiskFailed(error)
        known = what in self._not_kept
        self._not_kept.add(what)
        return None if known else NotKept(what[0], error)

    def _carry_out(self, effect: DiskEffect) -> Event | None:
        match effect:
            case KeepPage(saved):
                self._autosave.write(saved)
            case ForgetPage(name):
                if name:
                    self._autosave.forget(name)
                else:
                    self._autosave.clear()
            case SavePreferences(preferences) if preferences != self._saved:
                folder().mkdir(parents=True, exist_ok=True)
                with locks.held(folder() / "client.lock"):  # two windows end at once when a session does
                    there = preferences_there(self._saved)
                    save_preferences(merged(self._saved, preferences, there) if there else preferences)
                self._saved = preferences
            case SavePreferences():
                pass  # they are
            case KeepHistory(entries):
                self._unkept = [*self._unkept, *(entry.bare for entry in entries)][-MAX_HISTORY:]
                carry_out(KeepHistory(self._unkept))
                self._unkept = []
            case ForgetHistory():
                self._unkept = []
                carry_out(effect)
            case _:
                return carry_out(effect)
        return None


def _file(effect: DiskEffect) -> str:
    """Return which file it is that is kept without being asked for; empty where there is one alone."""
    match effect:
        case SaveBranches(path):
            return str(path)
        case ForgetPage(name):
            return name
        case _:
            return ""


def describe(error: OSError | ValueError) -> str:
    """Return an error in words, with the file's name where it has one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def carry_out(effect: DiskEffect) -> Event | None:
    """Do what was asked; return the event that it ends in, if the window waits for one. Raises: OSError, ValueError."""
    match effect:
        case OpenFile(path, cursor, at_start):
            path = expanded(path)
            return _listed(path) if path.is_dir() else Opened(path, read(path), *_branches(path), cursor, at_start)
        case OpenRecovered(name, saved):
            file, where = TextFile(), Path(saved.path) if saved.path else None
            if where:
                with contextlib.suppress(OSError, ValueError):  # the text that was kept is what counts
                    file = read(where)
            return Recovered(name, saved, where, file)
        case SaveFile(path, file, branches, known, replace):
            path = expanded(path)
            if path.is_dir():
                return _listed(path)
            if not replace and path.is_file() and (known is None or path.read_bytes() != known):
                return Exists(path)
            write(path, file.data)
            try:
                if branches:
                    write(sidecar.beside(path), sidecar.packed(branches))
            except OSError as e:
                return Saved(path, file, f"the text is saved, its branches are not: {describe(e)}")
            return Saved(path, file)
        case SaveBranches(path, branches):
            write(sidecar.beside(expanded(path)), sidecar.packed(branches))
        case Export(path, text, replace):
            path = expanded(path)
            if path.is_dir():
                return _listed(path)
            if not replace and path.is_file():
                return Exists(path, text)
            write(path, text.encode())
            return Exported(path)
        case ListFolder(where):
            return _listed(expanded(Path(where)))
        case ListFonts():
            return FontsListed(system_fonts())
        case KeepHistory(entries):
            past.append(history_file(), entries)
        case ForgetHistory():
            history_file().unlink(missing_ok=True)
        case KeepPage() | ForgetPage() | SavePreferences():
            raise AssertionError("those are the thread's own")
        case _:
            assert_never(effect)
    return None


def read(path: Path) -> TextFile:
    """Read a page. Raises: OSError, ValueError."""
    size = path.stat().st_size
    if not path.is_file():  # reading a pipe would never end
        raise ValueError(f"{path} is not a file")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is too large: a page holds at most {MAX_FILE_BYTES >> 20} MB")
    try:
        return TextFile(path.read_bytes())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


def _branches(path: Path) -> tuple[sidecar.Branches | None, str]:
    """Return the branches that are kept beside a page, and what is wrong with them."""
    file = sidecar.beside(path)
    try:
        if file.stat().st_size > sidecar.MAX_BYTES:
            raise ValueError("it is too large")
        return sidecar.unpacked(file.read_bytes()), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as e:
        return None, f"{file.name} cannot be used: {describe(e)}"


def _listed(path: Path) -> Listed:
    entries = sorted(path.iterdir(), key=lambda p: (not p.is_dir(), p.name.lower()))
    shown = [
        (p.name, p.is_dir())
        for p in entries
        if not p.name.startswith(".") and not p.name.endswith(sidecar.ENDING) and is_text(p.name)
    ]
    return Listed(str(path), shown[:MAX_LISTED])


def expanded(path: Path) -> Path:
    """Return a path with the home folder in place of ~. Raises: ValueError if that user has none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: the home folder of {path.parts[0]} cannot be found") from None


def read_history() -> list[Entry]:
    return past.read(history_file(), _write_private)


def write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that it is complete at every moment. It keeps its mode; a new one has `mode` without the umask.
    Raises: OSError.
    """
    there = Path(os.path.realpath(path))  # a link stays one
    draft = there.with_name(f".{there.name[:DRAFT_NAME]}.{secrets.token_hex(4)}")
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists() and not there.is_file():
            raise OSError(errno.EINVAL, "this is no file that could be replaced")
        if there.exists() and not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if there.exists():
            draft.chmod(there.stat().st_mode)
        draft.replace(there)
    except OSError as e:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from None


def _write_private(path: Path, data: bytes) -> None:
    write(path, data, 0o600)


def save_preferences(preferences: Preferences) -> None:
    """Raises: OSError."""
    _write_private(folder() / "client.json", msgspec.json.format(msgspec.json.encode(preferences)))


def read_preferences() -> Preferences:
    """Read the preferences as they were saved; what is missing or damaged gets its default."""
    return preferences_there(Preferences()) or Preferences()


def preferences_there(known: Preferences) -> Preferences | None:
    """Read the preferences as they were saved; what is missing or damaged is as `known`. None: they cannot be read."""
    preferences = replace(known)
    try:
        kept = msgspec.json.decode((folder() / "client.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    for name, kind in KINDS.items():
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            setattr(preferences, name, _of_kind(kept[name], kind))
    preferences.scale = min(4.0, max(0.5, preferences.scale))
    preferences.font_size = min(60.0, max(8.0, preferences.font_size))
    preferences.page_font_size = min(60.0, max(8.0, preferences.page_font_size))
    preferences.zoom = min(MOST_ZOOM, max(LEAST_ZOOM, preferences.zoom))
    preferences.width = min(8000, max(640, preferences.width))
    preferences.height = min(8000, max(480, preferences.height))
    return preferences


def _of_kind(kept: Any, kind: Any) -> Any:
    """Convert what was saved to a value of this kind; of a dict, the entries that can be. Raises:
    msgspec.ValidationError.
    """
    if get_origin(kind) is not dict or not isinstance(kept, dict):
        return msgspec.convert(kept, kind)
    key_kind, entry_kind = get_args(kind)
    entries = {}
    for key, entry in kept.items():
        with contextlib.suppress(msgspec.ValidationError):
            entries[msgspec.convert(key, key_kind)] = _of_kind(entry, entry_kind)
    return entries


def system_fonts() -> list[tuple[str, str]]:
    """Return (name, path) of the fonts that are installed, sorted by name."""
    found: dict[str, str] = {}
    for place in FONT_FOLDERS.get(sys.platform, FONT_FOLDERS["linux"]):
        try:
            path = expanded(Path(place))
        except ValueError:  # this user has no home folder
            continue
        for root, _, names in os.walk(path):
            for name in names:
                file = Path(root) / name
                if name.lower().endswith((".ttf", ".otf", ".ttc")) and is_text(str(file)) and len(found) < MAX_FONTS:
                    found.setdefault(file.stem, str(file))
    return sorted(found.items())
