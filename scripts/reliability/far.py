"""A client on a host that is far away: python -m scripts.reliability.far CONNECT_LINE SECONDS"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from protocol import messages as m
from protocol.connection import Connection
from scripts.daemon import ROOT
from scripts.reliability.asking import Asked, text
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.keyed import Keys
from scripts.reliability.promise import Figures, Scale, promise
from scripts.reliability.proxy import stalls
from scripts.reliability.tun import FarHosts, possible

LATENCY_S = 0.5


class FarDaemon(FakeDaemon):
    """A daemon with keys on the far host."""

    def __init__(self, folder: Path, hosts: FarHosts, behaviour: Behaviour, keys: Keys) -> None:
        self.before = hosts.inside(hosts.far)
        endpoint = f"tcp://{hosts.far_address}:0"
        super().__init__(folder, behaviour, "--endpoint", endpoint, "--preload", "demo", *keys.arguments)


@promise
def far_line(scale: Scale, folder: Path) -> Figures:
    """Between two hosts whose every packet takes 500 ms each way, and waits for 1 to 3 s again and again, a client with
    a key connects, and the same connection carries a stream to its end.
    """
    if not possible():
        return {"skipped": "needs Linux, root, iproute2 and TUN devices"}
    seconds, rng = scale.of(2, 20, 60), random.Random(3)
    keys = Keys(folder, ("client",))
    behaviour = Behaviour(delay_ms=seconds * 1000 // 900)
    with FarHosts(LATENCY_S) as hosts, FarDaemon(folder, hosts, behaviour, keys) as daemon:
        command = [sys.executable, "-m", "scripts.reliability.far", keys.line(daemon.endpoint, "client")]
        with stalls(hosts.open, rng) as stopped:
            done = subprocess.run(
                [*hosts.inside(hosts.near), *command, str(seconds)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds + 120,
                check=False,
            )
    assert done.returncode == 0, done.stderr
    return {"stalls": len(stopped), **json.loads(done.stdout)}


def main() -> None:
    """Connect, stream one text, check it, and print the seconds that both took."""
    line, seconds = sys.argv[1], float(sys.argv[2])
    lost = threading.Event()
    began = time.monotonic()
    connection = Connection(line, on_lost=lost.set)
    ping, stream = Asked(m.Ping()), Asked(text(1, 900))
    connection.submit(ping.request, ping.take, 60)
    pong = ping.wait(60)
    assert isinstance(pong, m.Pong) and [worker.state for worker in pong.workers] == ["ready"], pong
    connection.submit(stream.request, stream.take, seconds + 60)
    stream.wait(seconds + 60)
    stream.is_right()
    connection.close()
    assert not lost.is_set(), "the connection broke"
    print(json.dumps({"connected_s": round(ping.at - began, 1), "streamed_s": round(stream.at - ping.at, 1)}))


if __name__ == "__main__":
    main()
