#!/usr/bin/env python3
"""Compare log-probabilities of tokens and words with those of minicons and surprisal, on the same folder at fp32.

    python -m scripts.judges.surprisals                  the embedded model
    python -m scripts.judges.surprisals --model gpt2     one that the daemon has on its disk

They have an environment of their own, which is made once (build/peers/judges, minutes). Exit code 1 where a value
differs by more than 1e-3. Two columns differ by what they mean (docs/scoring.md) and are told: minicons' own
correction, and surprisal's distribution without the end of text, which is put back first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

from protocol import Client, messages as m
from scripts.bench.arguments import add_place, find_model, start_daemon
from scripts.bench.peers_install import environment
from scripts.judges.tasks import HELD_OUT

HERE = Path(__file__).parent
CLOSE = 1e-3
RUN_S = 600.0
TEXTS = [
    "The old man the boat.",
    "Shall I compare thee to a summer's day? Thou art more lovely, and more temperate:",
    "O, what a naïve café — “quotes” 汉字 🙂 end.",
    "A single",
    "word",
    " ".join(HELD_OUT[:2500].split()),
]
HEADS = ("text", "words", "tokens", "surprisal", "plain words", "corrected words", "minicons' own correction")


def measured(python: str, folder: Path) -> list[dict[str, Any]]:
    """Return what the others make of the texts."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / "measures.py"), str(folder)]
    done = subprocess.run(
        command, input=json.dumps(TEXTS), env=env, capture_output=True, text=True, timeout=RUN_S, check=False
    )
    if done.returncode:
        sys.exit(f"measures.py failed:\n{done.stderr[-2000:]}")
    values: list[dict[str, Any]] = json.loads(done.stdout)
    return values


def most(ours: Many[float | None], theirs: Many[float]) -> float:
    """Return the largest difference of two lists of the same things."""
    return max(abs((one or 0.0) - other) for one, other in zip(ours, theirs, strict=True))


def compared(told: m.Scored, text: str, values: dict[str, Any]) -> list[float]:
    """Return the largest differences of tokens and words, in the order of HEADS."""
    assert told.words is not None  # they were asked for
    logprobs = [value or 0.0 for value in told.logprobs]
    with_end = [
        value + math.log1p(-math.exp(end)) for value, end in zip(values["surprisal"], values["ends"], strict=True)
    ]
    firsts = [*told.words.tokens, len(logprobs)]
    plain = [sum(logprobs[first:last]) for first, last in itertools.pairwise(firsts)]
    if told.words.texts != text.split() or told.words.texts != [word for word, _ in values["words"]]:
        sys.exit(f"other words in {text!r:.60}: {told.words.texts}")
    return [
        most(logprobs, values["tokens"]),
        most(logprobs, with_end),
        most(plain, [value for _, value in values["words"]]),
        most(told.words.logprobs, values["corrected"]),
        most(told.words.logprobs, [value for _, value in values["own correction"]]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="default: %(default)s")
    add_place(parser)
    args = parser.parse_args()
    model = find_model(args.model, "", args.models_dir)
    python = environment("judges", str(HERE / "requirements.txt"))
    assert model.folder is not None  # it was found
    others = measured(python, model.folder)
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    worst = 0.0
    with start_daemon(args) as daemon, Client(daemon.endpoint) as client:
        client.load(model.name, precision="fp32")
        for text, values in zip(TEXTS, others, strict=True):
            told = client.score(text, model=model.name, precision="fp32", unit="word")
            found = compared(told, text, values)
            worst = max(worst, *found[:-1])
            shown = text if len(text) < 40 else f"{text[:37]}..."
            print(
                f"| {shown} | {len(text.split())} | " + " | ".join(f"{value:.1g}" for value in found) + " |", flush=True
            )
    print(f"largest difference: {worst:.1g}")
    return 1 if worst > CLOSE else 0


if __name__ == "__main__":
    sys.exit(main())
