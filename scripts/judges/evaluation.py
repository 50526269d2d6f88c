#!/usr/bin/env python3
"""Have lm-eval judge a model by its own `hf` and by our door, and compare what both find, and how long they take.

    python -m scripts.judges.evaluation                             the embedded model at fp32: values
    python -m scripts.judges.evaluation --like gpt2 --timed 3       gpt2's shapes at int8 beside hf: seconds, in turns

Three tasks are written by this script: multiple choice, rolling log-likelihood, writing. lm-eval has an environment of
its own, which is made once (build/peers/judges, minutes). Exit code 1 where an answer of --precision fp32 differs:
a log-likelihood by more than 1e-3, a greedy flag or a text at all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import Client
from scripts.bench.arguments import add_place, find_model, start_daemon
from scripts.bench.peers_install import environment
from scripts.daemon import ROOT, Daemon
from scripts.judges import tasks
from server.catalogue.architecture import PUBLISHED

HERE = Path(__file__).parent
CLOSE = 1e-3
RUN_S = 1200.0
TEXTS = 4
"""Questions of four choices, and texts, that are timed in each turn: others each time, since the daemon remembers."""
CHARACTERS = {"context": 1600, "choice": 40, "rolling": 3500}
"""Lengths of what is asked: of verse, some three for a token."""


def values(python: str, daemon: Daemon, folder: Path, given: str) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return what lm-eval's `hf` found, and what our door found."""
    with tempfile.TemporaryDirectory(prefix="gpt2d-evaluation-") as scratch:
        tasks.write(Path(scratch), tasks.tasks(), tasks.TEXTS)
        run = ["run", "--model"]
        plain = [*run, "hf", "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
        ours = [*run, "gpt2d", "--model_args", f"endpoint={daemon.endpoint},{given}"]
        theirs = tasks.run([python, "-m", "lm_eval", *plain], Path(scratch))
        found = tasks.run([python, "-m", "client.doors.lm_eval", *ours], Path(scratch), PYTHONPATH=str(ROOT))
    return theirs, found


def differences(theirs: dict[str, list[Any]], ours: dict[str, list[Any]]) -> Iterator[str]:
    """Yield a sentence for each answer that is another."""
    for i, (want, got) in enumerate(zip(theirs["choice"], ours["choice"], strict=True)):
        for (value, greedy), (our_value, our_greedy) in zip(want, got, strict=True):
            if abs(float(value) - float(our_value)) > CLOSE or greedy != our_greedy:
                yield f"choice {i}: {our_value} {our_greedy}, and hf {value} {greedy}"
    for i, ((want,), (got,)) in enumerate(zip(theirs["rolling"], ours["rolling"], strict=True)):
        if abs(float(want) - float(got)) > CLOSE:
            yield f"rolling {i}: {got}, and hf {want}"
    for i, (texts, told) in enumerate(zip(theirs["writing"], ours["writing"], strict=True)):
        if texts != told:
            yield f"writing {i}: {told}, and hf {texts}"


def questions(turn: int) -> dict[str, list[list[str]]]:
    """Return what is asked in a turn: contexts with four choices each, and texts of about a context's length."""
    text, choice = tasks.HELD_OUT * 2, CHARACTERS["choice"]
    begins = [53 * (turn * TEXTS + i) for i in range(TEXTS)]
    contexts = [text[at : at + CHARACTERS["context"]].rstrip() for at in begins]
    choices = [f" {text[at : at + choice]}".rstrip() for at in range(0, 4 * choice, choice)]
    return {
        "loglikelihood": [[context, one] for context in contexts for one in choices],
        "loglikelihood_rolling": [[text[at + 7 : at + 7 + CHARACTERS["rolling"]]] for at in begins],
    }


def timed(python: str, daemon: Daemon, folder: Path, which: dict[str, str], turns: int) -> Iterator[str]:
    """Yield a line for each kind of question: seconds of both, in turns."""
    order = {
        "folder": str(folder),
        "endpoint": daemon.endpoint,
        "which": which,
        "questions": [questions(turn) for turn in range(turns + 1)],
        "batch": 1,
    }
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(HERE / "turns.py")],
        input=json.dumps(order),
        env=env,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the timing failed:\n{done.stderr[-2000:]}")
    for kind, found in json.loads(done.stdout).items():
        hf, ours = found["hf"], found["gpt2d"]
        ratio = statistics.median(one / other for one, other in zip(hf, ours, strict=True))
        yield (
            f"{kind}: hf {statistics.median(hf):.2f} s, gpt2d {statistics.median(ours):.2f} s, "
            f"{ratio:.1f} times as fast (median of {turns} turns)"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="demo", help="a model of the daemon, or a folder of --models-dir (demo)")
    which.add_argument("--like", choices=list(PUBLISHED), help="random weights of these shapes")
    parser.add_argument("--precision", help="default: fp32, with --timed int8")
    parser.add_argument("--timed", type=int, metavar="TURNS", default=0, help="time so many turns beside hf instead")
    add_place(parser)
    args = parser.parse_args()
    model = find_model(None if args.like else args.model, args.like, args.models_dir)
    precision = args.precision or ("int8" if args.timed else "fp32")
    python = environment("judges", str(HERE / "requirements.txt"))
    with start_daemon(args) as daemon, Client(daemon.endpoint) as client:
        loaded = client.load(model.name, precision=precision)
        asked = {"model": loaded.model, "engine": loaded.engine, "precision": loaded.precision}
        assert model.folder is not None  # it was found
        if args.timed:
            for line in timed(python, daemon, model.folder, asked, args.timed):
                print(line, flush=True)
            return 0
        theirs, ours = values(
            python, daemon, model.folder, ",".join(f"{name}={value}" for name, value in asked.items())
        )
    found = list(differences(theirs, ours))
    count = sum(len(one) for task in ours.values() for one in task)
    print("\n".join(found) or f"{count} answers are those of lm-eval's hf")
    return 1 if found and precision == "fp32" else 0


if __name__ == "__main__":
    sys.exit(main())
