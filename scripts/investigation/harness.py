"""Parts that the investigation's scripts share: arguments, trials measured in turns, rows that are kept, intervals.

A trial is one row of a table: something that can be asked for one run at a time. Trials that are compared are all
started, warmed up, and asked in turns (A B C A B C), so that a noisy machine is noisy for each; every one works in a
process of its own. What was measured is appended to a file of JSON lines, a line for each trial; a script that is
started again measures what is not there yet. Each trial also gets what the machine allowed in the turns in which it was
asked: memory and products, measured between them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from protocol.errors import Gpt2dError
from scripts.bench.arguments import add_place
from scripts.bench.engine import ROOT
from scripts.bench.machine import Limits, can_measure, processor
from scripts.make_model import ensure_model
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO, Catalogue, Model
from server.config import default_hub_cache, default_threads

RESULTS = ROOT / "docs" / "results"
SIZES = (DEMO, "gpt2", "gpt2-medium", "gpt2-large")
RUNS = {DEMO: 30, "gpt2": 30, "gpt2-medium": 10, "gpt2-large": 5, "gpt2-xl": 3}
QUICK_RUNS = 3
WARMUPS = 2
RESAMPLES = 2000
BANDWIDTH_BYTES = 512 << 20
LIMIT_PASSES = 2
"""Passes of a measurement of the machine between two turns."""
PACKAGES = ("torch", "transformers", "onnxruntime", "optimum", "optimum-onnx", "numpy")

Key = dict[str, str | int | float | bool]
"""Model, method and whatever else distinguishes a trial from the others of its script."""


class Trial(Protocol):
    """Something that can be measured. Entering it (it is a context manager) starts its process and loads its model."""

    def run(self, seed: int) -> dict[str, float]:
        """Return what one run measured, each name with its unit (whole_ms, tok_s). Another seed: another prompt."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what is measured once: load_s, rss_mb, texts. Called after the last run."""
        ...


@dataclass(frozen=True)
class Plan:
    """Trial that may have to be measured. It is made, and its process started, only where it is not measured yet."""

    key: Key
    make: Callable[[], AbstractContextManager[Trial]]


@dataclass(frozen=True)
class Row:
    """Line of a results file."""

    script: str
    key: Key
    samples: dict[str, list[float]]
    """One value for each run, by name."""
    facts: dict[str, Any]
    date: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    problem: str = ""
    """Reason why it could not be measured; there are no samples then."""

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def interval(self, name: str) -> tuple[float, float]:
        return interval(self.samples[name])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median by the percentile bootstrap, with a fixed seed.

    Efron and Tibshirani, 1993, chapter 13.
    """
    data = np.asarray(values)  # [values]
    picks = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))  # [resamples, values]
    low, high = np.percentile(np.median(data[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass
class Results:
    """File of JSON lines. The last line of a trial counts."""

    script: str
    file: Path
    again: bool = False
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.rows = read(self.file)

    def find(self, key: Key) -> Row | None:
        """Return the row of a trial that was measured on this machine, with these versions."""
        here = processor(), versions()
        found = [
            r for r in self.rows if r.key == key and r.script == self.script and (r.machine["cpu"], r.versions) == here
        ]
        return found[-1] if found else None

    def add(self, key: Key, samples: dict[str, list[float]], facts: dict[str, Any], problem: str = "") -> Row:
        rounded = {name: [float(f"{v:.6g}") for v in values] for name, values in samples.items()}
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        row = Row(self.script, key, rounded, facts, date, command(self.script), machine(), versions(), problem)
        self.rows.append(row)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append(self.file, json.dumps(asdict(row), ensure_ascii=False))
        return row


def append(file: Path, line: str) -> None:
    """Append a line. One before it that was cut short, as on a full disk, takes nothing with it. Raises: OSError."""
    with file.open("a+b") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        between = b"" if stream.read(1) in {b"", b"\n"} else b"\n"
        stream.write(between + line.encode() + b"\n")


def read(file: Path) -> list[Row]:
    """Return the rows of a results file; a line that was cut short is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            print(f"{file}: an incomplete line is left out", file=sys.stderr)
    return rows


def measure(results: Results, plans: Sequence[Plan], runs: int, title: str) -> list[Row]:
    """Measure, in turns, what is not measured yet; return a row for each plan, in their order.

    A trial that cannot be started or fails gets a row that says why; the others go on.
    """
    rows = {i: row for i, plan in enumerate(plans) if not results.again and (row := results.find(plan.key))}
    todo = [i for i in range(len(plans)) if i not in rows]
    samples: dict[int, dict[str, list[float]]] = {i: {} for i in todo}
    limits = Limits(default_threads()) if todo and can_measure() else None
    allowed: dict[str, list[float]] = {}
    with (
        ExitStack() as stack,
        tqdm(total=len(todo) * (2 + WARMUPS + runs), desc=title, unit="run", disable=not todo) as bar,
    ):
        trials: dict[int, Trial] = {}
        problems: dict[int, str] = {}

        def attempt(i: int, do: Callable[[], object]) -> None:
            bar.set_postfix_str(" ".join(map(str, plans[i].key.values())), refresh=True)
            try:
                do()
            except (Exception, SystemExit) as e:  # noqa: BLE001 - whatever a runtime raises, the others are measured
                problems[i] = f"{type(e).__name__}: {e}"
                trials.pop(i, None)
                tqdm.write(f"{plans[i].key}: {problems[i]}", file=sys.stderr)
            bar.update()

        def start(i: int) -> None:
            trials[i] = stack.enter_context(plans[i].make())

        def run(i: int, seed: int, *, kept: bool) -> None:
            for name, value in trials[i].run(seed).items():
                if kept:
                    samples[i].setdefault(name, []).append(value)

        for i in todo:
            attempt(i, lambda: start(i))  # noqa: B023 - called at once
        for seed in range(-WARMUPS, runs):
            for i in list(trials):
                attempt(i, lambda: run(i, seed + WARMUPS, kept=seed >= 0))  # noqa: B023 - called at once
            for name, value in limits.measured(LIMIT_PASSES).items() if limits and seed >= 0 else ():
                allowed.setdefault(name, []).append(value)
        for i in todo:
            facts: dict[str, Any] = {name: round(statistics.median(of), 1) for name, of in allowed.items()}
            if i in trials:
                attempt(i, lambda: facts.update(trials[i].facts()))  # noqa: B023 - called at once
            rows[i] = results.add(plans[i].key, {} if i in problems else samples[i], facts, problems.get(i, ""))
    return [rows[i] for i in range(len(plans))]


# Arguments


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every script of the investigation has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--sizes",
        nargs="+",
        choices=[DEMO, *PUBLISHED],
        default=list(SIZES),
        metavar="SIZE",
        help=f"models to measure: {DEMO}, and random weights of these shapes where the real ones are not on the disk: "
        f"{', '.join(PUBLISHED)} (default: {' '.join(SIZES)})",
    )
    made.add_argument(
        "--quick", action="store_true", help=f"{DEMO} only, {QUICK_RUNS} runs: to see that everything works"
    )
    made.add_argument("--again", action="store_true", help="measure again what is in the results file already")
    made.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{name}.jsonl",
        metavar="FILE",
        help="where results are kept (default: %(default)s)",
    )
    add_place(made)
    return made


def parse(made: argparse.ArgumentParser, script: str) -> tuple[argparse.Namespace, Results]:
    """Parse the command line, and open the results.

    With --quick the only size is `demo`, and results go to a file of their own: they are not mistaken for full ones.
    """
    args = made.parse_args()
    if args.quick:
        args.sizes = [DEMO]
        args.json = args.json.with_suffix(".quick.jsonl")
    return args, Results(script, args.json, args.again or args.quick)


def runs_of(size: str, *, quick: bool) -> int:
    return QUICK_RUNS if quick else RUNS[size]


def model_of(size: str, models_dir: Path) -> Model:
    """Return a model on this disk; random weights of its shapes where the real ones are not here.

    Exits with a sentence where there is neither.
    """
    catalogue = Catalogue(models_dir, default_hub_cache())
    try:
        model = catalogue.find(size)
        if model.folder is None:
            model = catalogue.find(ensure_model(size, models_dir))
    except Gpt2dError as e:
        sys.exit(str(e))
    return model


# The machine


@cache
def machine() -> dict[str, Any]:
    """Return names, counts, bytes, and the memory bandwidth, which bounds decoding.

    `read_gb_s` is what `default_threads` threads read together.
    """
    import psutil

    return {
        "cpu": processor(),
        "cores": psutil.cpu_count(logical=False) or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "read_gb_s": round(bandwidth(default_threads()), 1),
        "load": os.getloadavg()[0],
    }


def bandwidth(threads: int) -> float:
    """Return GB/s: the best of five passes over half a gibibyte, each thread summing its part."""
    parts = np.array_split(np.ones(BANDWIDTH_BYTES // 8), threads)
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=part.sum) for part in parts]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, BANDWIDTH_BYTES / 1e9 / (time.perf_counter() - began))
    return best


@cache
def versions() -> dict[str, str]:
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    from protocol.programs import VERSION

    yield "gpt2d", VERSION
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def command(script: str) -> str:
    """Return the command that runs it again, from the checkout."""
    return shlex.join(["python", "-m", f"scripts.investigation.{script}", *sys.argv[1:]])
