"""Keys that ask for as much as they may, while another has something short."""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from protocol import Client
from protocol.errors import Closed, DeadlineExceeded
from scripts.make_model import ensure_model
from scripts.reliability.asking import until
from scripts.reliability.keyed import KeyedDaemon
from scripts.reliability.promise import Figures, Scale, promise

SCORED, STRIDE = 50_000, 64
"""Tokens of the text that is scored again and again, and its stride."""
PROMPT = 1000
"""Tokens of the prompts that are sent without a pause."""
SHORT, NEW = 8, 5
"""Tokens of a short prompt, and those written after it."""
VOCABULARY = 50_257
P95_S = 0.15


@promise
def turns(scale: Scale, folder: Path) -> Figures:
    """While one key has 50,000 tokens scored at a stride of 64 and another sends prompts of 1,000 tokens without a
    pause, a third's texts of five tokens begin within 150 ms (95th percentile), on gpt2's shapes at int8.
    """
    requests, draw = scale.of(20, 60, 600), random.Random(4)
    name = ensure_model("gpt2", folder / "models")
    with (
        KeyedDaemon(folder, ("short", "scores", "prompts"), f"--preload={name}/native/int8") as daemon,
        daemon.client("short") as client,
        daemon.client("scores") as scores,
        daemon.client("prompts") as prompts,
    ):
        _first_token_s(client, draw)  # warms up
        alone = [_first_token_s(client, draw) for _ in range(requests // 4)]
        scored = _tokens(random.Random(5), SCORED)
        prompted = random.Random(6)
        others = [
            _again_and_again(lambda: scores.score(ids=scored, stride=STRIDE, timeout=10)),
            _again_and_again(lambda: prompts.generate(prompt_ids=_tokens(prompted, PROMPT), max_new_tokens=1)),
        ]
        until(lambda: sum(worker.running for worker in client.ping().workers) == 2, 20, "both are at work")
        beside = [_first_token_s(client, draw) for _ in range(requests)]
        assert all(thread.is_alive() for thread in others), "one of the others has ended"
        scores.close()
        prompts.close()
        for thread in others:
            thread.join()
        p50, p95 = statistics.median(beside), statistics.quantiles(beside, n=20, method="inclusive")[-1]
        assert p95 < P95_S, f"first tokens after {p50 * 1000:.0f} ms (median) and {p95 * 1000:.0f} ms (95th percentile)"
    return {
        "requests": requests,
        "alone_ms": round(statistics.median(alone) * 1000, 1),
        "p50_ms": round(p50 * 1000, 1),
        "p95_ms": round(p95 * 1000, 1),
        "longest_ms": round(max(beside) * 1000, 1),
    }


def _again_and_again(call: Callable[[], object]) -> threading.Thread:
    """Make a call again and again, in a thread, until its client is closed."""

    def run() -> None:
        with contextlib.suppress(Closed):
            while True:
                with contextlib.suppress(DeadlineExceeded):
                    call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def _first_token_s(client: Client, draw: random.Random) -> float:
    """Write a short text; return the seconds until its first token came."""
    began = time.perf_counter()
    with client.stream(prompt_ids=_tokens(draw, SHORT), max_new_tokens=NEW, ignore_eos=True, speculate=0) as stream:
        next(stream)
        first = time.perf_counter() - began
        for _ in stream:
            pass
    return first
