"""Look at the daemon on an endpoint, for run.py, which has none of these libraries: prints one JSON object."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from protocol import Client, Gpt2dError
from protocol.messages import ServerInfo
from server.catalogue.engines import ENGINES


def look(endpoint: str) -> dict[str, object]:
    """Return what scripts/shared_daemon.py's `Found` holds, by name."""
    with Client(endpoint) as client:
        try:
            draining, info = client.ping().draining, client.hello()
        except Gpt2dError as e:
            return {"trouble": str(e), "draining": False, "pid": None, "lacks": []}
    return {"trouble": "", "draining": draining, "pid": pid(endpoint, info), "lacks": lacks(info)}


def lacks(info: ServerInfo) -> list[str]:
    """Return the engines that this checkout can use and a daemon on this machine, started earlier, cannot."""
    if info.host != platform.node():
        return []
    there = {engine.name for engine in info.engines}
    return [name for name in ENGINES if name not in there]


def pid(endpoint: str, info: ServerInfo) -> int | None:
    """Return the daemon's process where it can be known: on this machine, of this user, and no tunnel to another."""
    if info.host != platform.node():
        return None
    port = urlsplit(endpoint).port
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid and Path(psutil.Process(connection.pid).exe()).name.startswith("python"):
                return connection.pid
    except psutil.Error:  # a system that does not tell, or the process has just ended
        pass
    return None


def main() -> None:
    json.dump(look(sys.argv[1]), sys.stdout)


if __name__ == "__main__":
    main()
