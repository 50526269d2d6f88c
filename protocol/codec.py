"""Bytes <-> message, with every size, depth and count limit. The only file that packs or unpacks.

Messages in the same form on links that are not public go through `pack`, `unpack_request` and `unpack_reply`.

The form is msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md). msgspec unpacks directly into the typed
structs: it allocates for the fields that they have, and not for what else a message declares or contains. Version and
type are checked before anything else is decoded.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import msgspec
from msgspec import inspect

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
    "object": "a map", "null": "nothing", "None": "nothing", "ext": "an extension",
    "bytes": "bytes", "unused": "a byte that msgpack does not use",
}  # fmt: skip
FIRST_BYTES = [
    (0x7F, "int"), (0x8F, "object"), (0x9F, "array"), (0xBF, "str"), (0xC0, "null"), (0xC1, "unused"),
    (0xC3, "bool"), (0xC6, "bytes"), (0xC9, "ext"), (0xCB, "float"), (0xD3, "int"), (0xD8, "ext"), (0xDB, "str"),
    (0xDD, "array"), (0xDF, "object"), (0xFF, "int"),
]  # fmt: skip
"""The last first byte of each of msgpack's types, and the type's name."""

REQUESTS: Mapping[str, type[m.Request]] = {
    "hello": m.Hello,
    "ping": m.Ping,
    "models": m.Models,
    "stats": m.GetStats,
    "load": m.Load,
    "measure": m.Measure,
    "calibrate": m.Calibrate,
    "unload": m.Unload,
    "cancel": m.Cancel,
    "generate": m.Generate,
    "tokenize": m.Tokenize,
    "score": m.Score,
}
REPLIES: Mapping[str, type[m.Reply]] = {
    "progress": m.Progress,
    "tokens": m.Tokens,
    "scored": m.ScoredText,
    "error": m.Failure,
}
RESULTS: Mapping[str, type[m.Result]] = {
    "hello": m.ServerInfo,
    "ping": m.Pong,
    "models": m.ModelList,
    "stats": m.Stats,
    "load": m.Loaded,
    "measure": m.Measured,
    "calibrate": m.Calibrated,
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
        wrong = f"unknown request type {_brief(kind)}" if isinstance(kind, str) else _not_a("a text", "type", head.type)
        raise _about(head, BadRequest(f"{wrong}; the types are: {', '.join(own)}"))
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
        first = type_at(frame)
        reason = _brief(e) if first == "object" else f"it is {_nouns(first)}"
        raise BadRequest(f"not a msgpack map: {reason}") from None
    version = _value(head.v)
    if head.v is NIL:
        raise _about(head, BadRequest(f"the map has no protocol version `v` (this side speaks {m.MAJOR})"))
    if not isinstance(version, int) or isinstance(version, bool):
        wrong = _not_a(f"the number {m.MAJOR}", "v", head.v)
        raise _about(head, BadRequest(f"{wrong}: it is the protocol version, and this side speaks {m.MAJOR}"))
    if version != m.MAJOR:
        raise _about(
            head, VersionMismatch(f"protocol version {version} was sent; this side speaks {m.MAJOR}.{m.MINOR}")
        )
    return head, _value(head.type)


def _decode(frame: bytes, head: _Head, kind: str, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        return decoder.decode(frame)
    except UnicodeDecodeError:
        raise _about(head, BadRequest(f"{kind}: {_not_utf8(frame, decoder.type)} is not UTF-8 text")) from None
    except ERRORS as e:
        raise _about(head, BadRequest(f"{kind}: {sentence(e, decoder.type)}")) from None


def _not_utf8(frame: bytes, kind: type[msgspec.Struct]) -> str:
    """Return the name of the first field whose text is not UTF-8. Each is read as its own type, which bounds it."""
    fields = _undecoded(kind).decode(frame)
    for field in msgspec.structs.fields(kind):
        try:
            msgspec.msgpack.decode(getattr(fields, field.name), type=field.type)
        except UnicodeDecodeError:
            return field.encode_name
        except ERRORS:
            continue
    return "a name"


@functools.cache
def _undecoded(kind: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[Any]:
    """Return a decoder that takes a message apart into its fields, and leaves each as it is."""
    fields = [(field.encode_name, msgspec.Raw, NIL) for field in msgspec.structs.fields(kind)]
    return msgspec.msgpack.Decoder(msgspec.defstruct(f"Undecoded{kind.__name__}", fields))


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


def sentence(error: Exception, kind: type[msgspec.Struct]) -> str:
    """Return what is wrong with a message: for a field that has not the type or range of its struct, as a sentence."""
    text = str(error)
    if found := WRONG_FIELD.fullmatch(text):
        got = f", got {_nouns(found['got'])}" if found["got"] else ""
        return f"{found['field']} must be {_nouns(found['type'])}{found['bounds']}{got}"
    if found := WRONG_WORD.fullmatch(text):
        choices = ", ".join(_choices(kind, found["field"]))
        return f"{found['field']} cannot be {_shortened(found['word'])}; it can be: {choices}"
    return _shortened(text)


def _choices(kind: type[msgspec.Struct], name: str) -> list[str]:
    """Return the words that a field of a struct can be."""
    types = [inspect.type_info(field.type) for field in msgspec.structs.fields(kind) if field.encode_name == name]
    types = [one.type if isinstance(one, inspect.Metadata) else one for one in types]
    return [str(word) for one in types if isinstance(one, inspect.LiteralType) for word in one.values]


def type_at(packed: bytes) -> str:
    """Return the name of the type that a packed value has, as msgspec names it."""
    return FIRST_BYTES[bisect.bisect_left(FIRST_BYTES, (packed[0], ""))][1] if packed else "empty"


def _not_a(wanted: str, field: str, raw: msgspec.Raw) -> str:
    """Say what is wrong with a field of the head: it is of another type, too long, or not UTF-8."""
    kind = type_at(bytes(raw))
    if wanted != NOUNS[kind]:
        return f"`{field}` must be {wanted}, got {_nouns(kind)}"
    return f"`{field}` is {'too long' if len(bytes(raw)) > MAX_SHOWN else 'not UTF-8 text'}"


def _nouns(types: str) -> str:
    """Return the names of msgspec's types, which it joins by bars, as people name them."""
    return " or ".join(NOUNS.get(name, name) for name in types.split(" | "))


def _brief(value: object) -> str:
    return _shortened(str(value) if isinstance(value, Exception) else repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
