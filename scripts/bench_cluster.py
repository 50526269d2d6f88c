#!/usr/bin/env python3
"""What more nodes bring, how much one gateway carries, how long a model takes to reach a node.

    python scripts/bench_cluster.py                     nodes and gateway, in about seven minutes; --quick: in two
    python scripts/bench_cluster.py --only gateway      some of nodes,gateway,weights
    python scripts/bench_cluster.py --weights           also loads of a gpt2-sized model (Linux; as root, for its mounts)

nodes    A Ray cluster of processes on this machine (ray.cluster_utils), with a replica on each node whose engine waits
         --delay-ms a step instead of computing: measured is the way through gateway, cluster and workers, and not how many
         cores this machine has. More streams than rows are open all the time. Aim: four nodes give 3.6 times one.
gateway  Workers without an engine write as fast as the gateway takes it, each token in a message of its own. Real workers
         join what they write within 20 ms, so that is the worst case; `pieces` is the same with eight tokens in each message.
         Clients and workers share the cores with the gateway, so `cpu_us` tells what a token costs the gateway's process
         alone, and `busy` how much of a core its thread took. Aims: 2,000 tokens a second to one peer, 10,000 in all.
weights  A model's load, built anew (cold) and as it was built before (warm): on this machine without a cluster, on a node
         that has the same folder, and on a node that does not see it (a mount covers it there), to which Ray's object store
         brings it. Nodes have build caches of their own. The files are in this machine's page cache, and no network is between.

Turns alternate (A B A B), figures are medians, and each text is compared with the one that its engine must write. The last
line is one JSON object; `missed` has the aims that were not reached.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from bench_peers import alone
from make_model import ensure_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol import Client, messages as m
from protocol.connection import Event
from server.config import default_models_dir, default_threads
from tests.conftest import Daemon
from tests.reliability.asking import Asked, text, until
from tests.reliability.daemon import Behaviour, FakeDaemon
from tests.reliability.flood import FloodDaemon

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster  # heavy, and not needed for --help

PARTS = ("nodes", "gateway", "weights")
SCALING, PEER_TOK_S, GATEWAY_TOK_S = 3.6, 2000, 10_000
STREAM_S, END_S, NODE_S = 120.0, 90.0, 60.0
KEYS = iter(range(0, 1 << 30, 613))
"""Where each client's texts begin."""

SPARE, TEXT_TOKENS, WARM_S = 1.5, 128, 4.0
"""Streams for each row, so that one which falls free is taken at once; their length; and the time before the measurement."""
FLOOD_STREAMS, FLOOD_TOKENS, FLOOD_WARM_S = 8, 128, 1.0
"""The same of each peer of the gateway."""
PIECES = (1, 8)
"""Tokens in a message; eight is what a worker joins of a stream of 400 tokens a second."""
NODE_BYTES = 4 << 30
"""Of memory that a node has to give."""
SETTLE_S = 3.0
"""After an unload, until the cluster tells that its node is free."""
D = TypeVar("D", bound=Daemon)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="A,B", default="nodes,gateway", help=f"of: {', '.join(PARTS)} (default: %(default)s)")
    parser.add_argument("--weights", action="store_true", help="weights, too")
    parser.add_argument("--quick", action="store_true", help="two turns, and short ones")
    parser.add_argument("--runs", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4], help="how many at a time (default: 1 4)")
    parser.add_argument("--delay-ms", type=float, default=50.0, help="what a step of the waiting engine takes (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="sequences in each of its steps (default: %(default)s)")
    parser.add_argument("--peers", type=int, default=4, help="for the gateway's sum, in two processes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="that write to them (default: %(default)s)")
    parser.add_argument("--models-dir", type=Path, default=default_models_dir(), help="for weights (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of a worker, for weights (default: %(default)s)")
    args = parser.parse_args()
    parts = {*args.only.split(","), *(["weights"] if args.weights else [])}
    if unknown := parts - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    if args.quick:
        args.runs, args.seconds = 2, min(args.seconds, 4.0)
    if "weights" in parts and (sys.platform != "linux" or os.geteuid() != 0):
        sys.exit("weights covers folders with mounts, for which it must be root on Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the ends of all that was started
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    tally, figures = Tally(), dict[str, Any]()
    for part, measured in (("nodes", measure_nodes), ("gateway", measure_gateway), ("weights", measure_weights)):
        if part in parts:
            # A short path: Ray's Unix sockets are deep in there, and have 107 characters in all.
            with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
                os.environ["RAY_TMPDIR"] = folder
                figures |= measured(args, Path(folder), tally)
    figures["missed"] = missed(figures) + ([f"{len(tally.wrong)} of {tally.texts} texts"] if tally.wrong else [])
    for line in (*tally.wrong[:5], *(f"missed: {aim}" for aim in figures["missed"])):
        print(line, file=sys.stderr)
    memory = round(psutil.virtual_memory().total / 1e9)
    machine = (
        f"{processor()}, {os.cpu_count()} cores, {memory} GB, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    print(
        json.dumps({**figures, "texts": tally.texts, "wrong": len(tally.wrong), "machine": machine, "load": round(os.getloadavg()[0], 1)})
    )


def missed(figures: dict[str, Any]) -> list[str]:
    aims = (
        ("scaling", SCALING, "times one node"),
        ("peer_tok_s", PEER_TOK_S, "tokens a second"),
        ("gateway_tok_s", GATEWAY_TOK_S, "tokens a second"),
    )
    return [f"{name} {figures[name]:g} of {aim:g} {unit}" for name, aim, unit in aims if figures.get(name, aim) < aim]


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


@contextmanager
def running(daemon: D) -> Iterator[D]:
    try:
        yield daemon
    finally:
        daemon.stop()


# Clients, in processes of their own


class Peer:
    """A connection with so many streams open until `finish`: when one ends, another begins."""

    def __init__(self, endpoint: str, streams: int, tokens: int, key: int) -> None:
        self.client = Client(endpoint)
        self.tokens = 0
        """That have come so far; counted in the connection's thread."""
        self._length, self._key, self._over = tokens, key, False
        self._streams: list[Streamed] = []
        for _ in range(streams):
            self.begin()

    def begin(self) -> None:
        self._key += 1
        length = self._length * 3 // 4 + self._key * 37 % (self._length // 2)  # they do not all end at once
        one = Streamed(text(self._key, length), peer=self)
        self._streams.append(one)
        self.client.connection.submit(one.request, one.take, STREAM_S)

    def ended(self, event: Event) -> None:
        if isinstance(event, m.Generated) and not self._over:  # after an error there is no other: it is told at the end
            self.begin()

    def finish(self) -> list[str]:
        """For each stream what was wrong with it, or nothing."""
        self._over = True
        found = []
        for one in self._streams:
            try:
                one.wait(END_S)
                one.is_right()
                found.append("")
            except AssertionError as e:
                found.append(str(e)[:300] or f"another text than that of {one.request}")
        self.client.close()
        return found


@dataclass
class Streamed(Asked):
    peer: Peer = field(kw_only=True)

    def take(self, event: Event) -> None:
        super().take(event)
        if isinstance(event, m.Tokens):
            self.peer.tokens += len(event.ids)
        elif self.last is not None:
            self.peer.ended(event)


def serve_peers(pipe: Pipe, endpoint: str, count: int, streams: int, tokens: int, key: int) -> None:
    """A process of clients: answers `count` with the time and the tokens so far, `finish` with what `Peer.finish` says."""
    peers = [Peer(endpoint, streams, tokens, key + 997 * i) for i in range(count)]
    while pipe.recv() == "count":
        pipe.send((time.monotonic(), sum(peer.tokens for peer in peers)))
    pipe.send([wrong for peer in peers for wrong in peer.finish()])


@dataclass
class Tally:
    texts: int = 0
    wrong: list[str] = field(default_factory=list)


class Peers:
    """Processes of clients. Each has `count` peers with so many streams."""

    def __init__(self, endpoint: str, processes: int, count: int, streams: int, tokens: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = list[Pipe](), []
        for _ in range(processes):
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(target=serve_peers, args=(theirs, endpoint, count, streams, tokens, next(KEYS)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self._ask("count")  # they are there

    def _ask(self, what: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(what)
        return [pipe.recv() for pipe in self._pipes]

    def rate(self, seconds: float) -> float:
        """Tokens a second that come in that time."""
        before = self._ask("count")
        time.sleep(seconds)
        rates = [(tokens - then) / (now - at) for (at, then), (now, tokens) in zip(before, self._ask("count"), strict=True)]
        return float(sum(rates))

    def finish(self, tally: Tally) -> None:
        """Begin nothing more, wait for what is open, and compare all texts."""
        for found in self._ask("finish"):
            tally.texts += len(found)
            tally.wrong += filter(None, found)
        for process in self._processes:
            process.join(END_S)


# Nodes


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Cluster]:
    """A head that takes no workers, and so many nodes of one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_name": "head", "include_dashboard": False})
    try:
        for i in range(nodes):
            cluster.add_node(num_cpus=1, node_name=f"node-{i}", memory=NODE_BYTES)
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def alive(cluster: Cluster) -> int:
    """How many nodes there are."""
    return len(cluster.global_state._live_node_ids())  # type: ignore[no-untyped-call]


def measure_nodes(args: argparse.Namespace, folder: Path, tally: Tally) -> dict[str, Any]:
    found: dict[int, list[float]] = {count: [] for count in args.nodes}
    behaviour = Behaviour(delay_ms=args.delay_ms, rows=args.rows)
    with ray_cluster(max(args.nodes)) as cluster:
        arguments = ("--cluster", str(cluster.address), "--threads", "1", "--max-open-per-peer", "4096")
        with running(FakeDaemon(folder, behaviour, *arguments)) as daemon, Client(daemon.endpoint) as client:
            for turn in range(args.runs):
                for count in args.nodes:
                    client.load("demo", replicas=count)
                    until(lambda count=count: len(client.ping().workers) == count, END_S, f"{count} replicas")  # type: ignore[misc]
                    with alone():
                        peers = Peers(daemon.endpoint, 2, 1, math.ceil(count * args.rows * SPARE / 2), TEXT_TOKENS)
                        time.sleep(WARM_S)
                        found[count].append(peers.rate(args.seconds))
                        workers = client.ping().workers
                        peers.finish(tally)
                    places, full = {w.node for w in workers}, sum(w.running == args.rows for w in workers)
                    print(
                        f"turn {turn + 1} of {args.runs}: {count} replicas on {len(places)} nodes, {full} with all rows: "
                        f"{found[count][-1]:.1f} tokens/s, load {os.getloadavg()[0]:.1f}",
                        file=sys.stderr,
                        flush=True,
                    )
    nodes = {str(count): round(statistics.median(rates), 1) for count, rates in found.items()}
    one = nodes[str(args.nodes[0])]
    print(f"\n{'nodes':>10}{'tokens/s':>12}{'least':>10}{'most':>10}{'times':>8}")
    for count, rates in found.items():
        median = nodes[str(count)]
        print(f"{count:10}{median:12.1f}{min(rates):10.1f}{max(rates):10.1f}{median / one:8.2f}")
    print(f"{args.rows * 1000 / args.delay_ms:.0f} tokens/s a node would be without any prefill")
    return {"nodes": nodes} | ({"scaling": round(nodes["4"] / nodes["1"], 2)} if {1, 4} <= found.keys() else {})


# Gateway


@dataclass(frozen=True)
class Window:
    """What a gateway did for a while. `cpu_us` is its process's time for a token, `busy` its thread's share of a core."""

    tok_s: float
    cpu_us: float
    busy: float


def watch(daemon: Daemon, peers: Peers, seconds: float) -> Window:
    process = psutil.Process(daemon.process.pid)

    def used() -> tuple[float, float, float]:
        own = next(t for t in process.threads() if t.id == process.pid)
        return time.monotonic(), sum(process.cpu_times()[:2]), own.user_time + own.system_time

    before = used()
    tok_s = peers.rate(seconds)
    took, whole, own = (now - then for now, then in zip(used(), before, strict=True))
    return Window(tok_s, whole / took / max(tok_s, 1.0) * 1e6, own / took)


def measure_gateway(args: argparse.Namespace, folder: Path, tally: Tally) -> dict[str, Any]:
    found: dict[tuple[int, str], list[Window]] = {(piece, name): [] for piece in PIECES for name in ("peer", "all")}
    with ExitStack() as stack:
        daemons: dict[int, Daemon] = {}
        for piece in PIECES:
            daemons[piece] = daemon = stack.enter_context(running(FloodDaemon(folder / str(piece), piece)))
            client = stack.enter_context(Client(daemon.endpoint))
            client.load("demo", replicas=args.workers)
        for turn in range(args.runs):
            for (piece, name), windows in found.items():
                processes, count = (1, 1) if name == "peer" else (2, math.ceil(args.peers / 2))
                with alone():
                    peers = Peers(daemons[piece].endpoint, processes, count, FLOOD_STREAMS, FLOOD_TOKENS)
                    time.sleep(FLOOD_WARM_S)
                    windows.append(watch(daemons[piece], peers, args.seconds / 2))
                    peers.finish(tally)
            print(f"turn {turn + 1} of {args.runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print(f"\n{'tokens a message':>16}{'peers':>7}{'tokens/s':>10}{'least':>8}{'most':>8}{'cpu_us':>8}{'busy':>7}")
    summary: dict[tuple[int, str], Window] = {}
    for (piece, name), windows in found.items():
        rates = [w.tok_s for w in windows]
        summary[piece, name] = median = Window(*(statistics.median(getattr(w, f) for w in windows) for f in ("tok_s", "cpu_us", "busy")))
        print(
            f"{piece:16}{1 if name == 'peer' else args.peers:7}{median.tok_s:10.0f}{min(rates):8.0f}{max(rates):8.0f}"
            f"{median.cpu_us:8.1f}{median.busy:7.0%}"
        )
    one, several = summary[PIECES[0], "peer"], summary[PIECES[0], "all"]
    return {
        "peer_tok_s": round(one.tok_s), "gateway_tok_s": round(several.tok_s),
        "cpu_us": {"peer": round(one.cpu_us, 1), "all": round(several.cpu_us, 1)},
        "busy": {"peer": round(one.busy, 2), "all": round(several.busy, 2)},
        "pieces": {"tokens": PIECES[1], "peer_tok_s": round(summary[PIECES[1], "peer"].tok_s), "gateway_tok_s": round(summary[PIECES[1], "all"].tok_s)},
    }  # fmt: skip


# Weights


@contextmanager
def ray_node(cluster: Cluster, name: str, threads: int, cache: Path, covered: Path | None) -> Iterator[Path]:
    """A node in a mount namespace of its own, where another folder stands in place of the build cache `cache`, and `covered` is empty.

    Gives that other folder. The node has a resource of its name.
    """
    own = cache.with_name(f"{cache.name}-of-{name}")
    for place in (own, cache):
        place.mkdir(parents=True)
    mounts = 'mount --bind "$1" "$2" && { [ -z "$3" ] || mount -t tmpfs none "$3"; } && shift 3 && exec "$@"'
    ray = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.address}", f"--node-name={name}",
        f"--num-cpus={threads}", f"--memory={NODE_BYTES}", f"--resources={json.dumps({name: 1})}", "--disable-usage-stats",
    ]  # fmt: skip
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


@dataclass
class Loading:
    """A load, and when each of its stages was first told (monotonic)."""

    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    sent: list[tuple[float, int, int]] = field(default_factory=list)
    """(when, bytes so far, bytes in all)"""

    def tell(self, progress: m.Progress) -> None:
        now = time.monotonic()
        self.stages.setdefault(progress.stage, now)
        if progress.stage == "send":
            self.sent.append((now, progress.done, progress.total))

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def parts(self) -> dict[str, float]:
        """How long each stage took, up to the next; "launch" is what comes before the first."""
        times = {"launch": self.began, **self.stages}
        return {stage: after - at for (stage, at), after in zip(times.items(), [*self.stages.values(), self.ended], strict=True)}

    @property
    def send_s(self) -> float:
        """What the transfer of all files takes, by the pace of its middle: its first and its last parts are not told."""
        if len(self.sent) < 2:
            return 0.0
        (first, done, total), (last, more, _) = self.sent[0], self.sent[-1]
        return (last - first) * total / (more - done)


def empty(folder: Path) -> None:
    """The folder itself stays: it is mounted on a node."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def measure_weights(args: argparse.Namespace, folder: Path, _: Tally) -> dict[str, Any]:
    model = ensure_model("gpt2", args.models_dir)
    size = sum(file.stat().st_size for file in (args.models_dir / model).iterdir())
    found: dict[tuple[str, str], list[Loading]] = {(name, state): [] for name in ("local", "shared", "sent") for state in ("cold", "warm")}
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(0))
        clients: dict[str, Client] = {}
        caches: dict[str, list[Path]] = {}
        for name in dict.fromkeys(name for name, _ in found):
            more, caches[name] = list[str](), [folder / name / "cache"]
            if name != "local":
                covered = args.models_dir if name == "sent" else None
                caches[name].append(stack.enter_context(ray_node(cluster, name, args.threads, caches[name][0], covered)))
                more = ["--cluster", str(cluster.address), "--cluster-resources", f"{name}=1"]
            arguments = ("--models-dir", str(args.models_dir), "--threads", str(args.threads), *more)
            daemon = stack.enter_context(running(Daemon(folder / name, *arguments)))
            clients[name] = stack.enter_context(Client(daemon.endpoint))
        for turn in range(args.runs):
            for (name, state), loadings in found.items():
                for cache in caches[name] if state == "cold" else ():
                    empty(cache)
                time.sleep(SETTLE_S)
                loading = Loading()
                with alone():
                    clients[name].load(model, engine="native", precision="int8", on_progress=loading.tell)
                loading.ended = time.monotonic()
                clients[name].unload(model)
                loadings.append(loading)
                if bool(loading.sent) != ((name, state) == ("sent", "cold")):
                    sys.exit(f"{name}, {state}: the files were {'' if loading.sent else 'not '}sent")
            print(f"turn {turn + 1} of {args.runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print(f"\n{'files':>8}{'build':>7}{'s':>8}{'least':>8}{'most':>8}   stages")
    weights: dict[str, Any] = {"bytes": size}
    for (name, state), loadings in found.items():
        times = [loading.seconds for loading in loadings]
        stages = {stage: round(statistics.median(loading.parts.get(stage, 0.0) for loading in loadings), 2) for stage in loadings[0].parts}
        weights.setdefault(name, {})[state] = {"s": round(statistics.median(times), 2), "stages": stages}
        line = ", ".join(f"{stage} {took:.2f}" for stage, took in stages.items())
        print(f"{name:>8}{state:>7}{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}   {line}")
    transfer = statistics.median(loading.send_s for loading in found["sent", "cold"])
    print(f"the transfer alone: {size / 1e6:.0f} MB in {transfer:.2f} s, {size / transfer / 1e6:.0f} MB/s")
    return {"weights": weights | {"transfer_s": round(transfer, 2)}}


if __name__ == "__main__":
    main()
