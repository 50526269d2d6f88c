"""The entry of the system's menu that opens the window: `gpt2d-client --install-launcher` and `--remove-launcher`.

A .desktop file with icons on Linux, an entry of the Start menu on Windows, a command to double-click on a Mac.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import platformdirs

from client.window import icon
from protocol.programs import words

NAME = "gpt2d"
ENTRY = """\
[Desktop Entry]
Type=Application
Version=1.0
Name=gpt2d
GenericName=Writing with GPT-2
Comment=Write with a GPT-2 that runs on your own computer
Exec={command}
Icon=gpt2d
Terminal=false
Categories=Utility;TextEditor;
StartupWMClass=gpt2d
"""
SHORTCUT = """\
$entry = (New-Object -ComObject WScript.Shell).CreateShortcut({entry})
$entry.TargetPath = {program}
$entry.Arguments = {arguments}
$entry.IconLocation = {icon}
$entry.Save()
"""
"""PowerShell, since nothing else on Windows writes a shortcut without being installed."""
QUOTES = "'\u2018\u2019\u201a\u201b"
"""What ends a literal text in PowerShell, unless it is doubled."""
POWERSHELL_S = 60.0


def install() -> list[Path]:
    """Write the launcher; return the files. Raises: OSError, subprocess.SubprocessError."""
    if sys.platform == "win32":
        return _install_shortcut()
    written = {_entry(): ENTRY.format(command=exec_line([*words("gpt2d-client"), "--from-menu"])).encode()}
    if sys.platform == "darwin":
        written = {_entry(): f"#!/bin/sh\nexec {shlex.join(words('gpt2d-client'))}\n".encode()}
    else:
        written |= {_place(size): icon.file_of(size).read_bytes() for size in icon.SIZES}
    for path, data in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if sys.platform == "darwin":
        _entry().chmod(0o755)
    return list(written)


def remove() -> list[Path]:
    """Delete what `install` wrote; return what there was. Raises: OSError."""
    there = [path for path in (_entry(), *_beside()) if path.exists()]
    for path in there:
        path.unlink()
    return there


def _entry() -> Path:
    """Return the file that the system's menu shows."""
    if sys.platform == "win32":
        return Path(os.environ["APPDATA"], "Microsoft", "Windows", "Start Menu", "Programs", f"{NAME}.lnk")
    if sys.platform == "darwin":
        return Path.home() / "Applications" / f"{NAME}.command"
    return platformdirs.user_data_path() / "applications" / f"{NAME}.desktop"


def _beside() -> list[Path]:
    """Return the files of its icon."""
    if sys.platform == "win32":
        return [platformdirs.user_data_path(NAME, appauthor=False) / f"{NAME}.ico"]
    return [] if sys.platform == "darwin" else [_place(size) for size in icon.SIZES]


def _place(size: int) -> Path:
    return platformdirs.user_data_path() / "icons" / "hicolor" / f"{size}x{size}" / "apps" / f"{NAME}.png"


def exec_line(command: list[str]) -> str:
    """Return a command as a .desktop file has it: quoted, then escaped as every string of such a file."""
    quoted = []
    for word in command:
        for special in '\\"`$':
            word = word.replace(special, f"\\{special}")  # noqa: PLW2901
        quoted.append(f'"{word}"')
    return " ".join(quoted).replace("\\", "\\\\").replace("%", "%%")


def _install_shortcut() -> list[Path]:
    entry, (picture,) = _entry(), _beside()
    python = Path(sys.executable).with_name("pythonw.exe")  # without a console's window
    script = SHORTCUT.format(
        entry=_powershell(str(entry)),
        program=_powershell(str(python)),
        arguments=_powershell("-P -m client --from-menu"),
        icon=_powershell(str(picture)),
    )
    for path in (entry, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(ico())
    # It is found by the system, in a folder that has had this name since its first version.
    powershell = Path(os.environ["SYSTEMROOT"], "System32", "WindowsPowerShell", "v1.0", "powershell.exe")
    command = [str(powershell), "-NoProfile", "-NonInteractive", "-Command", script]
    subprocess.run(command, check=True, timeout=POWERSHELL_S, capture_output=True)
    return [entry, picture]


def _powershell(text: str) -> str:
    """Return a text as PowerShell takes it literally."""
    return "'" + "".join(letter * 2 if letter in QUOTES else letter for letter in text) + "'"


def ico() -> bytes:
    """Return the icon as a file of Windows, which holds a PNG for each size."""
    pictures = [icon.file_of(size).read_bytes() for size in icon.SIZES]
    at, entries = 6 + 16 * len(pictures), b""
    for size, picture in zip(icon.SIZES, pictures, strict=True):
        entries += struct.pack("<BBBBHHII", size % 256, size % 256, 0, 0, 1, 32, len(picture), at)
        at += len(picture)
    return struct.pack("<HHH", 0, 1, len(pictures)) + entries + b"".join(pictures)
