"""Metrics for Prometheus: the gateway's thread counts, and a separate thread answers requests for them.

Imported only where --metrics-port asks for it.
"""

from __future__ import annotations

import os
import platform
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Info,
    MetricsHandler,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from protocol.ledger import Ledger
from protocol.programs import VERSION
from server.gateway.sessions import Sessions
from server.gateway.supervisor import Supervisor
from server.link import Beat

REQUEST_S = 5.0
MODEL = ("model", "engine", "precision")
REPLICA = (*MODEL, "replica")
ModelName = tuple[str, str, str]
"""Values of MODEL."""
ReplicaName = tuple[str, str, str, str]
"""Values of MODEL, and the replica's number."""
QUEUE_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
INFERENCE_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
"""Upper bounds of buckets."""


@dataclass(frozen=True)
class Now:
    """State at the gateway's last look."""

    replicas: dict[ReplicaName, Beat] = field(default_factory=dict)
    """Last beat of each ready worker."""
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    """Counts by type and outcome, as Sessions keeps them."""
    open_requests: int = 0
    peers: int = 0
    restarts: int = 0
    deaths: int = 0


class Metrics:
    """Counts and answers. Called by the gateway's thread only, except `collect`."""

    def __init__(self, port: int) -> None:
        """Serve on 127.0.0.1. Raises: OSError if the port is taken."""
        self._began = time.monotonic()
        self._now = Now()
        self._named: set[ModelName] = set()
        disable_created_metrics()  # one more series for each, with the time when it began
        registry = CollectorRegistry()
        Info("gpt2d_build", "The program", registry=registry).info(
            {"version": VERSION, "python": platform.python_version()}
        )
        ProcessCollector(registry=registry)
        self._queue = Histogram(
            "gpt2d_queue_seconds", "From receipt to prefill", MODEL, buckets=QUEUE_S, registry=registry
        )
        self._first_token = Histogram(
            "gpt2d_first_token_seconds",
            "From receipt to the first token",
            MODEL,
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self._inference = Histogram(
            "gpt2d_inference_seconds", "Prefill and decode", MODEL, buckets=INFERENCE_S, registry=registry
        )
        self._batch = Summary(
            "gpt2d_batch_size", "Mean batch of each generation's decode steps", MODEL, registry=registry
        )
        self._by_model = (self._queue, self._first_token, self._inference, self._batch)
        registry.register(self)
        self._server = _Server(("127.0.0.1", port), _Handler.factory(registry))
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def generated(self, name: ModelName, ledger: Ledger) -> None:
        self._named.add(name)
        self._queue.labels(*name).observe(ledger.queue_ms / 1000)
        self._first_token.labels(*name).observe(ledger.first_token_ms / 1000)
        self._inference.labels(*name).observe(ledger.inference_ms / 1000)
        if ledger.mean_batch:
            self._batch.labels(*name).observe(ledger.mean_batch)

    def look(self, replicas: dict[ReplicaName, Beat], sessions: Sessions, supervisor: Supervisor) -> None:
        """Take over the present state, and forget the metrics of models that are no longer loaded."""
        self._now = Now(
            replicas,
            dict(sessions.outcomes),
            len(sessions.all_open()),
            sessions.peers,
            supervisor.restarts,
            supervisor.deaths,
        )
        for name in self._named - {replica[:3] for replica in replicas}:
            self._named.remove(name)
            for metric in self._by_model:
                metric.remove(*name)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, from one `Now`. Called by the thread that answers."""
        now = self._now
        yield GaugeMetricFamily("gpt2d_uptime_seconds", "Since the start", time.monotonic() - self._began)
        requests = CounterMetricFamily(
            "gpt2d_requests", "Requests answered, ok or with an error code", labels=("type", "outcome")
        )
        for kind_and_outcome, count in now.outcomes.items():
            requests.add_metric(kind_and_outcome, count)
        yield requests
        yield GaugeMetricFamily("gpt2d_open_requests", "Requests without their last reply", now.open_requests)
        yield GaugeMetricFamily("gpt2d_peers", "Connected peers that have asked something", now.peers)
        yield CounterMetricFamily("gpt2d_worker_restarts", "Models that are kept loaded, loaded again", now.restarts)
        yield CounterMetricFamily("gpt2d_worker_deaths", "Workers that ended unasked, or were stuck", now.deaths)
        waiting = GaugeMetricFamily("gpt2d_waiting_sequences", "Sequences in the queue", labels=REPLICA)
        running = GaugeMetricFamily("gpt2d_running_sequences", "Sequences in the batch", labels=REPLICA)
        resident = GaugeMetricFamily("gpt2d_worker_resident_bytes", "Resident memory of the worker", labels=REPLICA)
        prompt = CounterMetricFamily("gpt2d_prompt_tokens", "Prompt tokens of answered requests", labels=REPLICA)
        new = CounterMetricFamily("gpt2d_new_tokens", "Tokens written", labels=REPLICA)
        busy = CounterMetricFamily("gpt2d_busy_seconds", "Time that the worker spent computing", labels=REPLICA)
        for name, beat in now.replicas.items():
            waiting.add_metric(name, beat.waiting)
            running.add_metric(name, beat.running)
            resident.add_metric(name, beat.rss_bytes)
            prompt.add_metric(name, beat.prompt_tokens)
            new.add_metric(name, beat.new_tokens)
            busy.add_metric(name, beat.busy_ms / 1000)
        yield from (waiting, running, resident, prompt, new, busy)


class _Handler(MetricsHandler):
    """Ends a connection that is silent for `timeout`."""

    timeout = REQUEST_S


class _Server(socketserver.TCPServer):
    """Answers one scrape at a time: many connections wait for each other, and take no threads from the gateway."""

    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a peer that asked and left."""
