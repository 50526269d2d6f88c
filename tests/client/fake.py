"""Servers without models, which say what a test wants to see."""

from __future__ import annotations

from typing import Any

from protocol import messages as m
from protocol.errors import Internal
from protocol.testing import FakeServer, Step, server_info


class ReplicaServer(FakeServer):
    """Has one model and puts its replicas in turn on three machines, of which the first is its own."""

    nodes = ("alpha", "beta", "gamma")
    notices = ("the slower engine onnx is the default",)

    def __init__(self) -> None:
        self._workers: list[m.WorkerHealth] = []
        engine = m.Engine(name="native", precisions=["int8"])
        info = server_info(host="alpha", cores=2, memory_bytes=8 << 30, engines=[engine], notices=list(self.notices))
        super().__init__(self._replies, info=info)

    def _replies(self, request: m.AnyRequest) -> Step:
        way: dict[str, Any] = {"model": "demo", "engine": "native", "precision": "int8"}
        match request:
            case m.Ping():
                return m.Pong(
                    id=None, server_id=self.info.server_id, uptime_ms=1, draining=False, workers=self._workers
                )
            case m.Models():
                held = m.Precision(
                    engine="native",
                    precision="int8",
                    memory_bytes=142 << 20,
                    loaded=bool(self._workers),
                    replicas=self._workers,
                )
                info = m.ModelInfo(name="demo", parameters=6_000_000, context=1024, file_bytes=1, precisions=[held])
                return m.ModelList(id=None, models=[info])
            case m.GetStats():
                done: dict[str, Any] = {
                    "rss_bytes": 42_000_000,
                    "requests": 3,
                    "prompt_tokens": 5,
                    "new_tokens": 7,
                    "busy_ms": 1,
                }
                workers = [m.WorkerStats(**way, **done, replica=w.replica, node=w.node) for w in self._workers]
                counts: dict[str, Any] = {"requests": {}, "errors": {}, "workers": workers}
                return m.Stats(id=None, uptime_ms=1, rss_bytes=1, peers=1, open_requests=0, **counts)
            case m.Load():
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
                return m.Loaded(
                    id=None,
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
            case m.Unload():
                self._workers = []
                return m.Unloaded(id=None, names=["demo/native/int8"])
            case _:
                return Internal("this server only loads")
