"""A lock between processes: a file that the system unlocks when its holder ends, however that ends.

Not a file that is there or not, which a killed holder would leave behind. In the file is how far the holder has come.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FAR = 1 << 30
"""The byte that is locked on Windows, where a locked one cannot be read: behind what is written."""


class Taken(Exception):
    """Another process holds the lock; `done` of `total` is how far it has come."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"{done} of {total} done")
        self.done = done
        self.total = total


class Lock:
    """Held from the start until `release`."""

    def __init__(self, file: Path) -> None:
        """Raises: Taken; OSError where files cannot be written or locked, as on a read-only disk."""
        self._file = file
        self._descriptor = -1
        while self._descriptor < 0:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                if _is_same(descriptor, file):  # else its last holder has deleted it since it was opened
                    self._descriptor = descriptor
            except BlockingIOError:
                raise Taken(*_read(descriptor)) from None
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)

    def note(self, done: int, total: int) -> None:
        """Write down how far the holder has come."""
        with contextlib.suppress(OSError):  # a full disk: those that wait see no progress
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, b"%d %d \n" % (done, total))

    def release(self) -> None:
        """Let others have the lock, and delete its file."""
        with contextlib.suppress(OSError):  # Windows does not delete what is open
            self._file.unlink(missing_ok=True)
        os.close(self._descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        """Raises: BlockingIOError where another holds it; OSError where there are no locks."""
        os.lseek(descriptor, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as e:
            raise BlockingIOError(*e.args) from None

else:

    def _lock(descriptor: int) -> None:
        """Raises: BlockingIOError where another holds it; OSError where there are no locks."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> tuple[int, int]:
    with contextlib.suppress(OSError, ValueError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        done, total = os.read(descriptor, 64).split()[:2]
        return int(done), int(total)
    return 0, 1
