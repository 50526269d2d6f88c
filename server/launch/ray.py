"""Places workers on a Ray cluster, by an agent in a process of its own: Ray is heavy, and has threads.

The agent (agent.py) joins the cluster, starts an actor for each worker (host.py) and says what becomes of it. When a
node is lost, Ray begins the actor again on another one, and the worker connects to the gateway by itself. When the
agent is lost, the workers end with it; another agent joins the cluster.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil

from protocol import messages as m
from protocol.errors import LoadFailed, NoMemory, RequestError, from_code
from protocol.programs import VERSION
from protocol.sockets import is_loopback
from server.config import Config, parse_resource
from server.launch import local
from server.launch.spec import Spec

log = logging.getLogger("gpt2d")

JOIN_S, LEAVE_S = 60.0, 5.0
AGAIN_S, AGAIN_MAX_S = 1.0, 60.0
MAX_ORDERS = 4096
SETTLE_S = 5.0
"""Seconds that Ray takes to say everywhere what has become free."""
SHOWN = 6
"""Number of nodes that a message names."""


class ClusterError(Exception):
    """There is no cluster; says why, for people."""


@dataclass(frozen=True)
class Node:
    name: str
    address: str
    free: dict[str, float]
    total: dict[str, float]

    def fits(self, demand: dict[str, float]) -> bool:
        return all(self.free.get(name, 0) >= amount for name, amount in demand.items())

    def __str__(self) -> str:
        """Return what is free of it."""
        others = [
            f"{self.free.get(k, 0):g} of {v:g} {k}"
            for k, v in self.total.items()
            if k.isidentifier() and k not in {"memory", "CPU"}
        ]
        cpus = f"{self.free.get('CPU', 0):g} of {cpus_of(self.total.get('CPU', 0))}"
        memory = f"{self.free.get('memory', 0) / 1e9:.1f} of {self.total.get('memory', 0) / 1e9:.1f} GB"
        return f"{self.name} {', '.join([cpus, memory, *others])}"


def cpus_of(count: float) -> str:
    return f"{count:g} CPU" if count == 1 else f"{count:g} CPUs"


@dataclass(eq=False)
class RayProcess:
    """A worker on the cluster. Written by the launcher's thread."""

    key: str
    _launcher: RayLauncher
    code: int | None = None
    failure: RequestError | None = None
    about: m.Progress | None = None

    def exit_code(self) -> int | None:
        return self.code

    def problem(self) -> RequestError | None:
        return self.failure

    def progress(self) -> m.Progress | None:
        about, self.about = self.about, None
        return about

    def renew(self, routing_id: str) -> bool:
        self._launcher.tell({"do": "cut", "key": self.key, "routing_id": routing_id})
        return True

    def stop(self) -> None:
        self._launcher.tell({"do": "stop", "key": self.key})

    def kill(self) -> None:
        self._launcher.tell({"do": "kill", "key": self.key})


@dataclass(eq=False)
class RayLauncher:
    """Its methods are the gateway's thread's; what the agent says is read in another."""

    config: Config
    _nodes: list[Node] = field(default_factory=list)
    _processes: dict[str, RayProcess] = field(default_factory=dict)
    _agent: subprocess.Popen[bytes] | None = None
    _orders: queue.Queue[dict[str, Any]] = field(default_factory=lambda: queue.Queue(MAX_ORDERS))
    """For the agent; written by a thread of its own, since an agent that does not read must hold nobody up."""
    _joined: threading.Event = field(default_factory=threading.Event)
    _freed: float = -math.inf
    """When a worker last ended (monotonic)."""
    _refused: str = ""
    """Why the agent could not join."""
    _closed: bool = False

    def join(self) -> None:
        """Wait until the cluster's nodes are known. Raises: ClusterError."""
        log.info("joining the Ray cluster at %s", self.config.cluster)
        threading.Thread(target=self._keep_joined, name="cluster", daemon=True).start()
        try:
            self._joined.wait(JOIN_S)
            if not self._nodes:
                raise ClusterError(
                    self._refused
                    or f"it did not answer within {JOIN_S:.0f} s; this machine must be one of its nodes "
                    "(`ray start --address=...`; `ray status` lists them), or ask through its head as ray://HOST:10001"
                )
            self._check_addresses()
        except BaseException:
            self.close()
            raise
        log.info("the Ray cluster has %d nodes: %s", len(self._nodes), self._listed())

    def _check_addresses(self) -> None:
        if others := self._out_of_reach():
            raise ClusterError(
                f"nodes at {', '.join(n.address for n in others[:SHOWN])} cannot reach "
                f"{urlsplit(self.config.worker_address).hostname}; give an address of this machine that they can "
                "reach, with a port that is open to them: --worker-address tcp://ADDRESS:PORT"
            )

    def _out_of_reach(self) -> list[Node]:
        """Return the nodes on other machines, where workers are to connect to this one's loopback."""
        mine = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
        return [n for n in self._nodes if n.address not in mine] if is_loopback(self.config.worker_address) else []

    def start(self, spec: Spec, memory_bytes: int) -> RayProcess:
        """Start a worker on the cluster. Raises: NoMemory if no node has room for it."""
        demand: dict[str, float] = {
            "CPU": spec.threads,
            "memory": memory_bytes,
            **dict(map(parse_resource, self.config.cluster_resources)),
        }
        place = max((n for n in self._nodes if n.fits(demand)), key=lambda n: n.free["CPU"], default=None)
        if place is None and not self._settling:
            asked = [cpus_of(spec.threads), f"{memory_bytes / 1e6:.0f} MB", *self.config.cluster_resources]
            raise NoMemory(
                f"{spec.name} needs {', '.join(asked)} on one node; {self.places()}. You could unload another, "
                "ask for fewer replicas, start the server with fewer --threads, or add a node."
            )
        if place:
            for name, amount in demand.items():  # until the agent says again what is free
                place.free[name] -= amount
        process = self._processes[spec.identity] = RayProcess(spec.identity, self)
        self.tell({"do": "start", "key": spec.identity, "spec": asdict(spec), "demand": demand})
        return process

    def free_memory(self, untaken: int) -> int:  # noqa: ARG002 - Ray counts what is reserved
        """Return the memory of the node that has most. Raises: LoadFailed if the cluster is out of reach."""
        nodes = self._nodes  # which the other thread may empty meanwhile
        if not nodes:
            raise LoadFailed(
                f"the Ray cluster is out of reach: {self._refused or 'its nodes are not known yet'}; try again later"
            )
        return int(max((node.total if self._settling else node.free).get("memory", 0) for node in nodes))

    @property
    def _settling(self) -> bool:
        """True while what has just ended still counts as taken: whether there is room, Ray itself must find out."""
        return time.monotonic() < self._freed + SETTLE_S

    def places(self) -> str:
        return f"the cluster has {self._listed()} free"

    def close(self) -> None:
        self._closed = True
        if agent := self._agent:
            self.tell({"do": "leave"})
            try:
                agent.wait(LEAVE_S if self._nodes else 0)
            except subprocess.TimeoutExpired:
                agent.kill()

    def tell(self, what: dict[str, Any]) -> None:
        """Send an order to the agent, without waiting; one that does not listen is ended, and with it its workers."""
        try:
            self._orders.put_nowait(what)
        except queue.Full:
            if self._agent:
                self._agent.kill()

    def _listed(self) -> str:
        more = f", and {len(self._nodes) - SHOWN} more" if len(self._nodes) > SHOWN else ""
        return "; ".join(map(str, self._nodes[:SHOWN])) + more

    # The thread that listens to the agent

    def _keep_joined(self) -> None:
        delay = AGAIN_S
        while not self._closed:
            began = time.monotonic()
            try:
                self._serve_agent()
            except (OSError, ValueError, KeyError, TypeError) as e:
                self._refused = self._refused or f"the agent failed: {e}"
            self._nodes = []
            gone = LoadFailed("the Ray cluster was left; the server's log may say why")
            for process in list(self._processes.values()):
                self._end(process, -1, gone)
            if not self._joined.is_set():  # `join` says why
                self._joined.set()
                return
            if not self._closed:
                if time.monotonic() > began + AGAIN_MAX_S:
                    delay = AGAIN_S
                log.error(
                    "the Ray cluster is out of reach: %s; another try in %g s",
                    self._refused or "the agent ended",
                    delay,
                )
                time.sleep(delay)
                delay = min(AGAIN_MAX_S, 2 * delay)

    def _serve_agent(self) -> None:
        agent = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.launch.agent"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"PYTHONPATH": local.ROOT, "RAY_DEDUP_LOGS": "0"},
        )  # fmt: skip
        threading.Thread(
            target=local.relay, args=(agent.stderr, "cluster"), name="stderr of the agent", daemon=True
        ).start()
        self._agent, self._orders = agent, queue.Queue(MAX_ORDERS)
        self.tell({"address": self.config.cluster, "version": VERSION, "program": local.PROGRAM})
        threading.Thread(target=_write, args=(agent, self._orders), name="to the agent", daemon=True).start()
        for line in agent.stdout or ():
            self._on_line(json.loads(line))
        agent.kill()
        agent.wait()
        self.tell({"do": "leave"})  # ends its writer

    def _on_line(self, said: dict[str, Any]) -> None:
        process = self._processes.get(said.get("key", ""))
        if "nodes" in said:
            former = {node.address for node in self._nodes}
            self._nodes, self._refused = [Node(**node) for node in said["nodes"]], ""
            if former and (new := {node.address for node in self._out_of_reach()} - former):
                log.error(
                    "nodes at %s cannot reach %s: workers that are placed there will fail",
                    ", ".join(new),
                    self.config.worker_address,
                )
            self._joined.set()
        elif "refused" in said:
            self._refused = said["refused"]
        elif process and "ended" in said:
            self._end(process, said["ended"], from_code(said["code"], said["message"]) if said["code"] else None)
        elif process and "stage" in said:
            process.about = m.Progress(
                id=None, stage=said["stage"], done=said["done"], total=said["total"], unit=said["unit"]
            )

    def _end(self, process: RayProcess, code: int, failure: RequestError | None) -> None:
        self._processes.pop(process.key, None)
        self._freed = time.monotonic()
        process.failure = failure
        process.code = code


def _write(agent: subprocess.Popen[bytes], orders: queue.Queue[dict[str, Any]]) -> None:
    """Write to an agent until it is to leave, or is gone."""
    if not agent.stdin:
        return
    try:
        with agent.stdin:
            while (what := orders.get()).get("do") != "leave":
                agent.stdin.write(json.dumps(what).encode() + b"\n")
                agent.stdin.flush()
    except OSError:
        return
