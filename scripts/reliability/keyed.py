"""Keys for a daemon, each of which may generate."""

from __future__ import annotations

from pathlib import Path

from protocol import Client
from protocol.keys import Address, CurveKeys, write_public, write_secret
from scripts.daemon import Daemon
from scripts.reliability.asking import until


class Keys:
    """A server's key, and one for each of `names`; `arguments` are the flags by which a daemon takes them."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._server, self._keys = CurveKeys.new(), {name: CurveKeys.new() for name in names}
        write_secret(folder / "server.key", self._server)
        for name, key in self._keys.items():
            write_public(folder / "authorised" / f"{name}.pub", key.public, "generate")
        self.arguments = (f"--key={folder / 'server.key'}", f"--authorised-keys={folder / 'authorised'}")

    def line(self, endpoint: str, name: str) -> str:
        """Return the connect line of a key's holder."""
        return Address(endpoint, self._server.public, self._keys[name]).line()


class KeyedDaemon(Daemon):
    """A daemon with a key for each of `names`, which has loaded what `--preload` names once this object is made."""

    def __init__(self, folder: Path, names: tuple[str, ...], *arguments: str) -> None:
        self._keys = Keys(folder, names)
        super().__init__(folder, *self._keys.arguments, *arguments)
        with self.client(names[0]) as client:
            until(lambda: any(worker.state == "ready" for worker in client.ping().workers), 120, "the model is loaded")

    def client(self, name: str) -> Client:
        return Client(self._keys.line(self.endpoint, name))
