"""Writes docs/RESULTS.md and its figures from what the investigation's scripts have measured; runs them first if asked.

    python -m scripts.report                                      from the results that are there, in seconds
    python -m scripts.report --run                                all scripts first: some 90 minutes; goes on if stopped
    python -m scripts.report --run serving_methods onnx_methods   some of them first
    python -m scripts.report --quick                              all with --quick, some minutes, into docs/quick/:
                                                                  to see that everything works

A script that fails is reported, and the others go on. Where nothing has been measured yet, a section names the command
that measures it. Medians are computed from the runs in docs/results/*.jsonl; of a trial that was measured more than
once the last line counts. The conclusions are sentences of scripts/report/conclusions.toml; one whose figures have
left their intervals is left out of the report, and named on stderr. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.engine import ROOT
from scripts.investigation.harness import RESULTS
from scripts.report.document import write
from scripts.report.measured import SCRIPTS, command_of, load


def run(names: Sequence[str], files: dict[str, Path], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Run each script in a process; return, for each, how it ended and how long it took."""
    took: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    for i, name in enumerate(names, 1):
        more = ["--quick"] if quick else []
        more += ["--json", str(files[name])] if files[name].parent != RESULTS else []
        print(f"{i}/{len(names)} {name}: {' '.join([command_of(name), *more])}", file=sys.stderr, flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", f"scripts.investigation.{name}", *more]
        with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the script got the same signal, and ends what it has started
                process.wait()
                sys.exit(f"{name}: stopped; started again, it measures what is missing")
        minutes = (time.monotonic() - start) / 60
        took[name] = {"exit": code, "minutes": round(minutes, 1)}
        failed = f"FAILED with exit code {code} after {minutes:.1f} min; the others go on"
        end = failed if code else f"done in {minutes:.1f} min"
        print(f"{i}/{len(names)} {name}: {end}", file=sys.stderr, flush=True)
    print(f"all: {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr, flush=True)
    return took


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        nargs="*",
        choices=SCRIPTS,
        metavar="NAME",
        help=f"run these first (no name: all of them): {', '.join(SCRIPTS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run them with --quick first, and write into OUT/quick: to see that everything works",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs",
        metavar="DIR",
        help="where RESULTS.md and images/results go (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help=f"where the scripts' results are (default: {RESULTS}; with --quick OUT/quick/results)",
    )
    return parser


def main() -> None:
    args = arguments().parse_args()
    out = args.out / "quick" if args.quick else args.out
    results = (args.results or (out / "results" if args.quick else RESULTS)).resolve()
    wanted: list[str] = []
    if args.quick or args.run is not None:
        wanted = [name for name in SCRIPTS if not args.run or name in args.run]
    took = run(wanted, {name: results / f"{name}.jsonl" for name in wanted}, quick=args.quick) if wanted else {}
    written = write(load(results, quick=args.quick), out)
    for sentence, reasons in written["unsupported"].items():
        print(f"left out: {sentence!r}: {'; '.join(reasons)}", file=sys.stderr)
    minutes = round(sum(t["minutes"] for t in took.values()), 1)
    print(json.dumps(written | {"ran": took, "minutes": minutes}, ensure_ascii=False))
    if any(t["exit"] for t in took.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
