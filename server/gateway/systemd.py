"""Messages to the service manager: sd_notify(3), one datagram each, to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import contextlib
import os
import socket
import time


class ServiceManager:
    """Connection to the service manager, if there is one. Never waits for it. Used by the gateway's thread only."""

    def __init__(self) -> None:
        """Read the environment, and remove what was read: workers must not talk to the manager."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        timeout, process = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = timeout.isdecimal() and process in {"", str(os.getpid())}
        self._interval_s = int(timeout) / 2e6 if mine else float("inf")
        """Half of the time that it waits for a sign of life."""
        self._due = 0.0
        self._status, self._stopping = "", False
        self._socket: socket.socket | None = None
        if address and hasattr(socket, "AF_UNIX"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def ready(self) -> None:
        self._tell("READY=1")

    def moving(self, status: str) -> None:
        """Report that the gateway's loop moves: to the watchdog when it is due, and the status when it has changed."""
        now = time.monotonic()
        if now >= self._due and self._interval_s < float("inf"):
            self._due = now + self._interval_s
            self._tell("WATCHDOG=1")
        if status != self._status:
            self._status = status
            self._tell(f"STATUS={status}")

    def stopping(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._tell("STOPPING=1")

    def _tell(self, line: str) -> None:
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.sendto(line.encode(), self._address)
