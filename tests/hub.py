"""Small HuggingFace hub on 127.0.0.1: as much of its HTTP as huggingface_hub uses, with faults on request."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "5" * 40
CHUNK = 64 << 10
LARGE = (".safetensors", ".bin")


class Server(ThreadingHTTPServer):
    """One that ends its connections when it ends: each that a client keeps would hold a thread and two descriptors."""

    daemon_threads = False  # so that server_close() waits for them

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in [*self.connections]:
            with contextlib.suppress(OSError):  # its client has just closed it
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


@dataclass
class Hub:
    """Hub with `files`, {"repository/file": bytes}. The faults are those of its weights."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    """Number of bytes after which every answer ends and breaks the connection."""
    stop_after: int | None = None
    """Number of bytes after which the answer pauses until `go`."""
    damaged: bool = False
    commit: str = COMMIT
    etag: str = ""
    """Tag sent for every file instead of its digest."""
    gated: frozenset[str] = frozenset()
    """Repositories that are given to the account of `token` alone; others know of them."""
    token: str = "hf_right"
    other_token: str = "hf_other"
    """Token of an account that has accepted nothing. Every further token is wrong."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Old names of repositories and their new ones."""
    plain: bool = False
    """Whether it only serves files, and says of what it has not 404 and nothing more."""
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, repository/file, first byte) of every request."""
    url: str = ""

    def add(self, repository: str, folder: Path, *names: str) -> None:
        for file in sorted(folder.iterdir()):
            if file.is_file() and (not names or file.name in names):
                self.files[f"{repository}/{file.name}"] = file.read_bytes()

    def served(self, name: str) -> list[int]:
        """Return the first byte of every GET of a file."""
        return [first for method, file, first in self.asked if method == "GET" and file.endswith(name)]

    def connections(self) -> int:
        """Return how many connections its clients have open."""
        return len(self._server.connections)

    def weights_asked(self) -> list[str]:
        """Return what was asked of files of weights, by any method."""
        return [file for _, file, _ in self.asked if file.endswith(LARGE)]

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, "HEAD")

            def do_GET(self) -> None:
                hub._answer(self, "GET")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = Server(Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()

    def _say(self, handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
        """Answer without a body."""
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        found = re.fullmatch(r"/(.+)/resolve/(main|[0-9a-f]{40})/(.+)", handler.path)
        repository = found[1] if found else ""
        name = f"{repository}/{found[3]}" if found else ""
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", handler.headers.get("Range", "0")))
        self.asked.append((method, name, start))
        if repository in self.renamed:
            self._say(handler, 307, Location=handler.path.replace(repository, self.renamed[repository]))
            return
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in {self.token, self.other_token}:
            self._say(handler, 401, X_Error_Message="Invalid credentials in Authorization header")
            return
        if repository in self.gated and token != self.token:
            self._say(handler, 403 if token else 401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
            return
        if name not in self.files or (found and found[2] not in {"main", self.commit}):
            known = any(n.startswith(f"{repository}/") for n in self.files)
            code = "EntryNotFound" if known else "RepoNotFound"
            more = {} if self.plain else {"X_Error_Code": code, "X_Repo_Commit": self.commit}
            self._say(handler, 404, **more)
            return
        body = self.files[name]
        weights = name.endswith(LARGE)
        handler.send_response(206 if start else 200)
        # The hub names large files by their SHA-256 and small ones by their git object.
        etag = (
            hashlib.sha256(body).hexdigest() if weights else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        )
        for key, value in {
            "ETag": f'"{self.etag or etag}"',
            "X-Repo-Commit": self.commit,
            "Content-Length": str(len(body) - start),
        }.items():
            handler.send_header(key, value)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        if method == "HEAD":
            return
        body = body[start:]
        if weights and self.damaged:
            body = body[:-1] + bytes([body[-1] ^ 1])
        for sent in range(0, len(body), CHUNK):
            if weights and self.stop_after is not None and start + sent >= self.stop_after:
                self.go.wait(30)
            if weights and self.cut_after is not None and sent >= self.cut_after:
                handler.close_connection = True
                return
            try:
                handler.wfile.write(body[sent : sent + CHUNK])
            except OSError:
                return
