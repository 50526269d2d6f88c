#!/usr/bin/env python3
"""Try every promise of the daemon under stress: deaths, faults, hostile peers, crowds, bad networks, full disks.

    python -m scripts.chaos --quick               each once, in less than ten minutes
    python -m scripts.chaos                       as often as docs/RELIABILITY.md says; about an hour and a half
    python -m scripts.chaos --only stuck,churn    some of them
    python -m scripts.chaos --list                the promises

Real daemons, real sockets, real processes; a fake engine where the engine is not the point. It prints one line for each
promise with what was measured; the last line is one JSON object, and the exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from scripts.reliability import every_promise
from scripts.reliability.promise import Scale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each once, in less than ten minutes")
    parser.add_argument("--only", metavar="NAME,...", help="these promises only")
    parser.add_argument("--list", action="store_true", help="print the promises, and end")
    args = parser.parse_args()
    promises = every_promise()
    names = args.only.split(",") if args.only else list(promises)
    if unknown := set(names) - set(promises):
        parser.error(f"unknown promise {', '.join(sorted(unknown))}, expected some of: {', '.join(promises)}")
    if args.list:
        for name in names:
            print(f"{name}: {promises[name].__doc__}")
        return 0
    results: dict[str, dict[str, object]] = {}
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                figures = promises[name](Scale("quick" if args.quick else "full"), Path(folder))
                result: dict[str, object] = {"kept": True, **figures}
            except Exception as e:  # noqa: BLE001 - whatever breaks a promise, the others are tried
                traceback.print_exc()
                result = {"kept": False, "why": f"{type(e).__name__}: {e}"[:500]}
        results[name] = result | {"seconds": round(time.monotonic() - began, 1)}
        print(f"{name}: {'kept' if result['kept'] else 'BROKEN'}  {json.dumps(results[name])}", flush=True)
    kept = sum(bool(one["kept"]) for one in results.values())
    print(json.dumps({"tried": len(results), "kept": kept, "promises": results}))
    return 0 if kept == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
