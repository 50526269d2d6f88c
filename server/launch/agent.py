"""The process that joins a Ray cluster for the gateway: it starts an actor for each worker, and reports how it ends.

Lines of JSON on stdin and stdout. It ends when stdin closes, and its actors and their workers end with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from protocol.programs import install
from server.catalogue.notes import known_digest
from server.launch.spec import CannotRun, Spec, files_of

SURVEY_S = 1.0
PLACE_S = 30.0
"""How long Ray may take to find a node and start a process there, where one was free a moment ago."""
PART_BYTES, AHEAD = 16 << 20, 3
"""Size of the parts in which files travel, and how many at a time: more would fill the object stores."""
TRIES = 5
KNOCK_S = 5.0
INSTALL = f"Ray is not installed; in the checkout of gpt2d type: {install('cluster')}"


class Voice:
    """The way to the gateway, for any thread."""

    def __init__(self, out: int) -> None:
        self._out, self._lock = out, threading.Lock()

    def __call__(self, **fields: object) -> None:
        with self._lock:
            os.write(self._out, json.dumps(fields).encode() + b"\n")


class Agent:
    def __init__(self, ray: Any, host: ModuleType, version: str, program: list[str], say: Voice) -> None:
        self._ray = ray
        self._version = version
        self._program = program
        self.say = say
        self._actors: dict[str, Any] = {}
        self._running: set[str] = set()
        """Keys whose actor has been asked to start the worker."""
        self._ended: set[str] = set()
        # Once: each that is made stays with the cluster.
        self._free_of_nodes, self._host = (
            ray.remote(num_cpus=0)(free_of_nodes),
            ray.remote(concurrency_groups={host.CONTROL: 1})(host.Host),
        )

    def start(self, key: str, spec: dict[str, Any], demand: dict[str, float]) -> None:
        """`demand` is by Ray's names of resources, memory in bytes."""
        threading.Thread(target=self._tend, args=(key, spec, demand), name=f"worker {key[:8]}", daemon=True).start()

    def stop(self, key: str) -> None:
        """End that worker; one whose actor is still being created is not begun."""
        self._ended.add(key)
        if key not in self._running:
            self.kill(key)
        elif actor := self._actors.get(key):
            actor.stop.remote()

    def cut(self, key: str, routing_id: str) -> None:
        """End a process that lost the gateway; its host begins another."""
        if actor := self._actors.get(key):
            actor.cut.remote(routing_id)

    def kill(self, key: str) -> None:
        self._ended.add(key)
        if actor := self._actors.get(key):
            self._ray.kill(actor)

    def kill_all(self) -> None:
        for key in list(self._actors):
            self.kill(key)

    def survey(self) -> None:
        """Say what the nodes have, again and again; end, and the workers too, if the cluster does not answer."""
        try:
            while True:
                self._survey()
                time.sleep(SURVEY_S)
        except Exception:  # noqa: BLE001 - whatever it is, there is no cluster
            traceback.print_exc()
        finally:
            os._exit(1)

    def _survey(self) -> None:
        free = self._free()
        nodes = [
            {
                "name": n["NodeName"],
                "address": n["NodeManagerAddress"],
                "free": free.get(n["NodeID"], {}),
                "total": _amounts(n["Resources"]),
            }
            for n in self._ray.nodes()
            if n["Alive"]
        ]
        self.say(nodes=nodes)

    def _free(self) -> dict[str, dict[str, float]]:
        """Return what is free of each node, by its id."""
        if self._ray.util.client.ray.is_connected():  # ray://: this process is no part of the cluster
            return dict(self._ray.get(self._free_of_nodes.remote(), timeout=PLACE_S))
        return free_of_nodes()

    def _tend(self, key: str, spec: dict[str, Any], demand: dict[str, float]) -> None:
        """Place a worker and wait for its end, however often Ray begins it again meanwhile."""
        ray, name = self._ray, Spec(**spec).name
        others = {k: v for k, v in demand.items() if k not in {"CPU", "memory"}}
        code = -1
        error, message = "", ""
        try:
            self.say(key=key, stage="place", done=0, total=1, unit="node")
            # Ray takes care of nodes: it begins the actor and its method again on another one. A worker that ends by
            # itself is the gateway's business.
            actor = self._host.options(
                num_cpus=demand["CPU"], memory=demand["memory"], resources=others,
                max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD",
            ).remote(self._version, self._program)  # fmt: skip
            self._actors[key] = actor
            if key not in self._ended:
                ray.get(actor.__ray_ready__.remote(), timeout=PLACE_S)
                self._running.add(key)
            # A stop notes the end first and looks what is running then; here it is the other way round.
            if key not in self._ended:
                code = self._run(key, actor, spec)
        except ray.exceptions.GetTimeoutError:
            wanted = f"{demand['CPU']:g} CPUs and {demand['memory'] / 1e6:.0f} MB"
            error = "no_memory"
            message = f"{name} found no place on the cluster within {PLACE_S:.0f} s, with {wanted}"
        except CannotRun as e:
            error, message = "bad_model", f"{name} cannot run on the cluster: {getattr(e, 'cause', e)}"
        except Exception as e:  # noqa: BLE001 - whatever Ray raises, it is this worker's end
            if key not in self._ended:
                error, message = "load_failed", f"{name} cannot run on the cluster: {_first_line(e)}"
        with contextlib.suppress(Exception):  # there may be no cluster any more
            ray.kill(self._actors.pop(key))
        self.say(key=key, ended=code, code=error, message=message)
        self._running.discard(key)
        self._ended.discard(key)

    def _run(self, key: str, actor: Any, spec: dict[str, Any]) -> int:
        """Return the worker's exit code. Files that its node lacks are sent there first.

        Raises: RuntimeError, and what Ray raises.
        """
        cache = Path(spec["cache_dir"])
        paths = files_of(spec)
        files = {name: known_digest(file, cache, lambda *_: None) for name, file in paths.items()}
        for _ in range(TRIES):
            code = self._ray.get(actor.run.remote(spec, files))
            if code is not None:
                return int(code)
            self._send(key, actor, paths)
        raise RuntimeError(f"the model's files did not arrive whole in {TRIES} tries")

    def _send(self, key: str, actor: Any, files: dict[str, Path]) -> None:
        """Through Ray's object store, part by part."""
        total = sum(file.stat().st_size for file in files.values())
        done = 0
        under_way: list[Any] = []
        for name, file in files.items():
            with file.open("rb") as stream:
                while part := stream.read(PART_BYTES):
                    under_way.append(actor.take.remote(name, stream.tell() - len(part), part, total))
                    done += len(part)
                    if len(under_way) > AHEAD:
                        self._ray.get(under_way.pop(0))
                    self.say(key=key, stage="send", done=done, total=total, unit="bytes")
        self._ray.get(under_way)


def free_of_nodes() -> dict[str, dict[str, float]]:
    """Return what is free of each node of the cluster that this process is part of, by its id."""
    from ray._private.state import available_resources_per_node  # Ray's developer API; the public one has the sum only

    return {node: _amounts(resources) for node, resources in available_resources_per_node().items()}


def _amounts(resources: dict[str, float]) -> dict[str, float]:
    return {
        name: amount
        for name, amount in resources.items()
        if not name.startswith("node:") and name != "object_store_memory"
    }


def _knock(address: str) -> None:
    """Raises: OSError where nothing listens: Ray itself would try for a minute."""
    if address != "auto":
        host, port = address.removeprefix("ray://").rsplit(":", 1)
        socket.create_connection((host, int(port)), KNOCK_S).close()


def _first_line(error: Exception) -> str:
    """Ray's errors repeat the remote traceback; its last line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def main() -> None:
    order = json.loads(sys.stdin.readline())
    say = Voice(os.dup(1))
    os.dup2(2, 1)  # Ray writes to stdout
    try:
        import ray

        from server.launch import host
    except ImportError:
        say(refused=INSTALL)
        return
    try:
        _knock(order["address"])
        ray.init(address=order["address"], log_to_driver=True, logging_level=logging.WARNING)
    except Exception as e:  # noqa: BLE001 - it raises ConnectionError, ValueError, RuntimeError and more
        say(
            refused=f"no Ray cluster answers at {order['address']}: {_first_line(e)}; "
            "one starts with: ray start --head; the lines before may say more"
        )
        return
    agent = Agent(ray, host, order["version"], order["program"], say)
    threading.Thread(target=agent.survey, name="survey", daemon=True).start()
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "start":
                agent.start(command["key"], command["spec"], command["demand"])
            case "stop":
                agent.stop(command["key"])
            case "cut":
                agent.cut(command["key"], command["routing_id"])
            case "kill":
                agent.kill(command["key"])
    agent.kill_all()
    ray.shutdown()


if __name__ == "__main__":
    main()
