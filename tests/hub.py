"""Small HuggingFace hub on 127.0.0.1: as much of its HTTP as huggingface_hub uses, with faults on request."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "5" * 40
CHUNK = 64 << 10


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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        found = re.fullmatch(r"/(.+)/resolve/main/(.+)", handler.path)
        name = f"{found[1]}/{found[2]}" if found else ""
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", handler.headers.get("Range", "0")))
        self.asked.append((method, name, start))
        if name not in self.files:
            known = found and any(n.startswith(f"{found[1]}/") for n in self.files)
            handler.send_response(404)
            handler.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            handler.send_header("X-Repo-Commit", self.commit)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.files[name]
        weights = name.endswith((".safetensors", ".bin"))
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
