"""A TCP proxy that does to a connection what networks do: latency, little bandwidth, slices, resets, black holes."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit

RECEIVE = 64 << 10


@contextlib.contextmanager
def stalls(line: threading.Event, rng: random.Random) -> Iterator[list[float]]:
    """Stop a line that is open while the event is set, for 1 to 3 s every 0.5 to 4 s; yield how long it was stopped."""
    over, stopped = threading.Event(), list[float]()

    def stall() -> None:
        while not over.wait(rng.uniform(0.5, 4)):
            line.clear()
            stopped.append(rng.uniform(1, 3))
            over.wait(stopped[-1])
            line.set()

    thread = threading.Thread(target=stall)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


class Proxy:
    """A proxy whose `endpoint` leads to `target`. Its faults may be changed at any time."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.latency = 0.0
        """Seconds that each piece takes, each way."""
        self.bandwidth: float | None = None
        """Bytes per second, each way; None: no limit."""
        self.slice = RECEIVE
        """Most bytes that are passed on at once."""
        self.reset_after: int | None = None
        """Reset the next connection after this number of bytes from the server."""
        self.open = threading.Event()
        """Cleared, it makes a black hole: connections stay open, and nothing is passed on."""
        self.open.set()
        self.connections = 0
        self._over = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.open.set()
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Reset every connection."""
        for end in self._sockets:
            _reset(end)
        self._sockets.clear()

    def _accept(self) -> None:
        while not self._over:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                continue
            self.connections += 1
            self._sockets += [near, far]
            limit, self.reset_after = self.reset_after, None
            for source, sink, most in ((near, far, None), (far, near, limit)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, most), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        try:
            while data := source.recv(RECEIVE):
                time.sleep(self.latency)
                while data:
                    piece = data[: self.slice if most is None else min(self.slice, most)]
                    self.open.wait()
                    if most is not None:
                        most -= len(piece)
                    sink.sendall(piece)
                    if most == 0:
                        break
                    if self.bandwidth:
                        time.sleep(len(piece) / self.bandwidth)
                    data = data[len(piece) :]
                if most == 0:
                    break
            ends = socket.SHUT_WR
            if most is None:
                sink.shutdown(ends)
                return
        except OSError:
            pass
        _reset(source)
        _reset(sink)


def _reset(end: socket.socket) -> None:
    """Close with RST instead of FIN."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
    except OSError:
        pass
    end.close()
