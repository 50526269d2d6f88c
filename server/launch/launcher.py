"""The interface of whatever starts worker processes."""

from __future__ import annotations

from typing import Protocol

from protocol import messages as m
from protocol.errors import RequestError
from server.launch.spec import Spec


class Process(Protocol):
    """A running worker, as its launcher sees it."""

    def exit_code(self) -> int | None:
        """Return None while it runs, or while it is begun again elsewhere; negative: ended by that signal."""
        ...

    def problem(self) -> RequestError | None:
        """Return why it ended, where that is not the process's own doing."""
        ...

    def progress(self) -> m.Progress | None:
        """Return what its launcher is doing before there is a process; None: nothing new."""
        ...

    def renew(self, routing_id: str) -> bool:
        """End the process whose connection, with that routing id, broke. True if its launcher begins another."""
        ...

    def stop(self) -> None:
        """Ask it to end, without waiting."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts worker processes somewhere."""

    def start(self, spec: Spec, memory_bytes: int) -> Process:
        """Start a worker that may come to need `memory_bytes`.

        Raises: OSError if no process can be made, NoMemory if no place is left, LoadFailed if its place is out of
        reach.
        """
        ...

    def free_memory(self, untaken: int) -> int:
        """Return the bytes that a new worker could take; `untaken` of them are reserved for others."""
        ...

    def places(self) -> str:
        """Return what there is, in words for people; empty where `free_memory` says it all."""
        ...

    def close(self) -> None:
        """End; no worker is started any more, and none runs."""
        ...
