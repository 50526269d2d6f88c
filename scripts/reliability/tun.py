"""Two hosts on one machine that are far apart: network namespaces, and each IP packet between them is relayed here.

A proxy ends each TCP connection and begins another, so that handshakes and acknowledgements are as fast as ever. Here
they take the way too, as with `tc netem`, which not every kernel has. Needs Linux, root and the `ip` of iproute2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET, MOST_PACKETS = 2048, 10_000
TICK_S = 0.002


def possible() -> bool:
    """True where namespaces and TUN devices can be made."""
    return sys.platform == "linux" and os.geteuid() == 0 and bool(shutil.which("ip")) and TUN.exists()


class FarHosts:
    """The hosts' namespaces, `near` and `far`, and their addresses. Packets take `latency_s` each way."""

    near_address, far_address = "10.213.9.2", "10.213.9.1"

    def __init__(self, latency_s: float) -> None:
        tag = secrets.token_hex(3)
        self.near, self.far = f"gpt2d-{tag}-n", f"gpt2d-{tag}-f"
        self._latency_s = latency_s
        self.open = threading.Event()
        """Cleared, it makes the line stall: packets wait, up to MOST_PACKETS of them."""
        self.open.set()
        self._over = threading.Event()
        self._ends: list[int] = []
        self._relay = threading.Thread(target=self._run)
        try:
            self._join(tag)
        except BaseException:
            self._clean()
            raise
        self._relay.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._relay.join()
        self._clean()

    @staticmethod
    def inside(host: str) -> tuple[str, ...]:
        """Return the words before a command that runs on a host."""
        return "ip", "netns", "exec", host

    def _join(self, tag: str) -> None:
        ends = ((self.near, self.near_address, self.far_address), (self.far, self.far_address, self.near_address))
        for host, own, other in ends:
            device = f"t{tag}{host[-1]}"
            self._ends.append(_tun(device))
            _ip("netns", "add", host)
            _ip("link", "set", device, "netns", host)
            _ip("-n", host, "address", "add", own, "peer", other, "dev", device)
            for one in ("lo", device):
                _ip("-n", host, "link", "set", one, "up")

    def _run(self) -> None:
        near, far = self._ends
        under_way: deque[tuple[float, int, bytes]] = deque()
        while not self._over.is_set():
            for end in select.select(self._ends, [], [], TICK_S)[0]:
                packet = os.read(end, PACKET)
                if len(under_way) < MOST_PACKETS:
                    under_way.append((time.monotonic() + self._latency_s, far if end == near else near, packet))
            while under_way and self.open.is_set() and under_way[0][0] < time.monotonic():
                end, packet = under_way.popleft()[1:]
                with contextlib.suppress(OSError):  # a host that does not take it: a line may lose packets
                    os.write(end, packet)

    def _clean(self) -> None:
        for end in self._ends:
            os.close(end)
        for host in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, timeout=10, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


def _tun(name: str) -> int:
    """Make a TUN device; return its descriptor, which outlives that it is moved to a namespace."""
    import fcntl  # Windows has none

    descriptor = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor
