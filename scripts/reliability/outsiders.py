"""Peers that attack again and again, over ever new connections, from processes of their own.

python -m scripts.reliability.outsiders KIND HOST PORT SECONDS    is one of them, on THREADS connections at a time
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from protocol import Client, codec, messages as m
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.hostile import Watch
from scripts.reliability.promise import Figures, Scale, promise
from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import MORE, frame

PARTS = frame(b"", MORE) * 133_000 + frame(b"")
"""Not quite as large as what is cut before it is complete."""
PING = frame(codec.encode(m.Ping(id=1)))
FLOOD = PING * 5000
KINDS = {"parts": 1, "parts_later": 1, "requests": 4}
"""Attacks, and the number of processes: messages of very many parts, as the first or the second one, and requests."""
THREADS = 4
PING_S, NEW_S = 4.0, 10.0
"""Most time that 99 of 100 pings may take, and that a new client may wait."""
GROWTH_BYTES = 192 << 20


@promise
def outsiders(scale: Scale, folder: Path) -> Figures:
    """While outsiders attack over ever new connections, those who are connected are answered, new clients get in within
    seconds, and the gateway stays small.
    """
    figures: Figures = {}
    for kind, processes in KINDS.items():
        figures |= _attacked(folder / kind, kind, processes, scale.of(1, 4, 20))
    return figures


def _attacked(folder: Path, kind: str, processes: int, seconds: int) -> Figures:
    with FakeDaemon(folder, Behaviour()) as daemon, Watch(daemon) as watch:
        where = urlsplit(daemon.endpoint)
        command = [sys.executable, "-m", __name__, kind, str(where.hostname), str(where.port), str(seconds)]
        with Client(daemon.endpoint) as client:
            client.ping(timeout=20)
        start, waits = daemon.rss(), list[float]()
        with watch.during() as watched:
            attackers = [subprocess.Popen(command) for _ in range(processes)]
            try:
                while any(attacker.poll() is None for attacker in attackers):
                    waits.append(_new_client(daemon.endpoint))
            finally:
                for attacker in attackers:
                    attacker.kill()
                    attacker.wait()
        p99, grown = statistics.quantiles(watched.waits, n=100)[-1], watched.peak - start
        assert p99 < PING_S, f"{kind}: pings took {p99 * 1000:.0f} ms (p99)"
        assert max(waits) < NEW_S, f"{kind}: a new client waited for {max(waits):.1f} s"
        assert grown < GROWTH_BYTES, f"{kind}: the gateway grew by {grown / 2**20:.0f} MiB"
        return {
            f"{kind}_ping_ms_p99": round(p99 * 1000),
            f"{kind}_ping_ms_max": round(max(watched.waits) * 1000),
            f"{kind}_new_client_s_max": round(max(waits), 2),
            f"{kind}_grown_mib": round(grown / 2**20, 1),
        }


def _new_client(endpoint: str) -> float:
    """Return the seconds until a new client is answered."""
    began = time.monotonic()
    with Client(endpoint) as client:
        client.ping(timeout=2 * NEW_S)
    return time.monotonic() - began


def _attack(kind: str, host: str, port: int, seconds: float) -> None:
    give_up = time.monotonic() + seconds

    def again() -> None:
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError), shaken(host, port) as peer:
                if kind == "parts_later":
                    peer.sendall(PING)
                    peer.recv(1)
                sent(peer, FLOOD if kind == "requests" else PARTS, max(0.1, give_up - time.monotonic()))

    threads = [threading.Thread(target=again) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _attack(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
