"""Three small tasks of lm-eval over texts of our own: multiple choice, rolling log-likelihood, writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence as Many
from pathlib import Path
from typing import Any

from server.catalogue.catalogue import DEMO_FOLDER

RUN_S = 600.0
LONGEST = 12
CHOICES = ["summer's day", "winter's night — 汉字 🙂", "thing"]
HELD_OUT = (DEMO_FOLDER / "held_out.txt").read_text(encoding="utf-8")
VERSE = HELD_OUT[:1200]
CONTEXTS = ["Shall I compare thee to a", "O, what a naïve", "The king is"]
TEXTS: dict[str, Many[str]] = {"choice": CONTEXTS, "rolling": [VERSE], "writing": CONTEXTS}


def tasks(choices: Many[str] = CHOICES, length: int = LONGEST) -> dict[str, dict[str, Any]]:
    """Return the settings of each task."""
    return {
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": list(choices),
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
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": length},
            "metric_list": [{"metric": "exact_match"}],
        },
    }


def write(folder: Path, made: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Many[str]]) -> None:
    """Write the tasks' settings, which YAML reads as JSON, and their texts."""
    for name, settings in made.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[name]), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        told = {"task": f"verse_{name}", **source, **settings}
        (folder / f"{name}.yaml").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def run(command: Many[str], folder: Path, names: Many[str] = tuple(TEXTS), **environment: str) -> dict[str, list[Any]]:
    """Return what lm-eval got as answers: for each task those of each text. `command` starts it, with its model."""
    out = folder / f"out-{time.monotonic_ns()}"
    listed = ",".join(f"verse_{name}" for name in names)
    words = [*command, "--tasks", listed, "--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet | environment
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode:
        sys.exit(f"lm-eval failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    answers = {}
    for name in names:
        (file,) = out.rglob(f"samples_verse_{name}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        answers[name] = [sample["filtered_resps"] for sample in sorted(samples, key=lambda one: int(one["doc_id"]))]
    return answers
