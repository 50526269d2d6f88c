#!/usr/bin/env python3
"""An hour of everything at once: what grows, what leaks, what slows down.

    python -m scripts.soak                        one hour, the plot into docs/images/soak.svg
    python -m scripts.soak --minutes 20 --out /tmp/soak.svg

A real daemon with the embedded model serves writers that stream, clients that come and go, cancellations, searches,
scores and long prompts, while each minute a second model is loaded and unloaded. At the end of each minute, always in
the same phase, the resident memory of the whole process tree, its threads and descriptors are read; a probe asks for a
few tokens five times a second. The promise: after minute 10 memory grows by less than 1 %, no thread or descriptor
stays behind, and the 99th percentile of the probe in the last ten minutes is at most 1.5 times that of the first ten.
The last line is one JSON object; the exit code is 1 if the promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from protocol import Client, Gpt2dError
from protocol.errors import Busy
from scripts.daemon import Daemon
from scripts.reliability.asking import NATIVE as MAIN, ONNX as SECOND

Work = Callable[[Client, random.Random], None]
PROBE_S, WRITERS = 0.2, 3
PROMPT = "When in the chronicle of wasted time\nI see descriptions of the fairest wights,\n"


class Load:
    """Everything that goes on, in threads, until `over`. Failures are counted by their class; a Busy is not one."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.over = threading.Event()
        self.done = 0
        self.failed: dict[str, int] = {}
        self.probes: list[tuple[float, float]] = []
        """The monotonic time of each probe, and the seconds that it took."""
        works: list[Work] = [*[self._write] * WRITERS, self._come_and_go, self._probe]
        self._threads = [threading.Thread(target=self._keep_on, args=(work, i)) for i, work in enumerate(works)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)

    def _keep_on(self, work: Work, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311 - not a secret
        while not self.over.is_set():
            try:
                with Client(self._endpoint) as client:
                    work(client, rng)
            except Busy:
                pass
            except Gpt2dError as e:
                self.failed[type(e).__name__] = self.failed.get(type(e).__name__, 0) + 1
                self.over.wait(0.5)

    def _write(self, client: Client, rng: random.Random) -> None:
        """Ask for streams, cancel some, and for searches, scores and long prompts, with pauses as people make them."""
        text = PROMPT
        for _ in range(50):
            if self.over.is_set():
                return
            kind = rng.random()
            if kind < 0.6:
                stream = client.stream(text[-2000:], max_new_tokens=60, truncate="left", **MAIN)
                for i, piece in enumerate(stream):
                    text += piece.text
                    if kind < 0.1 and i > 3:
                        stream.cancel()
            elif kind < 0.7:
                client.generate(
                    PROMPT, strategy=rng.choice(["beam", "contrastive", "diverse_beam"]), max_new_tokens=12, **MAIN
                )
            elif kind < 0.8:
                client.score(text[-3000:] or PROMPT, **MAIN)
            elif kind < 0.9:
                client.generate(PROMPT * rng.randint(1, 12), n=3, max_new_tokens=20, truncate="left", **MAIN)
            else:
                client.tokenize(text[-500:] or PROMPT, **MAIN)
            self.done += 1
            self.over.wait(rng.random() * 0.2)

    def _come_and_go(self, client: Client, rng: random.Random) -> None:
        """Ask something and go, in the middle of it or after."""
        client.models()
        stream = client.stream(PROMPT, max_new_tokens=40, **MAIN)
        for _ in range(rng.randint(0, 5)):
            next(stream, None)
        self.done += 1
        self.over.wait(0.3)

    def _probe(self, client: Client, rng: random.Random) -> None:  # noqa: ARG002 - each takes one
        while not self.over.is_set():
            began = time.monotonic()
            client.generate("Shall I compare thee", max_new_tokens=4, seed=1, **MAIN)
            self.probes.append((began, time.monotonic() - began))
            self.over.wait(max(0.0, PROBE_S - (time.monotonic() - began)))


def measure(daemon: Daemon) -> dict[str, float]:
    """Measure the daemon and all its workers together."""
    tree = [psutil.Process(daemon.process.pid), *daemon.workers()]
    return {
        "rss_mb": round(sum(p.memory_info().rss for p in tree) / 1e6, 2),
        "threads": sum(p.num_threads() for p in tree),
        "descriptors": sum(p.num_fds() for p in tree),
        "processes": len(tree),
    }


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else 0.0


def draw(minutes: list[dict[str, float]], file: Path) -> None:
    """Draw memory and the probe's 99th percentile over the minutes, as an SVG."""
    width, height = 760, 200
    left = 60
    view = f'viewBox="0 0 {width} {2 * height + 40}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, (name, title) in enumerate(
        (("rss_mb", "resident memory of all processes, MB"), ("p99_ms", "four tokens, 99th percentile, ms"))
    ):
        values = [minute[name] for minute in minutes]
        top, base = max(values) * 1.1 or 1, (row + 1) * height
        points = " ".join(
            f"{left + (width - left - 20) * i / max(1, len(values) - 1):.1f},{base - (height - 50) * v / top:.1f}"
            for i, v in enumerate(values)
        )
        parts.append(f'<text x="{left}" y="{base - height + 30}">{title}</text>')
        parts.append(f'<text x="8" y="{base - height + 55}">{top:.0f}</text><text x="8" y="{base}">0</text>')
        parts.append(f'<path d="M{left},{base - height + 45} V{base} H{width - 20}" fill="none" stroke="#888"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="#2a6fb0" stroke-width="2"/>')
    parts.append(f'<text x="{width - 120}" y="{2 * height + 25}">{len(minutes)} minutes</text></svg>')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/images/soak.svg"), help="default: %(default)s")
    args = parser.parse_args()
    if args.minutes < 2:
        parser.error(f"--minutes must be at least 2, got {args.minutes}")
    minutes: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), "--preload", "demo/native/int8")
        try:
            with Client(daemon.endpoint) as client:
                rows = client.load("demo", **MAIN).rows
                # Memory that is reserved becomes resident when it is first used. Unless every row is filled once
                # before, that would look like growth.
                client.generate(PROMPT * 30, n=rows, max_new_tokens=300, ignore_eos=True, truncate="left", **MAIN)
                load = Load(daemon.endpoint)
                began = time.monotonic()
                for minute in range(args.minutes):
                    client.load("demo", **SECOND)
                    for _ in range(5):
                        client.generate(PROMPT, max_new_tokens=30, **SECOND)
                    client.unload("demo", **SECOND)
                    load.over.wait(max(0.0, began + 60 * (minute + 1) - time.monotonic()))
                    since = began + 60 * minute
                    measured = measure(daemon) | {
                        "p99_ms": round(1000 * p99([took for at, took in load.probes if at >= since]), 1)
                    }
                    minutes.append(measured)
                    print(
                        f"minute {minute + 1}: {json.dumps(measured)}, {load.done} done, failed {load.failed}",
                        flush=True,
                    )
                load.stop()
        finally:
            daemon.stop()
    draw(minutes, args.out)
    settled = minutes[min(10, len(minutes) // 2) :]
    third = max(1, len(settled) // 3)
    first, last = (statistics.median(m["rss_mb"] for m in part) for part in (settled[:third], settled[-third:]))
    span = min(10, len(minutes) // 2)
    early, late = (statistics.median(m["p99_ms"] for m in part) for part in (minutes[:span], minutes[-span:]))
    figures = {
        "minutes": args.minutes,
        "done": load.done,
        "failed": load.failed,
        "rss_mb_first": first,
        "rss_mb_last": last,
        "rss_growth_pct": round(100 * (last / first - 1), 2),
        "threads": [settled[0]["threads"], settled[-1]["threads"]],
        "descriptors": [settled[0]["descriptors"], settled[-1]["descriptors"]],
        "p99_ms": [early, late],
    }
    kept = (
        figures["rss_growth_pct"] < 1
        and settled[-1]["threads"] <= settled[0]["threads"]
        and settled[-1]["descriptors"] <= settled[0]["descriptors"] + 2 * WRITERS  # clients that have just come or gone
        and late <= 1.5 * early
        and not load.failed
    )
    print(json.dumps({"kept": kept} | figures))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
