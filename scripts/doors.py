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
import json
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
from server.catalogue.catalogue import DEMO_FOLDER

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.4.13"
ENVIRONMENT = ROOT / "build" / "lm-eval"
INSTALL_S, RUN_S = 1200.0, 600.0
CLOSE = 1e-6
LONGEST = 12
CHOICES = ["summer's day", "winter's night — 汉字 🙂", "thing"]
VERSE = (DEMO_FOLDER / "held_out.txt").read_text(encoding="utf-8")[:1200]
CONTEXTS = ["Shall I compare thee to a", "O, what a naïve", "The king is"]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": LONGEST},
        "metric_list": [{"metric": "exact_match"}],
    },
}
TEXTS = {"choice": CONTEXTS, "rolling": [VERSE], "writing": CONTEXTS}


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


def write_tasks(folder: Path) -> None:
    """Write the tasks' settings, which YAML reads as JSON, and their texts."""
    for name, settings in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[name]), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        told = {"task": f"verse_{name}"} | source | settings
        (folder / f"{name}.yaml").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def run(commands: Path, place: str, model: str, folder: Path) -> dict[str, list[Any]]:
    """Return what lm-eval got as answers: for each task those of each text."""
    given = f"base_url=http://{place}/v1/completions,model={model},max_length=1024,num_concurrent=2"
    tasks = ",".join(f"verse_{name}" for name in TASKS)
    command = [str(commands / "lm-eval"), "run", "--model", "local-completions", "--model_args", given]
    command += ["--tasks", tasks, "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode:
        sys.exit(f"lm-eval failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    answers = {}
    for name in TASKS:
        (file,) = (folder / "out").rglob(f"samples_verse_{name}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        answers[name] = [sample["filtered_resps"] for sample in sorted(samples, key=lambda one: int(one["doc_id"]))]
    return answers


def differences(client: Client, answers: dict[str, list[Any]], which: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each answer that the protocol does not give."""
    for context, found in zip(CONTEXTS, answers["choice"], strict=True):
        before = len(client.tokenize(context, **which).ids)
        for choice, (told, greedy) in zip(CHOICES, found, strict=True):
            scored = client.score(f"{context} {choice}", top=1, **which)
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
        write_tasks(folder)
        answers = run(commands, place, "/".join(which.values()), folder)
        found = list(differences(client, answers, which))
    count = sum(len(one) for task in answers.values() for one in task)
    print("\n".join(found) or f"{count} answers of lm-eval {VERSION} are those of the protocol")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
