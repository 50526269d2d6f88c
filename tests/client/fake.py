"""Servers without models, which say what a test wants to see."""

from __future__ import annotations

import threading
from typing import Any, Self

import zmq

from protocol import codec, messages as m
from protocol.parameters import parameters


class FakeServer:
    """A daemon's socket; its answers come from `replies`, which is called in its thread."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._socket.poll(20):
                continue
            peer, frame = self._socket.recv_multipart()
            request = codec.decode_request(frame)
            for reply in self.replies(request):
                self._socket.send_multipart([peer, codec.encode(reply)])

    def replies(self, request: Any) -> list[Any]:
        raise NotImplementedError


class ReplicaServer(FakeServer):
    """Has one model and puts its replicas in turn on three machines, of which the first is its own. `asked`: what loads
    asked for.
    """

    nodes = ("alpha", "beta", "gamma")
    notices = ("the slower engine onnx is the default",)

    def __init__(self) -> None:
        self.asked: list[int | None] = []
        self._workers: list[m.WorkerHealth] = []
        super().__init__()

    def replies(self, request: Any) -> list[Any]:
        way: dict[str, Any] = {"model": "demo", "engine": "native", "precision": "int8"}
        match request:
            case m.Hello():
                engine = m.Engine(name="native", precisions=["int8"])
                return [
                    m.ServerInfo(
                        id=request.id,
                        protocol="1.0",
                        server_id="x",
                        version="1",
                        host="alpha",
                        cpu="c",
                        cores=2,
                        memory_bytes=8 << 30,
                        engines=[engine],
                        parameters=parameters(),
                        notices=list(self.notices),
                    )
                ]
            case m.Ping():
                return [m.Pong(id=request.id, server_id="x", uptime_ms=1, draining=False, workers=self._workers)]
            case m.Models():
                held = m.Precision(
                    engine="native",
                    precision="int8",
                    memory_bytes=142 << 20,
                    loaded=bool(self._workers),
                    replicas=self._workers,
                )
                info = m.ModelInfo(name="demo", parameters=6_000_000, context=1024, file_bytes=1, precisions=[held])
                return [m.ModelList(id=request.id, models=[info])]
            case m.GetStats():
                done: dict[str, Any] = {
                    "rss_bytes": 42_000_000,
                    "requests": 3,
                    "prompt_tokens": 5,
                    "new_tokens": 7,
                    "busy_ms": 1,
                }
                workers = [m.WorkerStats(**way, **done, replica=w.replica, node=w.node) for w in self._workers]
                return [
                    m.Stats(
                        id=request.id,
                        uptime_ms=1,
                        rss_bytes=1,
                        peers=1,
                        open_requests=0,
                        requests={},
                        errors={},
                        workers=workers,
                    )
                ]
            case m.Load():
                self.asked.append(request.replicas)
                already, number = bool(self._workers), request.replicas or max(1, len(self._workers))
                self._workers = [
                    m.WorkerHealth(
                        **way,
                        state="ready",
                        moved_ms_ago=1,
                        running=i % 3,
                        waiting=0,
                        replica=i,
                        node=self.nodes[i % 3],
                    )
                    for i in range(number)
                ]
                return [
                    m.Loaded(
                        id=request.id,
                        **way,
                        digest="d",
                        context=1024,
                        rows=16,
                        threads=2,
                        rss_bytes=42_000_000,
                        load_ms=100,
                        already=already,
                        replicas=number,
                    )
                ]
            case m.Unload():
                self._workers = []
                return [m.Unloaded(id=request.id, names=["demo/native/int8"])]
            case _:
                return [m.Failure(id=request.id, code="internal", message="this server only loads")]
