"""Frames that no client would send: at the decoder, and through a socket."""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import zmq

from protocol import Client, codec, messages as m
from protocol.errors import BadRequest, VersionMismatch
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise

LIMIT_S = 0.1
"""The decoder's time for one frame."""
GROWTH_BYTES = 5 << 20
WINDOW = 64
"""Frames sent ahead of their replies."""
ANSWER_S = 20.0
"""Most seconds until the last reply to a frame: a few of them ask for a text."""

VALID: list[m.AnyRequest] = [
    m.Hello(id=1, client="fuzz"),
    m.Ping(id=2, deadline_ms=1000),
    m.Models(id=3),
    m.GetStats(id=4),
    m.Load(id=5, model="demo", engine="native", precision="int8", stream=True),
    m.Measure(id=6, model="absent", text="word " * 8),
    m.Calibrate(id=14, model="absent", text="word " * 8),
    m.Unload(id=7, model="absent", precision="int8"),
    m.Cancel(id=8, target=9),
    m.Tokenize(id=9, text="naïve café"),
    m.Score(id=10, ids=[5, 6, 7, 300], stride=4),
    m.Generate(id=11, prompt="Shall I compare", stop=["\n"], seed=4, max_new_tokens=3, stream=True, logprobs=2),
    m.Generate(
        id=12, prompt_ids=[1, 2, 3], n=2, temperature=0.5, logit_bias=[(3, 1.5)], bad_words=["x"], max_new_tokens=2
    ),
    m.Generate(id=13, prompt="", strategy="beam", num_beams=2, max_new_tokens=2, repetition_penalty=1.5),
]
"""One or more of each type. Nothing here loads, unloads or measures what exists, which takes processes and seconds."""
HEADERS = [b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf"]
"""Headers of binary, extension, string, array and map, with a length of 32 bits."""
VALUES = [
    b"\xc0", b"\xc3", b"\xff", b"\x00", b"\xa0", b"\x90", b"\x80", b"\xc4\x01\xff", b"\xa1\xff", b"\xc7\x00\x05",
    b"\xd4\xff\x00", b"\xc1", b"\xcf" + b"\xff" * 8, b"\xcf\x80" + bytes(7), b"\xd3\x80" + bytes(7),
    b"\xca\x7f\x80\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\xcb\xff\xf0" + bytes(6),
]  # fmt: skip
"""A value of each kind, and those at the ends of their kinds."""


class Mutations:
    """An endless stream of frames, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._corpus = [codec.encode(request) for request in VALID]
        packed = [msgpack.unpackb(frame) for frame in self._corpus]
        self._fields = [{name: msgpack.packb(value) for name, value in fields.items()} for fields in packed]
        self._ways = [self._flip, self._cut, self._insert, self._retype, self._length, self._splice, self._noise]
        self._ways += [self._values, self._values, self._drop, self._drop, self._add, self._add]

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self._random.choice(self._ways)(self._random.choice(self._corpus))

    def _flip(self, frame: bytes) -> bytes:
        changed = bytearray(frame)
        for _ in range(self._random.randint(1, 8)):
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _cut(self, frame: bytes) -> bytes:
        start, end = sorted(self._random.choices(range(len(frame) + 1), k=2))
        return self._random.choice([frame[:end], frame[:start] + frame[end:], frame[:end] + frame[start:]])

    def _insert(self, frame: bytes) -> bytes:
        return self._put(frame, self._random.randbytes(self._random.randint(1, 8)))

    def _retype(self, frame: bytes) -> bytes:
        at = self._random.randrange(len(frame))
        return frame[:at] + bytes([self._random.randint(0xC0, 0xDF)]) + frame[at + 1 :]

    def _length(self, frame: bytes) -> bytes:
        size = self._random.choice(
            [0, 1, 65_535, 65_536, 70_000, 70_001, 2**31 - 1, 2**31, 2**32 - 1, self._random.getrandbits(32)]
        )
        header = self._random.choice(HEADERS) + struct.pack(">I", size)
        return self._put(frame, header * (1000 if self._random.random() < 0.002 else self._random.randint(1, 4)))

    def _splice(self, frame: bytes) -> bytes:
        other = self._random.choice(self._corpus)
        return frame[: self._random.randrange(len(frame))] + other[self._random.randrange(len(other)) :]

    def _noise(self, _: bytes) -> bytes:
        return self._random.randbytes(self._random.randint(0, 200))

    def _values(self, _: bytes) -> bytes:
        """A message that is well-formed up to the values of one or two fields."""
        fields = self._some()
        for name in self._random.sample(sorted(fields), self._random.randint(1, 2)):
            fields[name] = self._value()
        return _map(fields)

    def _drop(self, _: bytes) -> bytes:
        fields = self._some()
        del fields[self._random.choice(sorted(fields))]
        return _map(fields)

    def _add(self, _: bytes) -> bytes:
        return _map(self._some() | {self._random.choice(["shape", "top_k", "deadline_ms", "model"]): self._value()})

    def _some(self) -> dict[str, bytes]:
        return dict(self._random.choice(self._fields))

    def _value(self) -> bytes:
        return self._nested() if self._random.random() < 0.02 else self._random.choice(VALUES)

    def _nested(self) -> bytes:
        """Deep enough for the recursion limits of msgpack, of Python, and for neither."""
        depth = self._random.choice([10, 300, self._random.randint(900, 1030), 5000])
        return self._random.choice([b"\x91" * depth + b"\x90", (b"\x81\xa1a" * depth + b"\x80"), b"\x91" * depth])

    def _put(self, frame: bytes, what: bytes) -> bytes:
        at = self._random.randrange(len(frame) + 1)
        return frame[:at] + what + frame[at:]


def _map(fields: dict[str, bytes]) -> bytes:
    head = b"\xde" + struct.pack(">H", len(fields))
    return head + b"".join(msgpack.packb(name) + value for name, value in fields.items())


@promise
def frames(scale: Scale, folder: Path) -> Figures:
    """For each mutated or random frame the decoder returns a request or a refusal within 100 ms, and the gateway sends
    one well-formed last reply; the gateway does not grow.
    """
    return _at_the_decoder(scale.of(20_000, 200_000, 1_000_000)) | _through_a_socket(
        scale.of(5_000, 40_000, 200_000), folder
    )


def _at_the_decoder(count: int) -> Figures:
    good, worst = 0, 0.0
    for number, frame in zip(range(count), Mutations(1), strict=False):
        spent = _decode(frame, number)
        good += spent > 0
        if abs(spent) > LIMIT_S:  # the machine may have had a bad moment: the work is the same each time
            spent = min((_decode(frame, number) for _ in range(3)), key=abs)
        worst = max(worst, abs(spent))
        assert worst < LIMIT_S, f"frame {number} takes {worst * 1000:.0f} ms: {_shown(frame)}"
    assert 0 < good < count, "both kinds are among them"
    return {"decoded": count, "decoded_good": good, "decode_ms_max": round(worst * 1000, 1)}


def _decode(frame: bytes, number: int) -> float:
    """Return the processor's seconds for a frame, negative for one that was refused."""
    began = time.thread_time()
    try:
        request = codec.decode_request(frame)
    except (BadRequest, VersionMismatch):
        return began - time.thread_time()
    except Exception as e:
        raise AssertionError(f"frame {number} raised {type(e).__name__}: {e}: {_shown(frame)}") from e
    assert isinstance(request, m.Request)
    return time.thread_time() - began


def _through_a_socket(count: int, folder: Path) -> Figures:
    part = min(10_000, count // 5)
    codes: Counter[str] = Counter()
    waits: list[float] = []
    mutations = iter(Mutations(2))
    with FakeDaemon(folder, Behaviour()) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", timeout=20)
        warm = 0
        for first in range(-part, count, part):  # the first part warms up
            _send(daemon, [next(mutations) for _ in range(part)], codes)
            began = time.monotonic()
            client.ping(timeout=5)
            waits.append(time.monotonic() - began)
            warm = daemon.rss() if first < 0 else warm
        grown = daemon.rss() - warm
        assert daemon.process.poll() is None
        assert "internal" not in codes, f"{codes['internal']} were answered with `internal`:\n{daemon.logged()[-3000:]}"
        assert grown < GROWTH_BYTES, f"the gateway grew by {grown / 2**20:.1f} MiB"
    figures: Figures = {"sent": count, "ping_ms_max": round(max(waits) * 1000, 1), "grown_mib": round(grown / 2**20, 2)}
    return figures | {f"answered_{code}": number for code, number in sorted(codes.items())}


def _send(daemon: FakeDaemon, sent: list[bytes], codes: Counter[str]) -> None:
    """Send frames over a connection of their own, read what comes, and count the last replies by their code."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.sndtimeo = 0, 5000
    try:
        socket.connect(daemon.endpoint)
        open_ = 0
        for frame in sent:
            socket.send(frame)
            open_ += 1
            while open_ >= WINDOW or (open_ and socket.poll(0)):
                open_ -= _take(socket, codes)
        while open_:
            open_ -= _take(socket, codes)
        assert not socket.poll(50), f"one reply too many: {socket.recv()[:200]!r}"
    finally:
        socket.close()
        context.term()


def _take(socket: zmq.Socket[bytes], codes: Counter[str]) -> bool:
    """Read a reply; True for a last one. Raises: AssertionError if none comes, BadRequest if it is malformed."""
    assert socket.poll(int(ANSWER_S * 1000)), f"some frame has no last reply after {ANSWER_S:.0f} s"
    message = socket.recv_multipart()
    assert len(message) == 1
    reply = codec.decode_reply(message[0])
    assert reply is not None, message
    if isinstance(reply, m.Failure):
        codes[reply.code] += 1
    elif isinstance(reply, m.Result):
        codes["result"] += 1
    return isinstance(reply, m.Failure | m.Result)


def _shown(frame: bytes) -> str:
    return frame.hex() if len(frame) <= 400 else f"{frame[:200].hex()}... ({len(frame)} bytes)"
