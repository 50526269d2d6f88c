"""Link between gateway and worker: its messages, their bytes, its two sockets. No client sees any of it.

The link carries Cancel, Progress, Tokens, results and Failure too, with the gateway's own request ids.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import zmq

from protocol import codec, messages as m, sockets
from protocol.keys import CurveKeys

MAX_BYTES = codec.MAX_REPLY_BYTES
HEADROOM_BYTES = 64
"""Bytes by which a worker's messages must be smaller than the largest that a client takes. The gateway may add to them:
a longer id and a longer number (8 bytes each), and the longer head of a larger map."""
TIMEOUT_MS = 15_000
"""Longest silence of a worker on another machine before it is lost, and of the gateway for it."""


class Work(m.Request, frozen=True, tag="work"):
    """Request for the worker. `group` is the same for all work of one peer: rows are shared out fairly among groups."""

    group: int
    request: m.OfModel
    owner: int = 0
    """Owner of what it takes from the prefix cache and gives to it; 0: all have it in common."""


class Leave(m.Request, frozen=True, tag="leave"):
    """Order to end: another process serves in this one's place."""


class Started(m.Reply, frozen=True, tag_field="type", tag="started"):
    """First message of a worker's process, with its machine's name. One with a task then waits for it."""

    node: str = ""


class Sized(m.Reply, frozen=True, tag_field="type", tag="sized"):
    """Memory that the worker needs from now on: known when it has its model's config.json, and less once it has loaded.

    The gateway changes its reservation, or ends it where there is no room.
    """

    memory_bytes: int


class Ready(m.Reply, frozen=True, tag_field="type", tag="ready"):
    """Facts of a worker that has loaded its model."""

    digest: str
    quantised_share: float
    disk_bytes: int
    context: int
    rows: int
    threads: int
    rss_bytes: int
    notices: tuple[str, ...] = ()
    byte_level: bool = False
    """Whether its tokenizer is byte-level BPE."""
    calibrated: bool = False
    """Whether its weights were rounded by calibration."""
    instruction_set: str = ""
    """Instructions that the engine native computes with."""


class Pieces(m.Reply, frozen=True, tag_field="type", tag="pieces"):
    """New text of several streams, which the gateway passes on one by one: those of a request in their order."""

    pieces: list[m.Tokens]


class Beat(m.Reply, frozen=True, tag_field="type", tag="beat"):
    """Sign that the worker's loop moves: sent between its steps, at most a few times a second."""

    rss_bytes: int
    running: int = 0
    waiting: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    busy_ms: float = 0.0


ForWorker: TypeAlias = Work | m.Cancel | m.Task | Leave
FromWorker: TypeAlias = m.AnyReply | Pieces | Started | Sized | Ready | Beat

_FOR_WORKER = codec.decoders(
    {"work": Work, "cancel": m.Cancel, "measure": m.Measure, "calibrate": m.Calibrate, "leave": Leave}
)
_FROM_WORKER = codec.decoders(
    {**codec.REPLIES, "pieces": Pieces, "started": Started, "sized": Sized, "ready": Ready, "beat": Beat}
)


def encode(message: ForWorker | FromWorker) -> bytes:
    """Pack a message for the other side.

    Raises: BadRequest if it is too large; from a worker, also if it could become too large on its way to a client.
    """
    return codec.pack(message, MAX_BYTES if isinstance(message, m.Request) else MAX_BYTES - HEADROOM_BYTES)


def decode_for_worker(frame: bytes) -> ForWorker:
    """Unpack a message of the gateway.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("ForWorker", codec.unpack_request(frame, MAX_BYTES, _FOR_WORKER))


def decode_from_worker(frame: bytes) -> FromWorker | None:
    """Unpack a message of a worker; None for a type that this version does not know.

    Raises: BadRequest, VersionMismatch.
    """
    return cast("FromWorker | None", codec.unpack_reply(frame, _FROM_WORKER))


def gateway_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: CurveKeys
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return the ROUTER that workers connect to, with CURVE, and its monitor (see `sockets.next_event`).

    Raises: zmq.ZMQError if the endpoint is taken or not on this machine.
    """
    socket = _tolerant(sockets.router(context, MAX_BYTES), endpoint)
    sockets.serve_curve(socket, keys)
    return sockets.monitored(socket, sockets.bind, endpoint, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


def worker_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str, identity: str
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return a worker's DEALER, with the routing id from its launcher, and its monitor (see `sockets.next_event`)."""
    socket = _tolerant(sockets.dealer(context, MAX_BYTES), endpoint)
    socket.routing_id = identity.encode()
    sockets.use_curve(socket, server_key, CurveKeys.new())
    return sockets.monitored(socket, sockets.connect, endpoint, zmq.EVENT_DISCONNECTED)


def _tolerant(socket: zmq.Socket[bytes], endpoint: str) -> zmq.Socket[bytes]:
    """Set heartbeats, but not on one machine: there each sees the other's end, and a pause must not part them."""
    socket.heartbeat_ivl = 0 if sockets.is_loopback(endpoint) else sockets.HEARTBEAT_MS
    socket.heartbeat_timeout = socket.heartbeat_ttl = TIMEOUT_MS
    return socket
