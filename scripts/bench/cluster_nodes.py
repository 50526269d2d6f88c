"""Nodes of a Ray cluster, all on this machine, for scripts.bench.cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.reliability.asking import until

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster  # heavy, and not needed for --help

NODE_BYTES = 4 << 30
"""Memory that a node has to give."""
NODE_S = 60.0


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Cluster]:
    """Start a head that takes no workers, and this many nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "node_name": "head", "include_dashboard": False}
    )
    try:
        for i in range(nodes):
            cluster.add_node(num_cpus=1, node_name=f"node-{i}", memory=NODE_BYTES)
        yield cluster
    finally:
        cluster.shutdown()


def alive(cluster: Cluster) -> int:
    """Return the number of nodes."""
    return len(cluster.global_state._live_node_ids())


@contextmanager
def ray_node(cluster: Cluster, name: str, threads: int, cache: Path, covered: Path | None) -> Iterator[Path]:
    """Start a node in a mount namespace of its own, where another folder is in place of the build cache `cache`.

    Gives that other folder. The folder `covered` is empty there. The node has a resource of its name.
    """
    own = cache.with_name(f"{cache.name}-of-{name}")
    for place in (own, cache):
        place.mkdir(parents=True)
    mounts = 'mount --bind "$1" "$2" && { [ -z "$3" ] || mount -t tmpfs none "$3"; } && shift 3 && exec "$@"'
    ray = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        f"--address={cluster.address}",
        f"--node-name={name}",
        f"--num-cpus={threads}",
        f"--memory={NODE_BYTES}",
        f"--resources={json.dumps({name: 1})}",
        "--disable-usage-stats",
    ]
    before = alive(cluster)
    with (own.parent / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mounts, "sh", own, cache, covered or "", *ray], stdout=log, stderr=log
        )
    try:
        until(lambda: alive(cluster) > before or process.poll() is not None, NODE_S, f"node {name}")
        if process.poll() is not None:
            sys.exit(f"node {name} did not start: {(own.parent / f'{name}.log').read_text()[-2000:]}")
        yield own
    finally:
        process.terminate()
        process.wait(NODE_S)
