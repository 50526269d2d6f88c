"""Every field of every request at the ends of its range, past them and of another type, as msgspec knows them."""

from __future__ import annotations

import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import zmq
from msgspec import inspect

from protocol import Client, codec, messages as m
from protocol.errors import BadRequest
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise

REQUESTS = codec.REQUESTS
KINDS: list[Any] = [None, True, 7, 1.5, "x", b"x", [], {}]
"""A value of each type that msgpack has."""
OF_SCHEMA = re.compile(r"\w+: [\w.\[\]]+ (must|cannot) be ")
"""The start of the codec's refusals. A bad_request without it is about what is loaded, e.g. a token that it lacks."""
FAR = 1000.0


@dataclass(frozen=True)
class Trial:
    """A request with one field at some value."""

    type: str
    field: str
    fields: dict[str, Any]

    @property
    def frame(self) -> bytes:
        return bytes(msgpack.packb(self.fields))

    def __str__(self) -> str:
        shown = repr(self.fields.get(self.field, "nothing"))
        return f"{self.type}.{self.field} = {shown if len(shown) < 80 else shown[:80] + '...'}"


def good(kind: inspect.Type) -> list[Any]:
    """Return values of a type at the ends of what it allows."""
    match kind := bare(kind):
        case inspect.IntType() | inspect.FloatType():
            low, high = _bounds(kind)
            return [v for v in (low, high) if v is not None] or [0]
        case inspect.StrType():
            longest = [] if kind.max_length is None else ["x" * kind.max_length, "€" * kind.max_length]
            return ["x" * (kind.min_length or 0), *longest]
        case inspect.BoolType():
            return [False, True]
        case inspect.NoneType():
            return [None]
        case inspect.LiteralType():
            return list(kind.values)
        case inspect.ListType():
            first = good(kind.item_type)[0]
            lists = [[first] * (kind.min_length or 0), *([item] for item in good(kind.item_type))]
            return lists if kind.max_length is None else [*lists, [first] * kind.max_length]
        case inspect.TupleType():
            return [list(items) for items in zip(*(_padded(good(item)) for item in kind.item_types), strict=True)]
        case inspect.UnionType():
            return [value for one in kind.types for value in good(one)]
        case inspect.StructType():
            maps = [{field.name: value} for field in kind.fields for value in good(field.type) if value is not None]
            return [value for value in maps if _fits(kind, value)]
    raise NotImplementedError(f"values of {kind}")


def bad(kind: inspect.Type) -> list[Any]:
    """Return values just past the ends of what a type allows, and of every other type."""
    return [*_past(kind), *(value for value in KINDS if not _is(kind, value))]


def _past(kind: inspect.Type) -> list[Any]:
    match kind := bare(kind):
        case inspect.IntType():
            low, high = _bounds(kind)
            past = [*([] if low is None else [low - 1, -(2**63)]), *([] if high is None else [high + 1, 2**64 - 1])]
            return [value for value in past if -(2**63) <= value < 2**64]  # others do not exist in msgpack
        case inspect.FloatType():
            low, high = _bounds(kind)
            below = [] if low is None else [math.nextafter(low, -math.inf), low - 1, low - FAR]
            above = [] if high is None else [math.nextafter(high, math.inf), high + 1, high + FAR]
            return [*below, *above, math.nan, math.inf, -math.inf]
        case inspect.StrType():
            shorter = ["x" * (kind.min_length - 1)] if kind.min_length else []
            return shorter if kind.max_length is None else [*shorter, "x" * (kind.max_length + 1)]
        case inspect.LiteralType():
            return ["", f"{kind.values[0]} ", "none of them"]
        case inspect.ListType():
            first = good(kind.item_type)[0]
            short = [[first] * (kind.min_length - 1)] if kind.min_length else []
            long = [] if kind.max_length is None else [[first] * (kind.max_length + 1)]
            return [
                *short,
                *long,
                *([item] for item in bad(kind.item_type)),
                *([first, item] for item in bad(kind.item_type)[:1]),
            ]
        case inspect.TupleType():
            whole = good(kind)[0]
            wrong = [
                [*whole[:i], value, *whole[i + 1 :]] for i, item in enumerate(kind.item_types) for value in bad(item)
            ]
            return [[], whole[:-1], [*whole, whole[-1]], *wrong]
        case inspect.UnionType():
            return [value for one in kind.types for value in _past(one)]
        case inspect.StructType():
            maps = [{field.name: value} for field in kind.fields for value in bad(field.type)]
            return [value for value in ({}, {"none of them": 1}, *maps) if not _fits(kind, value)]
    return []


def _fits(kind: inspect.StructType, value: dict[str, Any]) -> bool:
    """True if a map is what a struct takes: of its fields some are needed, and some exclude each other."""
    try:
        msgspec.convert(value, kind.cls)
    except msgspec.ValidationError:
        return False
    return True


def bare(kind: inspect.Type) -> inspect.Type:
    """Return a type without its description."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def _bounds(kind: inspect.IntType | inspect.FloatType) -> tuple[Any, Any]:
    """Return the least and the greatest value allowed. An open end of a float is the nearest number inside."""
    low, high = kind.ge, kind.le
    if kind.gt is not None:
        low = math.nextafter(kind.gt, math.inf) if isinstance(kind, inspect.FloatType) else kind.gt + 1
    if kind.lt is not None:
        high = math.nextafter(kind.lt, -math.inf) if isinstance(kind, inspect.FloatType) else kind.lt - 1
    return low, high


def _is(kind: inspect.Type, value: object) -> bool:
    """True if a value has the type, whatever its range."""
    kind = bare(kind)
    if isinstance(kind, inspect.UnionType):
        return any(_is(one, value) for one in kind.types)
    if isinstance(kind, inspect.FloatType):
        return type(value) in {int, float}  # the whole numbers among them
    types: dict[type[inspect.Type], type] = {
        inspect.IntType: int,
        inspect.StrType: str,
        inspect.BoolType: bool,
        inspect.NoneType: type(None),
        inspect.ListType: list,
        inspect.TupleType: list,
        inspect.StructType: dict,
    }
    return type(value) is types.get(type(kind), str)  # a literal is one of some words


def _padded(values: list[Any]) -> list[Any]:
    return (values * 2)[:2]


def fields_of(kind: type[m.Request]) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return described.fields


def _accepted(fields: dict[str, Any]) -> bool:
    try:
        codec.decode_request(msgpack.packb(fields))
    except BadRequest:
        return False
    return True


def around(name: str, field: inspect.Field, value: object) -> dict[str, Any] | None:
    """Return a request, as short as can be, that is accepted with the field at this value; None if there is none.

    Beside what is required some types need one more field: exactly one of two, say.
    """
    others = [f for f in fields_of(REQUESTS[name]) if f is not field]
    needed = {f.name: good(f.type)[-1] for f in others if f.required}
    for more in ({}, *({f.name: value} for f in others if not f.required for value in good(f.type))):
        fields = {"v": m.MAJOR, "type": name} | needed | more | {field.name: value}
        if _accepted(fields):
            return fields
    return None


def trials() -> tuple[list[Trial], list[Trial]]:
    """Return the trials that must be accepted, and those that must be refused.

    Raises: AssertionError for a good value that the decoder refuses.
    """
    allowed, refused = [], []
    for name, kind in REQUESTS.items():
        for field in fields_of(kind):
            for value in good(field.type):
                base = around(name, field, value)
                assert base, f"{name}.{field.name} = {value!r} is in its range, and refused: {_why(name, field, value)}"
                allowed.append(Trial(name, field.name, base))
            base = around(name, field, next(value for value in good(field.type) if value is not None))
            assert base
            refused += [Trial(name, field.name, base | {field.name: value}) for value in bad(field.type)]
            if field.required:
                refused.append(
                    Trial(name, field.name, {key: value for key, value in base.items() if key != field.name})
                )
    return allowed, refused


def _why(name: str, field: inspect.Field, value: object) -> str:
    try:
        codec.decode_request(msgpack.packb({"v": m.MAJOR, "type": name, field.name: value}))
    except BadRequest as e:
        return str(e)
    return ""


@promise
def ranges(scale: Scale, folder: Path) -> Figures:
    """A request with a field past its range, of a wrong type or missing is refused with the field's name, and no engine
    works for it; one with a field at an end of its range is not refused.
    """
    allowed, refused = trials()
    with FakeDaemon(folder, Behaviour(rows=16)) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", timeout=20)
        done = _work(client, 0)
        for trial, reply in _ask(daemon, refused):
            assert isinstance(reply, m.Failure), f"{trial} was accepted: {reply}"
            assert reply.code == "bad_request", f"{trial} was answered {reply.code}: {reply.message}"
            assert re.search(rf"\b{trial.field}\b", reply.message.partition(": ")[2]), (
                f"{trial}: the refusal does not name it: {reply.message}"
            )
        assert _work(client, done + 1) == done + 1, "an engine has worked for a request that was refused"
        codes: Counter[str] = Counter()
        for trial, reply in _ask(daemon, [*allowed, *_drawn(allowed, scale.of(200, 2000, 20_000))]):
            code = reply.code if isinstance(reply, m.Failure) else "result"
            codes[code] += 1
            if isinstance(reply, m.Failure):
                assert not (code == "bad_request" and OF_SCHEMA.match(reply.message)), (
                    f"{trial} is in its range, and refused: {reply.message}"
                )
                assert code not in {"internal", "worker_died"}, (
                    f"{trial}: {reply.message}\n{trial.fields}\n{daemon.logged()[-3000:]}"
                )
        client.ping()
    figures: Figures = {"allowed": len(allowed), "refused": len(refused)}
    return figures | {f"answered_{code}": count for code, count in sorted(codes.items())}


def _work(client: Client, least: int) -> int:
    """Return the number of requests that the worker has got, with one more that comes after all others in its queue."""
    client.generate("x", max_new_tokens=1, timeout=30)
    give_up = time.monotonic() + 30  # the worker reports its figures now and then
    while (count := client.stats().workers[0].requests) <= least - 1 or count == 0:
        assert time.monotonic() < give_up, f"the worker reports {count} requests"
        time.sleep(0.02)
    return count


def _drawn(allowed: list[Trial], count: int) -> Iterator[Trial]:
    """Yield requests with several fields at the ends of their ranges."""
    chance = random.Random(1)
    while count:
        trial = chance.choice(allowed)
        fields = dict(trial.fields)
        for other in chance.sample([one for one in allowed if one.type == trial.type], 3):
            fields |= other.fields
        if _accepted(fields):
            count -= 1
            yield Trial(trial.type, trial.field, fields)


def _ask(daemon: FakeDaemon, asked: list[Trial]) -> Iterator[tuple[Trial, m.AnyReply]]:
    """Ask one after the other over one connection; yield each with its last reply."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 20_000
    socket.sndtimeo = 20_000
    try:
        socket.connect(daemon.endpoint)
        for trial in asked:
            socket.send(trial.frame)
            reply = codec.decode_reply(socket.recv())
            while isinstance(reply, m.Progress | m.Tokens | m.ScoredText):
                reply = codec.decode_reply(socket.recv())
            assert reply is not None
            yield trial, reply
    finally:
        socket.close()
        context.term()
