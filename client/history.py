"""The prompts that were typed, kept for the next session in a file that only this user can read."""

from __future__ import annotations

import contextlib
import os

import platformdirs
from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def open_history() -> History:
    """Return the history of all sessions; of this one alone where no file can be kept."""
    try:
        file = platformdirs.user_data_path("gpt2d", ensure_exists=True) / "history"
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        file.chmod(0o600)  # one that an earlier version made
    except OSError:
        return InMemoryHistory()
    return _KeptHistory(str(file))


class _KeptHistory(FileHistory):
    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the session has it all the same
            super().store_string(string)
