"""Holders of keys who try to find out what others have sent, by how fast an answer comes."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

from protocol import Client, messages as m
from scripts.reliability.keyed import KeyedDaemon
from scripts.reliability.promise import Figures, Scale, promise

TOKENS = 200
SIGMAS = 4


@promise
def keys_apart(scale: Scale, folder: Path) -> Figures:
    """Whoever guesses the beginning of another key's prompt learns it neither by `reused_tokens` nor by the time of the
    first token, though its own prompts come back faster.
    """
    count = scale.of(12, 60, 200)
    draw = random.Random(21)
    times: dict[str, list[float]] = {"guessed": [], "other": [], "own": []}
    with KeyedDaemon(folder, ("owner", "guest"), "--preload=demo") as daemon:
        with daemon.client("owner") as first, daemon.client("guest") as second:
            for _ in range(count):
                secret, other = _prompt(draw), _prompt(draw)
                _ask(first, secret)
                for prompt in draw.sample((secret, other), 2):
                    result = _ask(second, prompt)
                    assert result.ledger.reused_tokens == 0, "another's prompt was reused"
                    times["guessed" if prompt is secret else "other"].append(result.ledger.first_token_ms)
                times["own"].append(_ask(first, secret).ledger.first_token_ms)
    chance, own = _faster(times["guessed"], times["other"]), _faster(times["own"], times["other"])
    spread = ((2 * count + 1) / (12 * count * count)) ** 0.5
    assert abs(chance - 0.5) < SIGMAS * spread, f"a right guess is faster than a wrong one in {chance:.0%} of all pairs"
    assert own > 0.75, f"what a key has sent itself is faster in {own:.0%} only: there is nothing to find out here"
    medians = {f"{name}_ms": round(statistics.median(found), 2) for name, found in times.items()}
    return {**medians, "guesses": count, "guessed_faster_share": round(chance, 3), "own_faster_share": round(own, 3)}


def _prompt(draw: random.Random) -> list[int]:
    return [draw.randrange(4000) for _ in range(TOKENS)]


def _ask(client: Client, prompt: list[int]) -> m.Generated:
    return client.generate(prompt_ids=prompt, max_new_tokens=1)


def _faster(some: list[float], others: list[float]) -> float:
    """Return the share of all pairs in which the first is less (Mann and Whitney); those that are alike count half."""
    pairs = [(x < y) + 0.5 * (x == y) for x in some for y in others]
    return sum(pairs) / len(pairs)
