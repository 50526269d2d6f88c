"""All errors, as one tree:

Gpt2dError
├── RequestError                a reply of the server; each class has its wire code
│   ├── BadRequest              bad_request: a malformed message or a value out of its range
│   ├── VersionMismatch         version_mismatch: the other side speaks another major version
│   ├── Unauthorised            unauthorised: this peer may not do that
│   ├── Busy                    busy: a queue is full, or a limit of this peer is reached; try again later
│   ├── TooLong                 too_long: prompt and new tokens do not fit the model's context
│   ├── UnknownModel            unknown_model: no model of that name on the server
│   ├── BadModel                bad_model: there is one, but it cannot be used
│   ├── NoMemory                no_memory: it does not fit into the memory that is free
│   ├── LoadFailed              load_failed: the worker ended or failed while loading
│   ├── NotLoaded               not_loaded: load it first
│   ├── WorkerDied              worker_died: the process that ran the request is gone
│   ├── Cancelled               cancelled: before it had begun to answer
│   ├── DeadlineExceeded        deadline: its time ran out before it had begun to answer
│   ├── Draining                draining: the server is stopping and takes no new work
│   └── Internal                internal: a fault of the server; its message has an id that is in the server's log
└── ConnectionFailed            found by the client's side; never on the wire
    ├── NoServer                nobody listens on the endpoint
    ├── NotGpt2d                something listens there, but it is not a gpt2d server
    ├── KeyRefused              the server refuses this key, wants one, has none, or is not the one that the key is for
    ├── ServerStuck             something accepts the connection but does not answer
    ├── ConnectionLost          the connection broke while the request was under way
    ├── ServerRestarted         the server that held the request is gone and another has taken its place
    └── Closed                  this client was closed
"""

from __future__ import annotations


class Gpt2dError(Exception):
    """Base of all errors here. `request_id` is the id of a message that codec refused, where it has one."""

    request_id: int | None = None


class RequestError(Gpt2dError):
    """An error reply. `code` is the word on the wire."""

    code = "internal"


class BadRequest(RequestError):
    code = "bad_request"


class VersionMismatch(RequestError):
    code = "version_mismatch"


class Unauthorised(RequestError):
    code = "unauthorised"


class Busy(RequestError):
    code = "busy"


class TooLong(RequestError):
    code = "too_long"


class UnknownModel(RequestError):
    code = "unknown_model"


class BadModel(RequestError):
    code = "bad_model"


class NoMemory(RequestError):
    code = "no_memory"


class LoadFailed(RequestError):
    code = "load_failed"


class NotLoaded(RequestError):
    code = "not_loaded"


class WorkerDied(RequestError):
    code = "worker_died"


class Cancelled(RequestError):
    code = "cancelled"


class DeadlineExceeded(RequestError):
    code = "deadline"


class Draining(RequestError):
    code = "draining"


class Internal(RequestError):
    code = "internal"


class ConnectionFailed(Gpt2dError):
    """No working connection to the server."""


class NoServer(ConnectionFailed):
    pass


class NotGpt2d(ConnectionFailed):
    pass


class KeyRefused(ConnectionFailed):
    pass


class ServerStuck(ConnectionFailed):
    pass


class ConnectionLost(ConnectionFailed):
    pass


class ServerRestarted(ConnectionFailed):
    pass


class Closed(ConnectionFailed):
    pass


BY_CODE: dict[str, type[RequestError]] = {cls.code: cls for cls in RequestError.__subclasses__()}


def from_code(code: str, message: str) -> RequestError:
    """Return the error of a wire code; a code that this version does not know counts as `internal`."""
    return BY_CODE.get(code, Internal)(message)


def printable(text: str) -> str:
    """Return what is told of an error or a model, without what no message can hold or what would steer a terminal.

    Such characters, and line breaks, are written as escapes: it may repeat what a peer has sent or a file has.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
