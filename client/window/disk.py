"""Files: the page, its autosave, exports, preferences, fonts. In a thread of its own, which answers with events."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias, assert_never, get_args, get_origin, get_type_hints

import msgspec
import platformdirs

from client.window.events import (
    Autosave,
    DiskFailed,
    Event,
    Export,
    Exported,
    FontsListed,
    Listed,
    ListFolder,
    ListFonts,
    Opened,
    OpenFile,
    Saved,
    SaveFile,
    SavePreferences,
)
from client.window.state import Preferences
from client.window.textfile import TextFile

DiskEffect: TypeAlias = OpenFile | SaveFile | Export | Autosave | ListFolder | ListFonts | SavePreferences
MAX_FILE_BYTES = 4 << 20
MAX_LISTED, MAX_FONTS = 2000, 2000
FONT_FOLDERS = {
    "linux": ["~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"],
    "darwin": ["~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"],
    "win32": ["~/AppData/Local/Microsoft/Windows/Fonts", "C:/Windows/Fonts"],
}
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


def autosave_file() -> Path:
    return platformdirs.user_data_path("gpt2d") / "autosave.txt"


class Disk:
    """`do` and `events` never wait."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._effects: queue.SimpleQueue[DiskEffect | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def do(self, effect: DiskEffect) -> None:
        self._effects.put(effect)

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """Finish what was asked for."""
        self._effects.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (effect := self._effects.get()) is not None:
            try:
                event = carry_out(effect)
            except (OSError, ValueError) as e:
                event = DiskFailed(describe(e))
            except (
                Exception
            ) as e:  # a fault of the window itself: the thread must go on, what comes after is to be saved
                log.exception("%s failed", type(effect).__name__)
                event = DiskFailed(f"{type(e).__name__}: {e}")
            if event:
                self._events.put(event)
                self._wake()


def describe(error: OSError | ValueError) -> str:
    """Return an error in words, with the file's name where it has one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def carry_out(effect: DiskEffect) -> Event | None:
    """Do what was asked; return the event that it ends in, if the window waits for one. Raises: OSError, ValueError."""
    match effect:
        case OpenFile(path):
            path = expanded(path)
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"{path} is too large: a page holds at most {MAX_FILE_BYTES >> 20} MB")
            try:
                return Opened(path, TextFile(path.read_bytes()))
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text") from None
        case SaveFile(path, file):
            path = expanded(path)
            write(path, file.data)
            return Saved(path, file)
        case Export(path, text):
            path = expanded(path)
            write(path, text.encode())
            return Exported(path)
        case Autosave(text):
            if text is None:
                autosave_file().unlink(missing_ok=True)
            else:
                write(autosave_file(), text.encode())
        case SavePreferences(preferences):
            write(folder() / "client.json", msgspec.json.format(msgspec.json.encode(preferences)))
        case ListFolder(where):
            path = expanded(Path(where))
            entries = sorted(path.iterdir(), key=lambda p: (not p.is_dir(), p.name.lower()))
            shown = [(p.name, p.is_dir()) for p in entries if not p.name.startswith(".") and _is_text(p.name)]
            return Listed(str(path), shown[:MAX_LISTED])
        case ListFonts():
            return FontsListed(system_fonts())
        case _:
            assert_never(effect)
    return None


def expanded(path: Path) -> Path:
    """Return a path with the home folder in place of ~. Raises: ValueError if that user has none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: the home folder of {path.parts[0]} cannot be found") from None


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is complete at every moment. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            Path(draft).chmod(path.stat().st_mode)
        Path(draft).replace(path)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise


def read_preferences() -> Preferences:
    """Read the preferences as they were saved; what is missing or damaged gets its default."""
    preferences = Preferences()
    try:
        kept = msgspec.json.decode((folder() / "client.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError):
        return preferences
    for name, kind in KINDS.items():
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            setattr(preferences, name, _of_kind(kept[name], kind))
    preferences.scale = min(4.0, max(0.5, preferences.scale))
    preferences.font_size = min(60.0, max(8.0, preferences.font_size))
    preferences.page_font_size = min(60.0, max(8.0, preferences.page_font_size))
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


def read_autosave() -> str | None:
    """Return the text of a session that crashed; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return autosave_file().read_text(encoding="utf-8") or None
    return None


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
                path = Path(root) / name
                if name.lower().endswith((".ttf", ".otf", ".ttc")) and _is_text(str(path)) and len(found) < MAX_FONTS:
                    found.setdefault(path.stem, str(path))
    return sorted(found.items())


def _is_text(name: str) -> bool:
    """Return False for a file name in another encoding, which the window cannot show."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
