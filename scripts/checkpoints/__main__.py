"""Compare folders of every kind that people have with transformers 5: tokens, text, log-probabilities, offsets.

    python -m scripts.checkpoints                      all kinds
    python -m scripts.checkpoints --list               their names
    python -m scripts.checkpoints --only weights-fp16  those whose name begins with that (or A,B,...)
    python -m scripts.checkpoints --keep FOLDER        leave the folders there, to look at
    python -m scripts.checkpoints --write              and commit to tests/data what .ci/run compares with

Each kind is a small model that is made in a scratch folder. transformers is asked in an environment of its own, which
is made once (build/judge, minutes); a daemon is asked on native and onnx at fp32, at int8 and int4 too where the
mathematics is another. Both tokenise and score the same texts and continue the same prompts; what must be refused is
compared with the expected sentence. One line for each kind as it is done, a table of all at the end, and exit code 1
where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JUDGE = ROOT / "build" / "judge"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="KIND,...", default="", help="kinds whose names begin so")
    parser.add_argument("--list", action="store_true", help="print the kinds and end")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the folders there, and leave them")
    parser.add_argument(
        "--judge", type=Path, default=JUDGE, metavar="FOLDER", help="environment of transformers (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="write tests/data/checkpoints.json")
    return parser.parse_args()


def main() -> int:
    args = parse()
    # Loads torch and transformers, which --help does without.
    from scripts.checkpoints.environment import judges_python
    from scripts.checkpoints.list import KINDS
    from scripts.checkpoints.run import Outcome, Run, table

    wanted = tuple(args.only.split(",")) if args.only else ("",)
    kinds = [kind for kind in KINDS if kind.name.startswith(wanted)]
    if args.list or not kinds:
        print("\n".join(f"{kind.name}{' (refused)' if kind.refused else ''}" for kind in kinds or KINDS))
        return 0 if kinds else 2
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpt2d-checkpoints-")))
        try:
            python = judges_python(args.judge)
        except (subprocess.SubprocessError, OSError) as e:
            sys.exit(f"the judge's environment cannot be made: {e}")
        run = stack.enter_context(Run(python, scratch))
        outcomes: list[Outcome] = []
        for number, kind in enumerate(kinds, 1):
            outcomes.append(run.kind(kind))
            print(f"{number}/{len(kinds)} {outcomes[-1]}", flush=True)
        if args.write:
            run.write(kinds)
    print("\n" + table(outcomes))
    return 1 if any(outcome.differences for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
