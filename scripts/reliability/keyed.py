"""A real daemon with keys, each of which may generate."""

from __future__ import annotations

from pathlib import Path

from protocol import Client
from protocol.keys import CurveKeys, write_public, write_secret
from scripts.daemon import Daemon
from scripts.reliability.asking import until


class KeyedDaemon(Daemon):
    """A daemon with a key for each of `names`, which has loaded what `--preload` names once this object is made."""

    def __init__(self, folder: Path, names: tuple[str, ...], *arguments: str) -> None:
        self._server, self._keys = CurveKeys.new(), {name: CurveKeys.new() for name in names}
        write_secret(folder / "server.key", self._server)
        for name, key in self._keys.items():
            write_public(folder / "authorised" / f"{name}.pub", key.public, "generate")
        keys = (f"--key={folder / 'server.key'}", f"--authorised-keys={folder / 'authorised'}")
        super().__init__(folder, *keys, *arguments)
        with self.client(names[0]) as client:
            until(lambda: any(worker.state == "ready" for worker in client.ping().workers), 120, "the model is loaded")

    def client(self, name: str) -> Client:
        return Client(self.endpoint, server_key=self._server.public, key=self._keys[name].secret)
