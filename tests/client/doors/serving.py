"""The door for HTTP in a thread of the tests' own process, and what asks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn

from client.doors.http.__main__ import listen
from client.doors.http.app import Door
from client.doors.http.guard import Guard
from client.doors.http.patience import Patient
from protocol.keys import Address

SECONDS = 60


@contextlib.contextmanager
def opened(endpoint: str, guard: Guard | None = None) -> Iterator[str]:
    """Open a door to a daemon; give its address. It is closed again at the end."""
    listener = listen("127.0.0.1", 0)
    app = Door(Address.parse(endpoint), guard or Guard()).app()
    server = uvicorn.Server(uvicorn.Config(app, http=Patient, loop="asyncio", lifespan="on", log_config=None))
    server.config.timeout_graceful_shutdown = 0
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listener.close()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer; a body is posted."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)
