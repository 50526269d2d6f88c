"""Time that a model takes to reach a node: the part `weights` of scripts.bench.cluster."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import Client, messages as m
from scripts.bench.cluster_nodes import ray_cluster, ray_node
from scripts.bench.cluster_peers import Tally
from scripts.bench.peers import alone
from scripts.daemon import Daemon
from scripts.make_model import ensure_model

SETTLE_S = 3.0
"""Time after an unload until the cluster knows that its node is free."""


@dataclass
class Loading:
    """Times of a load: when each of its stages was first reported (monotonic)."""

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
        """Time that each stage took, up to the next; "launch" is what comes before the first."""
        times = {"launch": self.began, **self.stages}
        return {
            stage: after - at
            for (stage, at), after in zip(times.items(), [*self.stages.values(), self.ended], strict=True)
        }

    @property
    def send_s(self) -> float:
        """Time that the transfer of all files takes, by the pace of its middle: its ends are not reported."""
        if len(self.sent) < 2:
            return 0.0
        first, last = self.sent[0], self.sent[-1]
        total = first[2]
        return (last[0] - first[0]) * total / (last[1] - first[1])


def empty(folder: Path) -> None:
    """Remove what is in a folder. The folder itself stays: it is mounted on a node."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def measure_weights(args: argparse.Namespace, folder: Path, _: Tally) -> dict[str, Any]:
    model = ensure_model("gpt2", args.models_dir)
    size = sum(file.stat().st_size for file in (args.models_dir / model).iterdir())
    found: dict[tuple[str, str], list[Loading]] = {
        (name, state): [] for name in ("local", "shared", "sent") for state in ("cold", "warm")
    }
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(0))
        clients: dict[str, Client] = {}
        caches: dict[str, list[Path]] = {}
        for name in dict.fromkeys(name for name, _ in found):
            more, caches[name] = list[str](), [folder / name / "cache"]
            if name != "local":
                covered = args.models_dir if name == "sent" else None
                caches[name].append(
                    stack.enter_context(ray_node(cluster, name, args.threads, caches[name][0], covered))
                )
                more = ["--cluster", str(cluster.address), "--cluster-resources", f"{name}=1"]
            arguments = ("--models-dir", str(args.models_dir), "--threads", str(args.threads), *more)
            daemon = Daemon(folder / name, *arguments)
            stack.callback(daemon.stop)
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
        stages = {
            stage: round(statistics.median(loading.parts.get(stage, 0.0) for loading in loadings), 2)
            for stage in loadings[0].parts
        }
        weights.setdefault(name, {})[state] = {"s": round(statistics.median(times), 2), "stages": stages}
        line = ", ".join(f"{stage} {took:.2f}" for stage, took in stages.items())
        print(f"{name:>8}{state:>7}{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}   {line}")
    transfer = statistics.median(loading.send_s for loading in found["sent", "cold"])
    print(f"the transfer alone: {size / 1e6:.0f} MB in {transfer:.2f} s, {size / transfer / 1e6:.0f} MB/s")
    return {"weights": weights | {"transfer_s": round(transfer, 2)}}
