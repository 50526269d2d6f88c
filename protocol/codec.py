"""Bytes <-> message, with every size, depth and count limit. The only file that packs or unpacks.

Messages in the same form on links that are not public go through `pack`, `unpack_request` and `unpack_reply`.

The form is msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md). msgspec unpacks directly into the typed
structs: it allocates for the fields that they have, and not for what else a message declares or contains. Version and
type are checked before anything else is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import msgspec

from protocol import messages as m
from protocol.errors import BadRequest, VersionMismatch

MAX_REQUEST_BYTES = 256 << 10
MAX_REPLY_BYTES = 16 << 20

NIL = msgspec.Raw(b"\xc0")
MAX_SHOWN = 300
"""Most bytes of a version, type or id that are decoded, and most characters of a wrong value that an error repeats."""
ERRORS = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
"""Exceptions of msgspec, and others that it lets through: for deep nesting, and from the checks of the structs."""

WRONG_FIELD = re.compile(
    r"Expected `(?P<type>[^`]+)`(?P<bounds>.*?)(?:, got `?(?P<got>[^`]+?)`?)? - at `\$\.(?P<field>[^`]+)`", re.DOTALL
)
WRONG_WORD = re.compile(r"Invalid enum value (?P<word>.+) - at `\$\.(?P<field>[^`]+)`", re.DOTALL)
"""What msgspec says of a field."""
NOUNS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "array": "a list",
    "object": "a map", "null": "nothing", "None": "nothing",
}  # fmt: skip

REQUESTS: Mapping[str, type[m.Request]] = {
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
REPLIES: Mapping[str, type[m.Reply]] = {"progress": m.Progress, "tokens": m.Tokens, "error": m.Failure}
RESULTS: Mapping[str, type[m.Result]] = {
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
    """Fields that decide how a message is read. Undecoded: each may be anything, and as large as the message."""

    v: msgspec.Raw = NIL
    type: msgspec.Raw = NIL
    of: msgspec.Raw = NIL
    id: msgspec.Raw = NIL


_HEAD = msgspec.msgpack.Decoder(_Head)
_VALUE = msgspec.msgpack.Decoder()
Decoders: TypeAlias = Mapping[str, msgspec.msgpack.Decoder[Any]]


def decoders(types: Mapping[str, type[msgspec.Struct]]) -> Decoders:
    """Return a decoder for each of those types."""
    return {name: msgspec.msgpack.Decoder(target) for name, target in types.items()}


_REQUESTS, _REPLIES = decoders(REQUESTS), decoders(REPLIES)
_RESULTS = decoders(RESULTS)


def type_of(request: m.AnyRequest) -> str:
    """Return the request's type as on the wire."""
    return str(request.__struct_config__.tag)


def encode(message: m.AnyRequest | m.AnyReply) -> bytes:
    """Pack a message.

    Raises: BadRequest if it is over the limit of its receiver, who would drop it silently.
    """
    return pack(message, MAX_REQUEST_BYTES if isinstance(message, m.Request) else MAX_REPLY_BYTES)


def pack(message: m.Request | m.Reply, limit: int) -> bytes:
    """Pack a message of any link into at most `limit` bytes.

    Raises: BadRequest if it needs more.
    """
    head: dict[str, Any] = {"v": m.MAJOR}
    if isinstance(message, m.Result):
        head["type"] = "result"
    try:
        if isinstance(message, m.Request):
            fields = msgspec.to_builtins(message)  # leaves out defaults
        else:
            kind = message.__struct_config__
            fields = {kind.tag_field: kind.tag} | msgspec.structs.asdict(message)
        frame = msgspec.msgpack.encode(head | fields)
    except ERRORS as e:
        raise BadRequest(f"a {type(message).__name__} cannot be packed: {e}") from None
    _check_size(frame, limit)
    return frame


def packed(part: msgspec.Struct) -> msgspec.Raw:
    """Pack a part of a message, which can then be in the message instead of it: a large one is packed beforehand."""
    return msgspec.Raw(msgspec.msgpack.encode(part))


def decode_request(frame: bytes) -> m.AnyRequest:
    """Unpack a request of a client.

    Raises: BadRequest, VersionMismatch, with `request_id` set where the frame had one.
    """
    return cast("m.AnyRequest", unpack_request(frame, MAX_REQUEST_BYTES, _REQUESTS))


def decode_reply(frame: bytes) -> m.AnyReply | None:
    """Unpack a reply of a server; return None for a type that this version does not know.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("m.AnyReply | None", unpack_reply(frame, _REPLIES))


def unpack_request(frame: bytes, limit: int, own: Decoders) -> m.Request:
    """Unpack a request of a type that the link has.

    Raises: BadRequest, VersionMismatch, with `request_id` set where the frame had one.
    """
    head, kind = _read_head(frame, limit)
    if not isinstance(kind, str) or kind not in own:
        raise _about(head, BadRequest(f"unknown request type {_brief(kind)}; the types are: {', '.join(own)}"))
    return cast("m.Request", _decode(frame, head, kind, own[kind]))


def unpack_reply(frame: bytes, own: Decoders) -> m.Reply | None:
    """Unpack a result, or a reply of another type that the link has; return None for one that it does not have.

    Raises: BadRequest, VersionMismatch.
    """
    head, kind = _read_head(frame, MAX_REPLY_BYTES)
    decoder = _RESULTS.get(str(_value(head.of))) if kind == "result" else own.get(str(kind))
    return _decode(frame, head, str(kind), decoder) if decoder else None


def _read_head(frame: bytes, limit: int) -> tuple[_Head, object]:
    """Check the version; return the head and the type."""
    _check_size(frame, limit)
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


def _decode(frame: bytes, head: _Head, kind: str, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        return decoder.decode(frame)
    except ERRORS as e:
        raise _about(head, BadRequest(f"{kind}: {sentence(e)}")) from None


def _check_size(frame: bytes, limit: int) -> None:
    if len(frame) > limit:
        raise BadRequest(f"the message is {len(frame)} bytes, over the limit of {limit}")


def _value(raw: msgspec.Raw) -> object:
    """Return a small value; the class `bytes` if it is not one."""
    try:
        return _VALUE.decode(raw) if len(bytes(raw)) <= MAX_SHOWN else bytes
    except ERRORS:
        return bytes


def _about(head: _Head, error: BadRequest | VersionMismatch) -> BadRequest | VersionMismatch:
    request_id = _value(head.id)
    if isinstance(request_id, int) and not isinstance(request_id, bool) and 0 <= request_id < 1 << 63:
        error.request_id = request_id
    return error


def sentence(error: Exception) -> str:
    """Return what is wrong with a message: for a field that has not the type or range of its struct, as a sentence."""
    text = _brief(error)
    if found := WRONG_FIELD.fullmatch(text):
        got = f", got {_nouns(found['got'])}" if found["got"] else ""
        return f"{found['field']} must be {_nouns(found['type'])}{found['bounds']}{got}"
    if found := WRONG_WORD.fullmatch(text):
        return f"{found['field']} cannot be {found['word']}"
    return text


def _nouns(types: str) -> str:
    """Return the names of msgspec's types, which it joins by bars, as people name them."""
    return " or ".join(NOUNS.get(name, name) for name in types.split(" | "))


def _brief(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
