"""What the gateway's side asks of whatever starts worker processes."""

from __future__ import annotations

from typing import Protocol

from protocol import messages as m
from protocol.errors import RequestError
from server.launch.spec import Spec


class Process(Protocol):
    """A running worker, as its launcher sees it."""

    def exit_code(self) -> int | None:
        """None while it runs, or while it is begun anew elsewhere; negative: ended by that signal."""
        ...

    def problem(self) -> RequestError | None:
        """Why it ended, where that is not the process's own doing."""
        ...

    def progress(self) -> m.Progress | None:
        """What its launcher is about, before there is a process; None: nothing new."""
        ...

    def renew(self, routing_id: str) -> bool:
        """The connection with that routing id broke: end its process if it is still there. True if its launcher begins another."""
        ...

    def stop(self) -> None:
        """Ask it to end, without waiting."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts worker processes somewhere."""

    def start(self, spec: Spec, memory_bytes: int) -> Process:
        """Start a worker that may come to need so much memory.

        Raises: OSError if no process can be made, NoMemory if no place is left, LoadFailed if its place is out of reach.
        """
        ...

    def free_memory(self, untaken: int) -> int:
        """Bytes that a new worker could take; `untaken` of them are reserved for others that have not taken them yet."""
        ...

    def places(self) -> str:
        """What there is, in words for people; empty where `free_memory` says it all."""
        ...

    def close(self) -> None:
        """No worker is started any more, and none runs."""
        ...
