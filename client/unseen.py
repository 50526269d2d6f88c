"""Tells what went wrong to those who started the client from the system's menu, where no terminal shows it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time

import platformdirs

TITLE = "gpt2d"
DIALOGS = (
    ("zenity", "--error", "--no-markup", f"--title={TITLE}", "--width=480", "--text={}"),
    ("kdialog", "--title", TITLE, "--error", "{}"),
    ("notify-send", f"--app-name={TITLE}", "--icon=gpt2d", "--urgency=critical", TITLE, "{}"),
    ("xmessage", "-center", "-title", TITLE, "{}"),
)
"""Programs of Linux's desktops that show a text: the first that is there is taken."""
ERROR_ICON = 0x10


def tell(text: str, details: str = "") -> None:
    """Show a text in a dialog, where the system has one, and keep it with its details as the one entry of a log."""
    log = platformdirs.user_state_path("gpt2d") / "client.log"
    with contextlib.suppress(OSError):  # a full or foreign disk: the dialog is all that is left
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n{details}", "utf-8", "backslashreplace")
        text = f"{text}\n\nThis is kept in {log}."
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.user32.MessageBoxW(None, text, TITLE, ERROR_ICON)
        return
    for name, *words in DIALOGS:
        if program := shutil.which(name):
            command = [program, *(word.replace("{}", text) for word in words)]
            with contextlib.suppress(OSError):
                subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
                return
