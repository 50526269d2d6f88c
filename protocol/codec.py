"""Bytes <-> message, with every size, depth and count limit. The only file that packs or unpacks.

msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) does the packing; msgspec unpacks straight into the typed
structs: it makes room for what they have, and not for what a message declares or holds besides. Version and type are looked at
before anything else is made of it.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack
import msgspec

from protocol import messages as m
from protocol.errors import BadRequest, VersionMismatch
from protocol.link import Beat, ForWorker, FromWorker, Leave, Ready, Sized, Started, Work

MAX_REQUEST_BYTES = 256 << 10
MAX_REPLY_BYTES = 16 << 20

NIL = msgspec.Raw(b"\xc0")
MAX_SHOWN = 300
"""Bytes of a version, type or id that are looked at, and characters of what is wrong that an error repeats."""
ERRORS = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
"""What msgspec raises, and what escapes beside it: for deep nesting, and from the checks of the structs."""

_REQUESTS: dict[str, type[m.Request]] = {
    "hello": m.Hello,
    "ping": m.Ping,
    "models": m.Models,
    "stats": m.GetStats,
    "load": m.Load,
    "measure": m.Measure,
    "unload": m.Unload,
    "cancel": m.Cancel,
    "generate": m.Generate,
    "tokenize": m.Tokenize,
    "score": m.Score,
}
_FOR_WORKER: dict[str, type[m.Request]] = {"work": Work, "cancel": m.Cancel, "measure": m.Measure, "leave": Leave}
_REPLIES: dict[str, type[m.Reply]] = {"progress": m.Progress, "tokens": m.Tokens, "error": m.Failure}
_FROM_WORKER: dict[str, type[m.Reply]] = _REPLIES | {"started": Started, "sized": Sized, "ready": Ready, "beat": Beat}
_RESULTS: dict[str, type[m.Result]] = {
    "hello": m.ServerInfo,
    "ping": m.Pong,
    "models": m.ModelList,
    "stats": m.Stats,
    "load": m.Loaded,
    "measure": m.Measured,
    "unload": m.Unloaded,
    "cancel": m.CancelSent,
    "generate": m.Generated,
    "tokenize": m.Tokenized,
    "score": m.Scored,
}


class _Head(msgspec.Struct):
    """What decides how a message is read. Undecoded: it may be anything, and as large as the message."""

    v: msgspec.Raw = NIL
    type: msgspec.Raw = NIL
    of: msgspec.Raw = NIL
    id: msgspec.Raw = NIL


_HEAD = msgspec.msgpack.Decoder(_Head)
_VALUE = msgspec.msgpack.Decoder()
_DECODERS = {
    target: msgspec.msgpack.Decoder(target)
    for table in (_REQUESTS, _FOR_WORKER, _FROM_WORKER, _RESULTS)
    for target in table.values()
}


def type_of(request: m.AnyRequest) -> str:
    """The request's type as on the wire."""
    return str(request.__struct_config__.tag)


def encode(message: m.AnyRequest | ForWorker | FromWorker) -> bytes:
    """Pack a message.

    Raises: BadRequest if it is over the limit of its receiver, who would drop it without a word.
    """
    head: dict[str, Any] = {"v": m.MAJOR}
    if isinstance(message, m.Result):
        head["type"] = "result"
    limit = MAX_REQUEST_BYTES if isinstance(message, m.Request) and not isinstance(message, Work) else MAX_REPLY_BYTES
    try:
        frame = cast("bytes", msgpack.packb(head | msgspec.to_builtins(message)))
    except (ValueError, TypeError, OverflowError) as e:
        raise BadRequest(f"a {type(message).__name__} cannot be packed: {e}") from None
    if len(frame) > limit:
        raise BadRequest(f"the message is {len(frame)} bytes, over the limit of {limit}")
    return frame


def decode_request(frame: bytes) -> m.AnyRequest:
    """Unpack what a client sent.

    Raises: BadRequest, VersionMismatch, with `request_id` set where the frame had one.
    """
    return cast("m.AnyRequest", _decode_request(frame, MAX_REQUEST_BYTES, _REQUESTS))


def decode_for_worker(frame: bytes) -> ForWorker:
    """Unpack what the gateway sent over a worker's link: a client's request with a little around it.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("ForWorker", _decode_request(frame, MAX_REPLY_BYTES, _FOR_WORKER))


def decode_reply(frame: bytes) -> m.AnyReply | None:
    """Unpack what a server sent; None for a type that this version does not know.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("m.AnyReply | None", _decode_reply(frame, _REPLIES))


def decode_from_worker(frame: bytes) -> FromWorker | None:
    """Unpack what a worker sent over its link.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("FromWorker | None", _decode_reply(frame, _FROM_WORKER))


def _decode_request(frame: bytes, limit: int, table: dict[str, type[m.Request]]) -> m.Request:
    head, kind = _read_head(frame, limit)
    if not isinstance(kind, str) or kind not in table:
        raise _about(head, BadRequest(f"no request type {_brief(kind)}; there are: {', '.join(table)}"))
    return cast("m.Request", _decode(frame, head, kind, table[kind]))


def _decode_reply(frame: bytes, table: dict[str, type[m.Reply]]) -> m.Reply | None:
    head, kind = _read_head(frame, MAX_REPLY_BYTES)
    target = _RESULTS.get(str(_value(head.of))) if kind == "result" else table.get(str(kind))
    return _decode(frame, head, str(kind), target) if target else None


def _read_head(frame: bytes, limit: int) -> tuple[_Head, object]:
    """Look at the version; return the head and the type."""
    if len(frame) > limit:
        raise BadRequest(f"the message is {len(frame)} bytes, over the limit of {limit}")
    try:
        head = _HEAD.decode(frame)
    except ERRORS as e:
        raise BadRequest(f"not a msgpack map: {type(e).__name__}: {_brief(e)}") from None
    version = _value(head.v)
    if not isinstance(version, int) or isinstance(version, bool):
        raise _about(head, BadRequest(f"the map has no protocol version `v` (this side speaks {m.MAJOR})"))
    if version != m.MAJOR:
        raise _about(
            head, VersionMismatch(f"protocol version {version} was sent; this side speaks {m.MAJOR}.{m.MINOR}")
        )
    return head, _value(head.type)


def _decode(frame: bytes, head: _Head, kind: str, target: type[Any]) -> Any:
    try:
        return _DECODERS[target].decode(frame)
    except ERRORS as e:
        raise _about(head, BadRequest(f"{kind}: {_brief(e)}")) from None


def _value(raw: msgspec.Raw) -> object:
    """A small value; the class `bytes` where it is none."""
    try:
        return _VALUE.decode(raw) if len(bytes(raw)) <= MAX_SHOWN else bytes
    except ERRORS:
        return bytes


def _about(head: _Head, error: BadRequest | VersionMismatch) -> BadRequest | VersionMismatch:
    request_id = _value(head.id)
    if isinstance(request_id, int) and not isinstance(request_id, bool) and 0 <= request_id < 1 << 63:
        error.request_id = request_id
    return error


def _brief(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
