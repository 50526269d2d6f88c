#!/usr/bin/env python3
"""Measure what more nodes bring, how much one gateway carries, how long a model takes to reach a node.

    python -m scripts.bench.cluster                     nodes and gateway, in about seven minutes; --quick: in two
    python -m scripts.bench.cluster --only gateway      some of nodes,gateway,weights
    python -m scripts.bench.cluster --only weights      loads of a gpt2-sized model (Linux; as root, for its mounts)

nodes    A Ray cluster of processes on this machine (ray.cluster_utils), with a replica on each node whose engine waits
         --delay-ms a step instead of computing: measured is the way through gateway, cluster and workers, and not how
         many cores this machine has. More streams than rows are open all the time. Aim: four nodes give 3.6 times one.
gateway  Workers without an engine write as fast as the gateway takes it, each token in a message of its own. Real
         workers join what they write within 20 ms, so that is the worst case; `pieces` is the same with eight tokens in
         each message. Clients and workers share the cores with the gateway, so `cpu_us` is what a token costs the
         gateway's process alone, and `busy` how much of a core its thread took. Aims: 2,000 tokens a second to one
         peer, 10,000 in all.
weights  A model's load, built for the first time (cold) and as it was built before (warm): on this machine without a
         cluster, on a node that has the same folder, and on a node that does not see it (a mount covers it there), to
         which Ray's object store brings it. Nodes have build caches of their own. The files are in this machine's page
         cache, and no network is between.

Turns alternate (A B A B), figures are medians, and each text is compared with the one that its engine must write. The
last line is one JSON object; `missed` has the aims that were not reached.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from protocol import Client
from scripts.bench.cluster_nodes import ray_cluster
from scripts.bench.cluster_peers import END_S, Peers, Tally
from scripts.bench.cluster_weights import measure_weights
from scripts.bench.peers import alone
from scripts.daemon import Daemon
from scripts.reliability.asking import until
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.flood import FloodDaemon
from server.config import default_models_dir, default_threads
from server.gateway.status import cpu

PARTS = ("nodes", "gateway", "weights")
SCALING = 3.6
PEER_TOK_S = 2000
GATEWAY_TOK_S = 10_000
SPARE = 1.5
"""Streams for each row, so that one which falls free is taken at once."""
TEXT_TOKENS = 128
WARM_S = 4.0
"""Time before the measurement."""
FLOOD_STREAMS = 8
"""Streams of each peer of the gateway."""
FLOOD_TOKENS = 128
FLOOD_WARM_S = 1.0
"""Time before the measurement of the gateway."""
PIECES = (1, 8)
"""Tokens in a message; eight is what a worker joins of a stream of 400 tokens a second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="A,B", default="nodes,gateway", help=f"of: {', '.join(PARTS)} (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="two turns, and short ones")
    parser.add_argument("--runs", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4], help="how many at a time (default: 1 4)")
    parser.add_argument(
        "--delay-ms", type=float, default=50.0, help="what a step of the waiting engine takes (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=8, help="sequences in each of its steps (default: %(default)s)")
    parser.add_argument(
        "--peers", type=int, default=4, help="for the gateway's sum, in two processes (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="that write to them (default: %(default)s)")
    parser.add_argument(
        "--models-dir", type=Path, default=default_models_dir(), help="for weights (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="of a worker, for weights (default: %(default)s)"
    )
    args = parser.parse_args()
    parts = set(args.only.split(","))
    if unknown := parts - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; the parts are: {', '.join(PARTS)}")
    if args.quick:
        args.runs, args.seconds = 2, min(args.seconds, 4.0)
    if "weights" in parts and (sys.platform != "linux" or os.geteuid() != 0):
        sys.exit("weights covers folders with mounts, for which it must be root on Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the ends of all that was started
    os.environ["RAY_DEDUP_LOGS"] = "0"
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
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    machine = f"{cpu()}, {os.cpu_count()} cores, {memory} GB, {system}"
    print(
        json.dumps(
            {
                **figures,
                "texts": tally.texts,
                "wrong": len(tally.wrong),
                "machine": machine,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


def missed(figures: dict[str, Any]) -> list[str]:
    aims = (
        ("scaling", SCALING, "times one node"),
        ("peer_tok_s", PEER_TOK_S, "tokens a second"),
        ("gateway_tok_s", GATEWAY_TOK_S, "tokens a second"),
    )
    return [f"{name} {figures[name]:g} of {aim:g} {unit}" for name, aim, unit in aims if figures.get(name, aim) < aim]


# Nodes


def replicas_are(client: Client, count: int) -> bool:
    return len(client.ping().workers) == count


def measure_nodes(args: argparse.Namespace, folder: Path, tally: Tally) -> dict[str, Any]:
    found: dict[int, list[float]] = {count: [] for count in args.nodes}
    behaviour = Behaviour(delay_ms=args.delay_ms, rows=args.rows)
    with ray_cluster(max(args.nodes)) as cluster, ExitStack() as stack:
        arguments = ("--cluster", str(cluster.address), "--threads", "1", "--max-open-per-peer", "4096")
        daemon = FakeDaemon(folder, behaviour, *arguments)
        stack.callback(daemon.stop)
        client = stack.enter_context(Client(daemon.endpoint))
        for turn in range(args.runs):
            for count in args.nodes:
                client.load("demo", replicas=count)
                until(partial(replicas_are, client, count), END_S, f"{count} replicas")
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
    """Work of a gateway in a while. `cpu_us` is its process's time for a token, `busy` its thread's share of a core."""

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
    after = used()
    took = after[0] - before[0]
    whole = after[1] - before[1]  # the process's time
    own = after[2] - before[2]  # its main thread's
    return Window(tok_s, whole / took / max(tok_s, 1.0) * 1e6, own / took)


def measure_gateway(args: argparse.Namespace, folder: Path, tally: Tally) -> dict[str, Any]:
    found: dict[tuple[int, str], list[Window]] = {(piece, name): [] for piece in PIECES for name in ("peer", "all")}
    with ExitStack() as stack:
        daemons: dict[int, Daemon] = {}
        for piece in PIECES:
            daemons[piece] = daemon = FloodDaemon(folder / str(piece), piece)
            stack.callback(daemon.stop)
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
        medians = (statistics.median(getattr(w, f) for w in windows) for f in ("tok_s", "cpu_us", "busy"))
        summary[piece, name] = median = Window(*medians)
        print(
            f"{piece:16}{1 if name == 'peer' else args.peers:7}{median.tok_s:10.0f}{min(rates):8.0f}{max(rates):8.0f}"
            f"{median.cpu_us:8.1f}{median.busy:7.0%}"
        )
    one, several = summary[PIECES[0], "peer"], summary[PIECES[0], "all"]
    return {
        "peer_tok_s": round(one.tok_s), "gateway_tok_s": round(several.tok_s),
        "cpu_us": {"peer": round(one.cpu_us, 1), "all": round(several.cpu_us, 1)},
        "busy": {"peer": round(one.busy, 2), "all": round(several.busy, 2)},
        "pieces": {
            "tokens": PIECES[1],
            "peer_tok_s": round(summary[PIECES[1], "peer"].tok_s),
            "gateway_tok_s": round(summary[PIECES[1], "all"].tok_s),
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
