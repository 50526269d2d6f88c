"""Time lm-eval's questions to its own `hf` and to our door, in turns. Runs in an environment that has lm-eval.

python turns.py < order > seconds: an order is a JSON object (evaluation.py), seconds are lists of those of each run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence as Many
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from client.doors.lm_eval.model import DaemonLM


def questions(kind: str, arguments: Many[Many[Any]]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=tuple(given), idx=i) for i, given in enumerate(arguments)]


def seconds(ask: Callable[..., object], asked: list[Any]) -> float:
    begun = time.perf_counter()
    ask(asked, disable_tqdm=True)
    return time.perf_counter() - begun


def main() -> None:
    order = json.load(sys.stdin)
    models = {
        "hf": HFLM(pretrained=order["folder"], device="cpu", dtype="float32", batch_size=order["batch"]),
        "gpt2d": DaemonLM(endpoint=order["endpoint"], **order["which"]),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for turn, asked in enumerate(order["questions"]):
        for kind, arguments in asked.items():
            some = questions(kind, arguments if turn else arguments[:1])  # a warm-up
            for name, model in models.items():
                taken = seconds(getattr(model, kind), some)
                if turn:
                    found.setdefault(kind, {}).setdefault(name, []).append(taken)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
