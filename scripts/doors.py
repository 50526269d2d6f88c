#!/usr/bin/env python3
"""Have lm-eval judge a model through the door for HTTP, and compare what it finds with the protocol.

    python -m scripts.doors                 the embedded model
    python -m scripts.doors --model gpt2    one that the daemon has on its disk

lm-eval's own `local-completions` runs three small tasks of verse that this script writes: multiple choice, rolling
log-likelihood, and writing. It has an environment of its own, which is made once (build/lm-eval, a minute). A daemon
and a door are started on free ports. Exit code 1 where a log-likelihood differs from the protocol's by more than 1e-6,
or a greedy choice or a text is another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import Client
from scripts.bench.door import opened
from scripts.daemon import Daemon
from scripts.judges import tasks
from scripts.judges.tasks import CHOICES, CONTEXTS, LONGEST, VERSE

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.4.13"
ENVIRONMENT = ROOT / "build" / "lm-eval"
INSTALL_S = 1200.0
CLOSE = 1e-6
CONTEXT = 1024
"""Of GPT-2: lm-eval takes 2,048 where nothing is said."""


def judge() -> Path:
    """Return the folder of lm-eval's commands, which is made where it is missing."""
    commands = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    done = ENVIRONMENT / f"made-{VERSION}"
    if not done.exists():
        print(f"making {ENVIRONMENT} with lm-eval {VERSION} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True, timeout=INSTALL_S)
        pip = [str(commands / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"lm-eval[api]=={VERSION}"], check=True, timeout=INSTALL_S, stdout=sys.stderr)
        done.touch()
    return commands


def run(commands: Path, place: str, model: str, folder: Path) -> dict[str, list[Any]]:
    """Return what lm-eval got as answers through the door: for each task those of each text."""
    given = f"base_url=http://{place}/v1/completions,model={model},max_length={CONTEXT},num_concurrent=2"
    command = [str(commands / "lm-eval"), "run", "--model", "local-completions", "--model_args", given]
    return tasks.run(command, folder)


def differences(client: Client, answers: dict[str, list[Any]], which: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each answer that the protocol does not give."""
    for context, found in zip(CONTEXTS, answers["choice"], strict=True):
        before = len(client.tokenize(context, **which).ids)
        for choice, (told, greedy) in zip(CHOICES, found, strict=True):
            scored = client.score(f"{context} {choice}", bos="never", top=1, **which)
            want = sum(value or 0.0 for value in scored.logprobs[before:])
            places = range(before, len(scored.ids))
            best = all(scored.top[i][0].logprob == scored.logprobs[i] for i in places)
            if abs(float(told) - want) > CLOSE or greedy != str(best):
                yield f"{context!r} {choice!r}: {told} {greedy} instead of {want} {best}"
    (told,) = answers["rolling"][0]
    begun = client.tokenize("<|endoftext|>", **which).ids + client.tokenize(VERSE, **which).ids
    want = sum(value or 0.0 for value in client.score(ids=begun, **which).logprobs)
    if abs(float(told) - want) > CLOSE * len(begun):
        yield f"rolling: {told} instead of {want}"
    for context, (text,) in zip(CONTEXTS, answers["writing"], strict=True):
        stop = ["\n", "<|endoftext|>"]
        plain = client.generate(context, strategy="greedy", max_new_tokens=LONGEST, stop=stop, **which).text
        if text != plain:
            yield f"{context!r}: wrote {text!r} instead of {plain!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="default: %(default)s")
    args = parser.parse_args()
    commands = judge()
    with (
        tempfile.TemporaryDirectory(prefix="gpt2d-doors-") as scratch,
        Daemon(None) as daemon,
        Client(daemon.endpoint) as client,
        opened(daemon.endpoint) as place,
    ):
        loaded = client.load(args.model)
        which: dict[str, Any] = {"model": loaded.model, "engine": loaded.engine, "precision": loaded.precision}
        folder = Path(scratch)
        tasks.write(folder, tasks.tasks(), tasks.TEXTS)
        answers = run(commands, place, "/".join(which.values()), folder)
        found = list(differences(client, answers, which))
    count = sum(len(one) for task in answers.values() for one in task)
    print("\n".join(found) or f"{count} answers of lm-eval {VERSION} are those of the protocol")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
