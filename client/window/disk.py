"""Files: the page, its autosave, exports, preferences, fonts. In a thread of its own; what has happened comes back as events."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

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

DiskEffect = OpenFile | SaveFile | Export | Autosave | ListFolder | ListFonts | SavePreferences
MAX_FILE_BYTES, MAX_LISTED, MAX_FONTS = 4 << 20, 2000, 2000
FONT_FOLDERS = {
    "linux": ["~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"],
    "darwin": ["~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"],
    "win32": ["~/AppData/Local/Microsoft/Windows/Fonts", "C:/Windows/Fonts"],
}
CLOSE_S = 5.0
Line: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[^\0]+$")]
"""What can be an item of a list on the screen."""
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
        found = []
        while not self._events.empty():
            found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """Finish what was asked for."""
        self._effects.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (effect := self._effects.get()) is not None:
            try:
                event = _carry_out(effect)
            except (OSError, ValueError) as e:
                event = DiskFailed(
                    f"{getattr(e, 'filename', None) or ''}: {getattr(e, 'strerror', None) or e}".removeprefix(": ")
                )
            if event:
                self._events.put(event)
                self._wake()


def _carry_out(effect: DiskEffect) -> Event | None:
    match effect:
        case OpenFile(path):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"{path} is over {MAX_FILE_BYTES >> 20} MB, more than a page takes")
            try:
                return Opened(path, path.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text") from None
        case SaveFile(path, data):
            write(path, data)
            return Saved(path, data)
        case Export(path, text):
            write(path, text.encode())
            return Exported(path)
        case Autosave(data):
            if data is None:
                autosave_file().unlink(missing_ok=True)
            else:
                write(autosave_file(), data)
        case SavePreferences(preferences):
            write(folder() / "client.json", msgspec.json.format(msgspec.json.encode(preferences)))
        case ListFolder(where):
            path = Path(where).expanduser()
            entries = sorted(path.iterdir(), key=lambda p: (not p.is_dir(), p.name.lower()))
            return Listed(
                str(path),
                [(p.name, p.is_dir()) for p in entries if not p.name.startswith(".") and _is_text(p.name)][:MAX_LISTED],
            )
        case ListFonts():
            return FontsListed(system_fonts())
    return None


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is whole at every moment. Raises: OSError."""
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
    """As they were kept; what is missing or damaged gets its default."""
    preferences = Preferences()
    try:
        kept = msgspec.json.decode((folder() / "client.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError):
        return preferences
    for name, kind in KINDS.items():
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            setattr(preferences, name, _of_kind(kept[name], kind))
    preferences.scale = min(4.0, max(0.5, preferences.scale))
    preferences.font_size, preferences.page_font_size = (
        min(60.0, max(8.0, size)) for size in (preferences.font_size, preferences.page_font_size)
    )
    preferences.width, preferences.height = (
        max(640, min(8000, preferences.width)),
        max(400, min(8000, preferences.height)),
    )
    return preferences


def _of_kind(kept: Any, kind: Any) -> Any:
    """What was kept, as a value of this kind; of a dict, the entries that are. Raises: msgspec.ValidationError."""
    if get_origin(kind) is not dict or not isinstance(kept, dict):
        return msgspec.convert(kept, kind)
    key_kind, entry_kind = get_args(kind)
    entries = {}
    for key, entry in kept.items():
        with contextlib.suppress(msgspec.ValidationError):
            entries[msgspec.convert(key, key_kind)] = _of_kind(entry, entry_kind)
    return entries


def read_autosave() -> str | None:
    """The text of a session that did not end by itself."""
    with contextlib.suppress(OSError, ValueError):
        return autosave_file().read_text(encoding="utf-8") or None
    return None


def system_fonts() -> list[tuple[str, str]]:
    """(name, path) of the fonts that are installed, by name."""
    found: dict[str, str] = {}
    for place in FONT_FOLDERS.get(sys.platform, FONT_FOLDERS["linux"]):
        for root, _, names in os.walk(Path(place).expanduser()):
            for name in names:
                path = Path(root) / name
                if name.lower().endswith((".ttf", ".otf", ".ttc")) and _is_text(str(path)) and len(found) < MAX_FONTS:
                    found.setdefault(path.stem, str(path))
    return sorted(found.items())


def _is_text(name: str) -> bool:
    """False for a file name in another encoding, which the window cannot show."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
