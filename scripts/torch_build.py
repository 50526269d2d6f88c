"""Which build of torch pip would take, said before it is fetched. Standard library only."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ASK_S = 600
FETCHED = """\
On Linux pip takes the build of torch for graphics cards (CUDA): about 5.6 GB in {venv}, which nothing here uses.
To take the CPU build (0.8 GB), install it with the command that pytorch.org's "Get started" page gives for
Stable, Linux, Pip, Python, CPU, and run this again, which keeps what is there:

  {python} -m pip install {torch} ...
"""


def announce(python: Path, requirements: Path, env: Mapping[str, str]) -> None:
    """Say so where the CUDA build would be fetched; ask where there is a terminal. Exits if it is not wanted."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    torch = next((line for line in lines if line.startswith("torch==")), None)
    if torch is None:
        return
    print(f"asking pip which build of {torch} it would take", file=sys.stderr, flush=True)
    if not brings_cuda(python, torch, env):
        return
    words = FETCHED.format(venv=python.parent.parent, python=shlex.quote(str(python)), torch=torch)
    print(words, file=sys.stderr, flush=True)
    if not sys.stdin.isatty():
        return
    print("Fetch the CUDA build? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() not in {"y", "yes"}:
        sys.exit("nothing was installed" if answer else "\nnothing was installed")  # Ctrl-D ends no line


def brings_cuda(python: Path, torch: str, env: Mapping[str, str]) -> bool:
    """Ask pip what it would install; False where the CPU build is there or at hand, or pip cannot tell."""
    command = [str(python), "-P", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--only-binary=:all:", "--dry-run", "--report=-", torch]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=ASK_S, check=False
        )
        names = [item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return False  # whatever is wrong, the installation itself says it
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)
