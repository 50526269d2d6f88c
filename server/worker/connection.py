"""The worker's socket to the gateway."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol, TypeVar

import zmq

from protocol import messages as m, sockets
from protocol.errors import BadRequest, LoadFailed
from server import link
from server.checkpoint.tensors import Report
from server.launch.spec import CUT_OFF, UNREACHED, Spec
from server.link import ForWorker, FromWorker, Leave, Pieces

T = TypeVar("T", m.Measure, m.Calibrate)

CONNECT_S = 30.0
TASK_MS = 10_000
PROGRESS_S = 0.05
"""Shortest time between two messages of progress, except at the end of a stage."""


class Connection(Protocol):
    """Interface of the worker's connection: a socket, or in tests a list."""

    def send(self, message: FromWorker) -> None: ...

    def receive(self, timeout_ms: int) -> list[ForWorker]: ...


class GatewayConnection:
    """A connection that ends the process when nothing can arrive any more."""

    def __init__(self, spec: Spec) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket, self._monitor = link.worker_socket(self._context, spec.endpoint, spec.server_key, spec.identity)
        self._events = zmq.Poller()  # a message, or the end of the connection
        self._events.register(self._socket, zmq.POLLIN)
        self._events.register(self._monitor, zmq.POLLIN)
        self._began = time.monotonic()
        self._connected = False

    def send(self, message: FromWorker) -> None:
        """Send a message; wait until it has left, and end the process if it cannot leave.

        Pieces that are too large for a frame together go one by one. An answer that is too large is replaced by an
        error that says so: sixteen continuations with twenty alternatives to each token can be too large.
        """
        try:
            frame = link.encode(message)
        except BadRequest as e:
            if isinstance(message, Pieces):
                for piece in message.pieces:
                    self.send(piece)
                return
            refusal = f"the answer: {e}; ask for fewer continuations or logprobs"
            frame = link.encode(m.Failure(id=message.id, code=e.code, message=refusal))
        while True:
            try:
                self._socket.send(frame, zmq.NOBLOCK)
                self._connected = True
                return
            except zmq.Again:  # not connected yet, or the gateway is behind
                self._socket.poll(1000, zmq.POLLOUT)
            self._end_if_cut_off()

    def receive(self, timeout_ms: int) -> list[ForWorker]:
        """Return everything that has arrived, after waiting up to `timeout_ms` for the first message."""
        if timeout_ms:
            self._events.poll(timeout_ms)
        self._end_if_cut_off()
        messages: list[ForWorker] = []
        while sockets.readable(self._socket):
            messages.append(link.decode_for_worker(self._socket.recv()))
            if isinstance(messages[-1], Leave):
                print("another process serves in this one's place: this worker ends", file=sys.stderr, flush=True)
                os._exit(CUT_OFF)
        return messages

    def _end_if_cut_off(self) -> None:
        """End the process if its connection broke.

        Messages on their way are lost then, and with them the requests that this process serves.
        """
        broke = sockets.next_event(self._monitor)
        if broke or not (self._connected or time.monotonic() < self._began + CONNECT_S):
            what = "broke" if self._connected else f"was not made within {CONNECT_S:.0f} s"
            print(f"the connection to the gateway {what}: this worker ends", file=sys.stderr, flush=True)
            os._exit(CUT_OFF if self._connected else UNREACHED)


def reporter(connection: Connection) -> Report:
    """Return a function that sends progress: where a stage begins and ends, and between these a few times a second."""
    sent_at, sent = 0.0, ""

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        nonlocal sent_at, sent
        if done >= total or stage != sent or time.monotonic() > sent_at + PROGRESS_S:
            sent_at, sent = time.monotonic(), stage
            connection.send(m.Progress(id=None, stage=stage, done=done, total=total, unit=unit))

    return progress


def task_of(connection: Connection, kind: type[T]) -> T:
    """Return what the gateway has for a process that does one task. Raises: LoadFailed where it sends nothing."""
    task = next((message for message in connection.receive(TASK_MS) if isinstance(message, kind)), None)
    if task is None:
        raise LoadFailed(f"the gateway sent this process nothing to {kind.__struct_config__.tag}")
    return task
