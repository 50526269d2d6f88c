"""What goes wrong, as OpenAI's errors in JSON with its status codes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from protocol.errors import (
    BadModel,
    BadRequest,
    Busy,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    Draining,
    Gpt2dError,
    LoadFailed,
    NoMemory,
    NotLoaded,
    TooLong,
    Unauthorised,
    UnknownModel,
    WorkerDied,
)

REQUEST, SERVER = "invalid_request_error", "server_error"
KINDS: tuple[tuple[type[Gpt2dError], int, str, str | None], ...] = (
    (TooLong, 400, REQUEST, "context_length_exceeded"),
    (BadRequest, 400, REQUEST, None),
    (BadModel, 400, REQUEST, None),
    (Unauthorised, 403, "permission_error", None),
    (NotLoaded, 404, REQUEST, "model_not_found"),
    (UnknownModel, 404, REQUEST, "model_not_found"),
    (Busy, 429, "rate_limit_error", "rate_limit_exceeded"),
    (NoMemory, 503, SERVER, None),
    (LoadFailed, 503, SERVER, None),
    (WorkerDied, 503, SERVER, None),
    (Cancelled, 503, SERVER, None),
    (Draining, 503, SERVER, None),
    (ConnectionFailed, 503, SERVER, None),
    (DeadlineExceeded, 504, SERVER, "timeout"),
)
"""Status, type and code of each error; of all others 500."""
FIELD = re.compile(r"(\w+)(?:\[\d+\])* (?:must|cannot) be ")
"""How a sentence begins that is about one field, or something in it."""
NAMES = {
    'shorten either, or ask for truncate="left"': "shorten either",
    "max_new_tokens": "max_tokens",
    "prompt_ids": "prompt",
}
"""What the daemon's sentences call otherwise than a request over HTTP."""


@dataclass
class Refused(Exception):
    """A request that is answered by an error."""

    status: int
    message: str
    kind: str = REQUEST
    code: str | None = None
    param: str | None = None

    def body(self) -> bytes:
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": told})


def refused(error: Gpt2dError) -> Refused:
    """Return what an error of the daemon, or of the way to it, is over HTTP."""
    message = re.sub(r"^(generate|tokenize|score|load|unload): ", "", str(error))
    for ours, theirs in NAMES.items():
        message = message.replace(ours, theirs)
    named = FIELD.match(message)
    param = named[1] if named and isinstance(error, BadRequest | TooLong) else None
    for known, status, kind, code in KINDS:
        if isinstance(error, known):
            return Refused(status, message, kind, code, param)
    return Refused(500, message, SERVER)
