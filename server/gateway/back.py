"""Socket to the workers: sends them work, receives what they say, and knows whose connection broke."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import zmq

from protocol import sockets
from protocol.errors import Busy, LoadFailed, RequestError, WorkerDied
from protocol.keys import CurveKeys
from server import link
from server.gateway import faults
from server.gateway.replicas import Replica, Replicas
from server.link import ForWorker, FromWorker, Leave


@dataclass(frozen=True, slots=True)
class Joined:
    """First message of a replica's process, over a connection that the gateway did not know."""

    routing_id: bytes
    fd: int


Heard: TypeAlias = FromWorker | Joined | RequestError
"""Message of a replica, or an error where its message cannot be read."""


class Back:
    """Sends to workers and receives from them. Used by the gateway's thread only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: CurveKeys) -> None:
        """Bind. Raises: LoadFailed if the address cannot be bound."""
        try:
            self._socket, self._monitor = link.gateway_socket(context, address, keys)
        except zmq.ZMQError as e:
            raise LoadFailed(f"--worker-address {address}: cannot listen there: {e.strerror}") from None
        self.endpoint = sockets.endpoint_of(self._socket)
        self._open: set[int] = set()
        """Descriptors of the open connections."""

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Sockets that are readable when there is something to do."""
        return self._socket, self._monitor

    def send(self, replica: Replica, request: ForWorker) -> None:
        """Send without waiting. Raises: Busy, WorkerDied."""
        try:
            self._socket.send_multipart([replica.connection, link.encode(request)], zmq.NOBLOCK)
        except zmq.Again:
            raise Busy(f"{replica.name} does not take requests at the moment; try again later") from None
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            raise WorkerDied(f"the worker of {replica.name} is gone") from None

    def receive(self, replicas: Replicas, limit: int) -> Iterator[tuple[Replica, Heard]]:
        """Yield up to `limit` messages that have arrived, each with the replica that sent it."""
        self._watch(replicas)
        for _ in range(limit):
            if not sockets.readable(self._socket):
                return
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            if len(frames) != 2:  # not from a worker, which sends one frame after the routing id
                continue
            routing_id, frame = frames[0].bytes, frames[1]
            replica = replicas.by_connection(routing_id)
            if replica is None:
                continue
            if replica.connection != routing_id:
                self._watch(replicas)  # for the end of the connection that had this descriptor before
                if replica.connection and not replica.cut:
                    self._send_away(routing_id)
                    continue
                fd = int(frame.get(zmq.SRCFD))
                yield replica, Joined(routing_id, fd)
                if fd not in self._open:  # it broke before this was read, and its event has been read
                    replica.fd, replica.cut = -1, time.monotonic()
            replica.heard = time.monotonic()
            try:
                message = link.decode_from_worker(frame.bytes)
            except Exception as e:  # noqa: BLE001 - whatever it is, it is this worker's alone
                yield replica, faults.for_client(e)
                continue
            if message:
                yield replica, message

    def close(self) -> None:
        sockets.close_monitored(self._socket, self._monitor)

    def _watch(self, replicas: Replicas) -> None:
        while event := sockets.next_event(self._monitor):
            kind, fd = event
            if kind == zmq.EVENT_ACCEPTED:
                self._open.add(fd)
                continue
            self._open.discard(fd)
            for replica in replicas.all():
                if replica.fd == fd:
                    replica.fd, replica.cut = -1, time.monotonic()

    def _send_away(self, routing_id: bytes) -> None:
        """Tell a process on a node that was given up, and is heard again, that another has its place."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([routing_id, link.encode(Leave())], zmq.NOBLOCK)
