"""The disk cache of what is built of a model's tensors. Used in workers only.

Workers that want the same thing at the same time build it once: one builds, the others wait and then use it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocol.errors import LoadFailed
from server.catalogue.engines import BUILD_FORMAT, CALIBRATED, LOCK_SUFFIX, SUMS_FILE
from server.catalogue.notes import digest
from server.convert.lock import Lock, Taken

Count = Callable[[int, int], None]
"""progress(done, total)"""
DRAFT, TEMPORARY = ".building-", "gpt2d-built-"
STALE_S = 3600.0
LOOK_S = 0.1
"""How often those that wait look whether the builder is done."""
STUCK_S = 600.0
"""A builder that has not come further for as long is not waited for."""


class Built(Protocol):
    """An engine's own form of the weights, which is kept on disk."""

    def write(self, folder: Path) -> None: ...


class BuildCache:
    """Built models on disk, by content: a folder each, complete when it appears, the least recently used out first.

    What cannot be written to the cache (a full or read-only disk) is built into a temporary folder instead.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(
        self,
        name: str,
        build: Callable[[Count], Built],
        progress: Count = lambda *_: None,
        wanted: Callable[[Path], bool] = lambda _: True,
    ) -> Path:
        """Return the folder of what is called `name`, built where it is missing or damaged, or is not `wanted(folder)`.

        `build` takes the progress to report. One that another process builds is waited for, with that one's progress.
        Raises: LoadFailed where it can be written nowhere, and what `build` raises.
        """
        sweep(self._folder)
        entry = self.folder(name)
        if _intact(entry) and wanted(entry):
            with contextlib.suppress(OSError):
                os.utime(entry)
            return entry
        lock = self._turn(f"{_task(name)}{LOCK_SUFFIX}", progress)
        if lock is None:
            return self._build(name, "", lambda: build(progress))

        def count(done: int, total: int) -> None:
            lock.note(done, total)
            progress(done, total)

        try:  # another may have built it meanwhile
            there = _intact(entry) and wanted(entry)
            return entry if there else self._build(name, _task(name), lambda: build(count))
        finally:
            lock.release()

    def _turn(self, name: str, progress: Count) -> Lock | None:
        """Wait until nobody else builds this. None where the cache cannot be locked or written: then each builds."""
        seen = (0, 0)
        since = time.monotonic()
        while time.monotonic() < since + STUCK_S:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                return Lock(self._folder / name)
            except OSError:
                return None
            except Taken as taken:
                if seen != (taken.done, taken.total):
                    seen = (taken.done, taken.total)
                    since = time.monotonic()
            progress(*seen)
            time.sleep(LOOK_S)
        return None

    def _build(self, name: str, task: str, build: Callable[[], Built]) -> Path:
        """Build and store what is called `name`; `task` is the one that is locked, empty for none."""
        built, entry = build(), self.folder(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store(built, name, task)
            self.trim(keep=entry)
        except OSError as e:
            print(f"the cache of built models {self._folder} cannot be used: {e}", file=sys.stderr)
            return self._store_temporarily(built, e)
        return entry

    def _store_temporarily(self, built: Built, refused: OSError) -> Path:
        """Write to the temporary folder what the cache has refused. Raises: LoadFailed."""
        temporary = None
        try:
            sweep(Path(tempfile.gettempdir()), TEMPORARY)
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY))
            _write(built, temporary)
        except OSError as e:
            where = temporary.parent if temporary else "a temporary folder"
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            raise LoadFailed(
                f"the built model cannot be written, neither to {self._folder} ({refused.strerror or refused}) nor to "
                f"{where} ({e.strerror or e}); make room in one of them"
            ) from e
        return temporary

    def find(self, name: str) -> tuple[bool, bool]:
        """Return whether what is called `name` is there, and whether it is as it was written."""
        entry = self.folder(name)
        return entry.is_dir(), _intact(entry)

    def outdated(self, name: str) -> bool:
        """True if what is called `name` is there in an older format only."""
        formats = [entry.name.removeprefix(f"{name}-v") for entry in self._folder.glob(f"{name}-v*")]
        numbers = [int(number) for number in formats if number.isdecimal()]
        return bool(numbers) and max(numbers) < BUILD_FORMAT

    def folder(self, name: str) -> Path:
        """Return where what is called `name` is kept."""
        return self._folder / f"{name}-v{BUILD_FORMAT}"

    def opened(self, folder: Path) -> None:
        """Note that an engine has opened what `get` returned: a temporary folder is no longer needed."""
        if self._folder not in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)

    def _store(self, built: Built, name: str, task: str) -> None:
        entry = self.folder(name)
        draft = Path(tempfile.mkdtemp(prefix=f"{DRAFT}{task}-", dir=self._folder))
        try:
            _write(built, draft)
            if entry.exists():  # damaged: out of the way in one step, so that nobody sees half of it
                entry.rename(draft / "damaged")
            draft.rename(entry)
        except OSError:
            if not _intact(entry):  # else another worker was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(entry / "damaged", ignore_errors=True)

    def trim(self, keep: Path) -> None:
        """Delete the least recently used of what is too much, but `keep`; what takes long to make again comes last."""
        ages: dict[Path, float] = {}
        sizes: dict[Path, int] = {}
        for entry in self._folder.glob("[!.]*-v*"):  # no drafts, whose names may have this, too
            with contextlib.suppress(OSError):  # another worker may be deleting it
                sizes[entry] = sum(f.stat().st_size for f in entry.rglob("*"))
                ages[entry] = entry.stat().st_mtime
        for entry in sorted(ages, key=lambda entry: (CALIBRATED in entry.name, ages[entry])):
            if sum(sizes.values()) <= self._max_bytes:
                return
            if entry != keep:
                with contextlib.suppress(OSError):
                    doomed = entry.rename(self._folder / f"{DRAFT}{entry.name}")
                    shutil.rmtree(doomed, ignore_errors=True)
                    del sizes[entry]


def sweep(folder: Path, prefix: str = DRAFT) -> None:
    """Delete what workers left that were ended while they built, each as large as its model."""
    for draft in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if _is_left(draft, draft.name.removeprefix(prefix).rpartition("-")[0]):
                shutil.rmtree(draft, ignore_errors=True)


def _is_left(draft: Path, task: str) -> bool:
    """Return whether nobody writes a draft any more: its lock is free, or where it has none it is old."""
    try:
        if task:
            Lock(draft.parent / f"{task}{LOCK_SUFFIX}").release()
            return True
    except Taken:
        return False
    except OSError:  # no locks here
        pass
    return time.time() - draft.stat().st_mtime > STALE_S


def _task(name: str) -> str:
    """Return what the lock and the drafts are called of those who build what is called `name`."""
    return f"{name}.v{BUILD_FORMAT}"


def _write(built: Built, folder: Path) -> None:
    built.write(folder)
    (folder / SUMS_FILE).write_text(_sums(folder))


def _sums(folder: Path) -> str:
    return "".join(
        f"{digest(f, lambda *_: None)}  {f.name}\n"
        for f in sorted(folder.iterdir())
        if f.is_file() and f.name != SUMS_FILE
    )


def _intact(folder: Path) -> bool:
    """True if every byte is as it was written."""
    try:
        return (folder / SUMS_FILE).read_text() == _sums(folder)
    except OSError:
        return False
