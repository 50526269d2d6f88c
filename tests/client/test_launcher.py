"""The entry of the system's menu, and the program's icon."""

from __future__ import annotations

import argparse
import configparser
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from client import __main__ as client_main, unseen
from client.window import icon, launcher
from scripts import draw_icon
from tests.conftest import wait_for


def client(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "client", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="a .desktop file is Linux's")
def test_the_launcher_is_installed_told_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "my data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    done = client("--install-launcher")
    assert done.returncode == 0, done.stderr
    told = [Path(line.removeprefix("wrote ")) for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert {path for path in data.rglob("*") if path.is_file()} == set(told)
    assert "--remove-launcher" in done.stdout.splitlines()[-1]

    file = configparser.ConfigParser(interpolation=None)
    file.optionxform = str  # type: ignore[assignment, method-assign]  # the names of keys are as they stand
    file.read(data / "applications" / "gpt2d.desktop", encoding="utf-8")
    entry = file["Desktop Entry"]
    assert (entry["Name"], entry["StartupWMClass"], entry["Terminal"]) == ("gpt2d", "gpt2d", "false")
    assert shlex.split(entry["Exec"])[-1] == "--from-menu", "no terminal shows what it prints"
    version = subprocess.run([*shlex.split(entry["Exec"]), "--version"], capture_output=True, text=True, timeout=60)
    assert version.stdout.startswith("gpt2d "), version.stderr
    for size in icon.SIZES:
        picture = data / "icons" / "hicolor" / f"{size}x{size}" / "apps" / f"{entry['Icon']}.png"
        assert struct.unpack_from(">II", picture.read_bytes(), 16) == (size, size)

    done = client("--remove-launcher")
    assert done.returncode == 0, done.stderr
    assert not [path for path in data.rglob("*") if path.is_file()] and done.stdout.count("deleted ") == len(told)
    assert client("--remove-launcher").stdout == "there was no launcher\n"


@pytest.mark.skipif(sys.platform != "linux", reason="programs of Linux's desktops")
def test_a_window_that_does_not_open_from_the_menu_says_so_in_a_dialog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DISPLAY", ":987")
    shown, dialog = tmp_path / "shown", tmp_path / "bin" / "zenity"
    dialog.parent.mkdir()
    dialog.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {shown}.part; mv {shown}.part {shown}\n")
    dialog.chmod(0o755)
    monkeypatch.setenv("PATH", f"{dialog.parent}:/usr/bin:/bin")
    from_menu = [sys.executable, "-m", "client", "--from-menu"]
    done = subprocess.run(from_menu, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "the window cannot be opened: " in done.stderr
    wait_for(shown.exists)
    why = "The window cannot be opened: "
    log = tmp_path / "state" / "gpt2d" / "client.log"
    assert f"--text={why}" in shown.read_text() and str(log) in shown.read_text()
    assert why in log.read_text() and "X11" in log.read_text()


def test_a_fault_is_kept_whole_and_the_log_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_state_path", lambda *_: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    args = argparse.Namespace(from_menu=True, terminal=False, prompt=None)

    def fault(_: object) -> str:
        raise FileNotFoundError(2, "gone", "x.ttf")

    monkeypatch.setattr(client_main, "show", fault)
    unseen.tell("a name of bytes that are no text: \udc80")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            client_main.run(args)
    log = (tmp_path / "client.log").read_text()
    assert log.count("gpt2d has ended by a fault: FileNotFoundError") == 1 and log.count("Traceback") == 1


def test_on_windows_it_is_a_message_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[tuple[object, ...]]()
    boxes = SimpleNamespace(user32=SimpleNamespace(MessageBoxW=lambda *words: shown.append(words)))
    monkeypatch.setattr(platformdirs, "user_state_path", lambda *_: tmp_path)
    monkeypatch.setattr("ctypes.windll", boxes, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    unseen.tell("The window cannot be opened: it is late")
    ((owner, text, title, kind),) = shown
    assert (owner, title, kind) == (None, "gpt2d", unseen.ERROR_ICON) and str(tmp_path / "client.log") in str(text)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_DATA_HOME is Linux's")
def test_where_it_cannot_be_written_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    done = client("--install-launcher")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("gpt2d-client: the launcher cannot be installed: ") and str(tmp_path) in done.stderr


def test_a_command_is_quoted_as_desktop_files_want_it() -> None:
    assert launcher.exec_line(["/my env/bin/gpt2d-client", "50%", 'a"$`\\']) == (
        '"/my env/bin/gpt2d-client" "50%%" "a\\\\"\\\\$\\\\`\\\\\\\\"'
    )


def test_on_windows_it_is_an_entry_of_the_start_menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[list[str]]()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path / "data")
    monkeypatch.setenv("APPDATA", str(tmp_path / "it's O\u2019Neill's"))
    monkeypatch.setenv("SYSTEMROOT", "C:/Windows")
    entry, picture = launcher.install()
    assert entry == tmp_path / "it's O\u2019Neill's" / "Microsoft" / "Windows" / "Start Menu" / "Programs" / "gpt2d.lnk"
    script = ran[0][-1]
    inside = str(entry).replace("'", "''").replace("\u2019", "\u2019\u2019")  # either ends a text in PowerShell
    assert f"CreateShortcut('{inside}')" in script and "pythonw.exe" in script
    kind, number = struct.unpack_from("<HH", picture.read_bytes(), 2)
    assert (kind, number) == (1, len(icon.SIZES))
    length, at = struct.unpack_from("<II", picture.read_bytes(), 14)
    assert picture.read_bytes()[at : at + length] == icon.file_of(16).read_bytes()
    entry.touch()
    assert launcher.remove() == [entry, picture] and not picture.exists()


def test_on_a_mac_it_is_a_command_to_double_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (entry,) = launcher.install()
    assert entry == tmp_path / "Applications" / "gpt2d.command" and entry.stat().st_mode & 0o111 == 0o111
    assert entry.read_text().startswith("#!/bin/sh\nexec ")
    assert launcher.remove() == [entry]


def test_the_icon_is_what_the_script_draws() -> None:
    for size in icon.SIZES[:-1]:
        drawn = icon.read(size)
        assert drawn.size == (size, size) and drawn.pixels == draw_icon.draw(size).tobytes()
        assert len(drawn.getdata()) == size * size
