"""Bytes <-> message, with every size, depth and count limit. The only file that packs or unpacks.

msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) does the packing; msgspec unpacks, since it makes room for what is
there and not for what a header declares, and checks the map against the typed struct. Version and type are looked at before
anything is converted.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack
import msgspec

from protocol import messages as m
from protocol.errors import BadRequest, VersionMismatch
from protocol.link import Beat, ForWorker, FromWorker, Ready, Sized, Started, Work

MAX_REQUEST_BYTES = 256 << 10
MAX_REPLY_BYTES = 16 << 20

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
_FOR_WORKER: dict[str, type[m.Request]] = {"work": Work, "cancel": m.Cancel, "measure": m.Measure}
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


def _refuse_extension(code: int, _: memoryview) -> None:
    raise ValueError(f"an extension type ({code}); there are none here")


_UNPACKER = msgspec.msgpack.Decoder(ext_hook=_refuse_extension)


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
    return cast("m.AnyRequest", _decode_request(_unpack(frame, MAX_REQUEST_BYTES), _REQUESTS))


def decode_for_worker(frame: bytes) -> ForWorker:
    """Unpack what the gateway sent over a worker's link: a client's request with a little around it.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("ForWorker", _decode_request(_unpack(frame, MAX_REPLY_BYTES), _FOR_WORKER))


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


def _decode_request(fields: dict[str, Any], table: dict[str, type[m.Request]]) -> m.Request:
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in table:
        shown = _brief(kind) if isinstance(kind, str) else type(kind).__name__
        raise _about(fields, BadRequest(f"no request type {shown}; there are: {', '.join(table)}"))
    return cast("m.Request", _convert(fields, table[kind]))


def _decode_reply(frame: bytes, table: dict[str, type[m.Reply]]) -> m.Reply | None:
    fields = _unpack(frame, MAX_REPLY_BYTES)
    kind = fields.get("type")
    target = _RESULTS.get(str(fields.get("of"))) if kind == "result" else table.get(str(kind))
    return _convert(fields, target) if target else None


def _unpack(frame: bytes, limit: int) -> dict[str, Any]:
    if len(frame) > limit:
        raise BadRequest(f"the message is {len(frame)} bytes, over the limit of {limit}")
    try:
        fields = _UNPACKER.decode(frame)
    # Beside its own class these escape, e.g. for keys that are arrays or for deep nesting.
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise BadRequest(f"not a msgpack message: {type(e).__name__}: {_brief(e)}") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"a message is a map, not {type(fields).__name__}")
    version = fields.get("v")
    if not isinstance(version, int) or isinstance(version, bool):
        raise _about(fields, BadRequest(f"the map has no protocol version `v` (this side speaks {m.MAJOR})"))
    if version != m.MAJOR:
        raise _about(fields, VersionMismatch(f"protocol version {version} was sent; this side speaks {m.MAJOR}.{m.MINOR}"))
    return fields


def _convert(fields: dict[str, Any], target: type[Any]) -> Any:
    try:
        return msgspec.convert(fields, target)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise _about(fields, BadRequest(f"{fields.get('type')}: {_brief(e)}")) from None


def _about(fields: dict[str, Any], error: BadRequest | VersionMismatch) -> BadRequest | VersionMismatch:
    request_id = fields.get("id")
    if isinstance(request_id, int) and not isinstance(request_id, bool) and 0 <= request_id < 1 << 63:
        error.request_id = request_id
    return error


def _brief(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
