"""Workers on a Ray cluster of real nodes, all on this machine, with a fake engine where the text does not matter."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="needs requirements-cluster.txt")

from ray._private.node import Node
from ray.cluster_utils import Cluster

from protocol import Client, messages as m
from protocol.errors import NoMemory, WorkerDied
from protocol.programs import install
from scripts.daemon import Daemon
from scripts.reliability.asking import Asked, ask
from scripts.reliability.daemon import Behaviour, FakeDaemon
from tests.conftest import wait_for
from tests.system.test_replicas import health, long, ready, running

SLOW = Behaviour(delay_ms=5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that holds no worker. Tests add their nodes; the names of these are their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "node_name": "head", "include_dashboard": False}
        )
        yield cluster
        cluster.shutdown()


Add = Callable[..., Node]


@pytest.fixture
def add(cluster: Cluster) -> Iterator[Add]:
    """Add a node of two CPUs and 1 GB, and wait until it is there; it is removed when the test ends."""
    nodes: list[Node] = []

    def add(name: str, **resources: float) -> Node:
        nodes.append(
            cluster.add_node(node_name=name, num_cpus=2, memory=10**9, include_dashboard=False, resources=resources)
        )
        return nodes[-1]

    yield add
    for node in nodes:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node)


class OnCluster(FakeDaemon):
    def __init__(self, cluster: Cluster, folder: Path, behaviour: Behaviour, *arguments: str) -> None:
        # Another delay than any other daemon's of this machine, by which on_nodes() knows its workers.
        self.behaviour = replace(behaviour, delay_ms=behaviour.delay_ms + random.random() * 1e-3)
        super().__init__(folder, self.behaviour, "--cluster", cluster.address, "--threads", "1", *arguments)

    def agent(self) -> psutil.Process:
        return next(p for p in self.workers() if "server.launch.agent" in p.cmdline())

    def on_nodes(self) -> list[psutil.Process]:
        """Return its workers' processes, in the order of their start."""
        behaviour = json.dumps(asdict(self.behaviour))
        found = [
            p
            for p in psutil.process_iter(["cmdline"])
            if behaviour in (p.info["cmdline"] or []) and "scripts.reliability.worker" in p.info["cmdline"]
        ]
        return sorted(found, key=lambda p: p.create_time())


def nodes(client: Client) -> dict[int, str]:
    """Return the node of each replica that serves."""
    return {w.replica: w.node for w in health(client) if w.state == "ready"}


def test_workers_are_spread_over_the_nodes(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    add("a"), add("b")
    with OnCluster(cluster, tmp_path, SLOW) as daemon, Client(daemon.endpoint) as client:
        stages: list[str] = []
        loaded = client.load("demo", replicas=2, on_progress=lambda p: stages.append(p.stage))
        assert loaded.replicas == 2 and stages[0] == "place"
        assert sorted(nodes(client).values()) == ["a", "b"]
        assert sorted(w.node for w in client.stats().workers) == ["a", "b"]
        asked = [ask(client, long(i, 50)) for i in range(8)]
        for one in asked:
            one.wait(30)
            one.is_right()
        # Four CPUs are there for four workers, and no more.
        assert client.load("demo", replicas=4).replicas == 4
        needs = r"demo/onnx/int8 needs 1 CPU, \d+ MB on one node"
        has = r"the cluster has .*a 0 of 2 CPUs, .* GB.*You could unload"
        with pytest.raises(NoMemory, match=f"{needs}; {has}"):
            client.load("demo", engine="onnx")
        assert client.load("demo", replicas=1).replicas == 1
        wait_for(lambda: len(health(client)) == 1)
        client.load("demo", engine="onnx")
        assert set(client.unload("demo")) == {"demo/native/int8", "demo/onnx/int8"} and not daemon.on_nodes()
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.logged()


def test_what_no_node_has(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    add("a", fast=1)
    with (
        OnCluster(cluster, tmp_path, SLOW, "--cluster-resources", "fast=1") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo")
        with pytest.raises(
            NoMemory, match=r"needs 1 CPU, \d+ MB, fast=1 on one node; the cluster has .*a 1 of 2 CPUs, .* 0 of 1 fast"
        ):
            client.load("demo", replicas=2)
        assert nodes(client) == {0: "a"}
    with OnCluster(cluster, tmp_path / "large", SLOW, "--rows", "4000") as daemon, Client(daemon.endpoint) as client:
        with pytest.raises(NoMemory, match=r"needs about \d+ MB; \d+ MB are free for it; the cluster has "):
            client.load("demo", precision="fp32")


def test_the_same_text_as_on_this_machine(
    cluster: Cluster, add: Add, tmp_path: Path, client: Client, cache: Path
) -> None:
    """The real worker, over an address that other machines could reach."""
    add("a")
    addresses = [a.address for all_ in psutil.net_if_addrs().values() for a in all_ if a.family.name == "AF_INET"]
    outside = next((a for a in addresses if not a.startswith("127.")), "127.0.0.1")
    arguments = [
        "--cluster",
        cluster.address,
        "--threads",
        "1",
        "--cache-dir",
        str(cache),
        "--worker-address",
        f"tcp://{outside}:0",
    ]
    daemon = Daemon(tmp_path, *arguments)
    settings: dict[str, Any] = {"max_new_tokens": 40, "strategy": "greedy", "engine": "native", "precision": "int8"}
    prompt = "When in the chronicle of wasted time\nI see descriptions of the fairest wights,\n"
    try:
        with Client(daemon.endpoint) as there:
            there.load("demo", replicas=2)
            text = there.generate(prompt, **settings).text
            again = there.generate(prompt + text, **settings)
            assert again.ledger.reused_tokens > 20, "it went where the first page was written"
            assert text == client.generate(prompt, **settings).text
            assert again.text == client.generate(prompt + text, **settings).text
        assert daemon.stop() == 0
    finally:
        daemon.kill()


@pytest.mark.alone
def test_a_node_that_is_lost(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    """A text under way there ends with an error; one that had not begun begins elsewhere; its worker comes back."""
    there = {name: add(name) for name in "ab"}
    with OnCluster(cluster, tmp_path, SLOW) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=2)
        streams = [ask(client, long(i, 900)) for i in range(2)]
        running(streams)
        wait_for(lambda: all(w.running == 1 for w in health(client)))
        silent = [ask(client, long(10 + i, 100, stream=False)) for i in range(6)]
        lost = time.monotonic()
        cluster.remove_node(there["a"])
        wait_for(lambda: any(one.done.is_set() for one in streams), 3)
        (cut,) = [one for one in streams if one.done.is_set()]
        assert isinstance(cut.last, WorkerDied) and "on a was lost" in str(cut.last) and cut.at - lost < 2
        for one in silent:
            one.wait(30)
            one.is_right()
        (whole,) = [one for one in streams if one is not cut]
        whole.wait(30)
        whole.is_right()
        wait_for(lambda: nodes(client) == {0: "b", 1: "b"}, 20)
        assert len(daemon.on_nodes()) == 2
        cluster.remove_node(there["b"])
        wait_for(lambda: nodes(client) == {}, 10)
        waits = ask(client, m.Load(model="demo"))
        add("c")
        assert isinstance(waits.wait(30), m.Loaded), "it waited for a node"
        wait_for(lambda: nodes(client) == {0: "c", 1: "c"}, 20)


def test_a_thousand_requests_and_a_node_that_goes(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    there = {name: add(name) for name in "abc"}
    with (
        OnCluster(cluster, tmp_path, Behaviour(delay_ms=2), "--max-open-per-peer", "1000") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo", replicas=3)
        asked: list[Asked] = []
        for i in range(1000):
            while sum(not one.done.is_set() for one in asked[-200:]) > 100:
                time.sleep(0.005)
            asked.append(ask(client, long(i, 10, stream=False)))
            if i == 400:
                cluster.remove_node(there["b"])
            if i == 600:
                add("d")
        for one in asked:
            one.wait(60)
            one.is_right()
        wait_for(lambda: len(nodes(client)) == 3)


def test_a_worker_that_dies_is_the_daemons_own_business(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    """A kept model is loaded again, as on one machine; a worker that hangs is ended, though it reads no stdin."""
    add("a")
    with (
        OnCluster(cluster, tmp_path, SLOW, "--preload", "demo", "--stuck-seconds", "1") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo")
        stream = ask(client, long(1))
        running([stream])
        daemon.on_nodes()[0].kill()
        assert isinstance(stream.wait(30), WorkerDied) and "signal 9" in str(stream.last)
        wait_for(lambda: ready(client) == [0])
        (stuck,) = daemon.on_nodes()
        stuck.send_signal(signal.SIGSTOP)
        stream = ask(client, long(2, stream=False))
        assert isinstance(stream.wait(30), WorkerDied) and "had not moved" in str(stream.last)
        wait_for(lambda: ready(client) == [0])
        assert [p.pid for p in daemon.on_nodes()] != [stuck.pid] and len(daemon.on_nodes()) == 1


def test_no_worker_outlives_the_daemon(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    add("a")
    with OnCluster(cluster, tmp_path, SLOW) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=2)
        assert len(daemon.on_nodes()) == 2
        daemon.kill()
        wait_for(lambda: not daemon.on_nodes())


def test_an_agent_that_is_lost(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    """Its workers end with it; another joins the cluster, and what is kept is loaded again."""
    add("a")
    with OnCluster(cluster, tmp_path, SLOW, "--preload", "demo:2") as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        wait_for(lambda: len(nodes(client)) == 2)
        stream = ask(client, long(1))
        running([stream])
        former = daemon.on_nodes()
        daemon.agent().kill()
        assert isinstance(stream.wait(30), WorkerDied)
        wait_for(lambda: len(nodes(client)) == 2)
        assert not {p.pid for p in former} & {p.pid for p in daemon.on_nodes()} and len(daemon.on_nodes()) == 2


def can_mount() -> bool:
    """True if a namespace can be made here for mounts that others do not see."""
    return bool(shutil.which("unshare")) and not subprocess.call(
        ["unshare", "--mount", "true"], stderr=subprocess.DEVNULL
    )


@pytest.mark.skipif(not can_mount(), reason="mount namespaces need Linux, root with its rights, and a mounted /")
def test_files_that_a_node_has_not_are_sent(cluster: Cluster, add: Add, tmp_path: Path) -> None:
    """The daemon sees a model in its models folder where the nodes see an empty one."""
    from tests.server.test_weights import copy_demo

    add("a")
    hidden = tmp_path / "models"
    hidden.mkdir()
    copy_demo(tmp_path / "source" / "mine")
    script = f'mount -t tmpfs none "{hidden}" && cp -r "{tmp_path}/source/mine" "{hidden}/" && exec "$@"'
    with InNamespace(cluster, tmp_path, script) as daemon, Client(daemon.endpoint) as client:
        stages: list[str] = []
        client.load("mine", on_progress=lambda p: stages.append(p.stage))
        assert "send" in stages and not list(hidden.iterdir())
        (received,) = (tmp_path / "cache" / "received").iterdir()
        assert sorted(f.name for f in received.iterdir()) == sorted(
            f.name for f in (tmp_path / "source" / "mine").iterdir() if f.suffix not in {".md", ".txt"}
        )
        one = ask(client, long(1, 20))
        one.wait(30)
        one.is_right()
        client.unload("mine")
        stages.clear()
        client.load("mine", on_progress=lambda p: stages.append(p.stage))
        assert stages and "send" not in stages, "the node has them now"


class InNamespace(OnCluster):
    def __init__(self, cluster: Cluster, folder: Path, script: str) -> None:
        self.before = ("unshare", "--mount", "sh", "-c", script, "sh")
        super().__init__(cluster, folder, SLOW)


# Without a cluster


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "server",
        "--endpoint",
        "tcp://127.0.0.1:0",
        "--cluster",
        "127.0.0.1:1",
        "--cache-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "--cluster 127.0.0.1:1: no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "ray start --head" in done.stderr and "Traceback" not in done.stderr


def test_without_ray() -> None:
    code = "import sys; sys.modules['ray'] = None; from server.launch import agent; agent.main()"
    asked = json.dumps({"address": "auto", "version": "", "program": []}) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", code], input=asked, capture_output=True, text=True, timeout=30, check=True
    )
    said = f"Ray is not installed; in the checkout of gpt2d type: {install('cluster')}"
    assert json.loads(done.stdout)["refused"] == said
