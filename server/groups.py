"""The control groups that this process is in, by which Linux bounds a service or a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Yield cgroup's version, 2 or 1, and a folder that such a group may have; files of both are named otherwise.

    These are the process's own group and all around it, each of which may have a limit.
    """
    top = root / "sys/fs/cgroup"
    for line in (text(root / "proc/self/cgroup") or f"0::/\n1:{controller}:/").splitlines():
        controllers, group = line.split(":", 2)[1:]
        place = PurePosixPath(group.lstrip("/"))
        for inner in (place, *place.parents):  # a container may see its own group as the top
            if not controllers:
                yield 2, top / inner
            elif controller in controllers.split(","):
                yield from ((1, folder / inner) for folder in {top / controller, top / controllers})


def text(file: Path) -> str | None:
    """Return what a file of the system says; None where it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
