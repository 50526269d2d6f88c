#!/usr/bin/env python3
"""Try the first minutes of somebody new on bare machines: chroots of Debian 12, 13 and forky.

    python -m scripts.newcomer                                    every machine, every step
    python -m scripts.newcomer --only trixie --keep /var/tmp/newcomer

Needs Linux, root and debootstrap; takes some 15 minutes and 6 GB. Packages come from where apt and pip of this machine
take them. A machine has an ordinary user with an empty home and a checkout of the last commit, and each step is what
the README says, typed there. The table at the end has what each took; the exit code is 1 if a step went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "GPT2D_NEWCOMER"
"""Set in the process that has a mount namespace of its own: what it mounts goes with it."""
LIMIT_S = 1200
PROMPT = ("--prompt", "Shall I compare thee", "--max-new-tokens", "60")
RUN = ("python3", "scripts/run.py", *PROMPT)
INTERRUPTED_S = 4.0
OFFLINE_S = 60.0


@dataclass(frozen=True)
class Machine:
    """One chroot, and what its owner has."""

    suite: str
    packages: tuple[str, ...]
    user: str
    engine: str
    """The engine that writes the first text there."""


MACHINES = {
    "bookworm": Machine("bookworm", ("python3",), "root", "native"),
    "trixie": Machine("trixie", ("python3", "python3-venv"), "newcomer", "native"),
    "trixie-g++": Machine("trixie", ("python3", "python3-venv", "g++"), "newcomer", "native"),
    "forky": Machine("forky", ("python3", "python3-venv", "g++"), "newcomer", "native"),
}


@dataclass(frozen=True)
class Done:
    """A command that has ended: what it said, and the seconds it took."""

    code: int
    out: str
    err: str
    seconds: float


class Bare:
    """A machine that is there: runs commands as its user, in the checkout."""

    def __init__(self, name: str, machine: Machine, root: Path) -> None:
        self.name = name
        self.machine = machine
        self.root = root
        self.home = "/root" if machine.user == "root" else f"/home/{machine.user}"
        self.checkout = f"{self.home}/a gpt2d of möne"

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def run(
        self, *command: str, offline: bool = False, interrupt_s: float | None = None, folder: str | None = None
    ) -> Done:
        """Run a command as the user types it; `interrupt_s`: press Ctrl-C after that many seconds."""
        text = f"cd {shlex.quote(folder or self.checkout)} && exec {shlex.join(command)}"
        words = ["chroot", f"--userspec={self.machine.user}", str(self.root), "/bin/sh", "-c", text]
        if offline:
            words = ["unshare", "--net", *words]
        env = {n: v for n, v in os.environ.items() if n.startswith("PIP_") or n.lower().endswith("_proxy")}
        env |= {"HOME": self.home, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        began = time.monotonic()
        with subprocess.Popen(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as child:
            try:
                out, err = child.communicate(timeout=interrupt_s or LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 2 if interrupt_s else 9)
                out, err = child.communicate(timeout=LIMIT_S)
        return Done(child.returncode, out, err, time.monotonic() - began)

    def new_checkout(self, folder: str | None = None) -> None:
        """Put the last commit there, the user's own, with nothing installed."""
        target = self.path(folder or self.checkout)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, timeout=60, check=True)
        subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, timeout=60, check=True)
        subprocess.run(
            ["chroot", str(self.root), "chown", "-R", self.machine.user, folder or self.checkout],
            timeout=60,
            check=True,
        )

    def megabytes(self, inside: str) -> float:
        """Return the size of a folder there."""
        done = subprocess.run(["du", "-s", "-m", str(self.path(inside))], capture_output=True, timeout=60, check=False)
        return float(done.stdout.split()[0]) if done.returncode == 0 else 0.0


class Wrong(Exception):
    """A step did not do what a newcomer expects."""


def expect(done: Done, condition: bool, what: str) -> None:
    """Raises: Wrong, with what the command said."""
    if not condition:
        raise Wrong(f"{what}\nexit code {done.code}\n{done.out[-1500:]}\n{done.err[-3000:]}")


def first_text(bare: Bare) -> str:
    done = bare.run(*RUN)
    expect(done, done.code == 0 and len(done.out) > 50, "no text")
    expect(done, f"demo/{bare.machine.engine}/int8" in done.err, f"the engine is not {bare.machine.engine}")
    expect(done, "Traceback" not in done.err, "a traceback")
    left = [entry.name for entry in bare.path(bare.checkout).iterdir() if "ziglang" in entry.name]
    expect(done, not left, f"left behind: {left}")
    return f"{done.seconds:.0f} s, .venv {bare.megabytes(bare.checkout + '/.venv'):.0f} MB"


def second_text(bare: Bare) -> str:
    done = bare.run(*RUN)
    expect(done, done.code == 0 and len(done.out) > 50, "no text")
    rate = re.search(r"(\d+) tokens/s", done.err)
    return f"{done.seconds:.1f} s, {rate[1] if rate else '?'} tokens/s"


def interrupted(bare: Bare) -> str:
    """Ctrl-C while .venv is made, then the same command again."""
    folder = f"{bare.home}/interrupted"
    bare.new_checkout(folder)
    done = bare.run(*RUN, interrupt_s=INTERRUPTED_S, folder=folder)
    expect(done, done.code != 0 and "Traceback" not in done.err, "Ctrl-C did not end it without a traceback")
    again = bare.run(*RUN, folder=folder)
    expect(again, again.code == 0 and len(again.out) > 50, "no text after an interrupted installation")
    shutil.rmtree(bare.path(folder))
    return f"ended {done.seconds - INTERRUPTED_S:.1f} s after Ctrl-C, then {again.seconds:.0f} s"


def offline(bare: Bare) -> str:
    """No network at the first installation."""
    folder = f"{bare.home}/offline"
    bare.new_checkout(folder)
    done = bare.run(*RUN, folder=folder, offline=True)
    expect(done, done.code != 0 and "Traceback" not in done.err, "no clear error without a network")
    expect(done, done.seconds < OFFLINE_S, f"took {done.seconds:.0f} s to say so")
    shutil.rmtree(bare.path(folder))
    return f"{done.seconds:.0f} s: {done.err.strip().splitlines()[-1][:100]}"


def plain_install(bare: Bare) -> str:
    """`pip install .` without an extra: its commands say what to type."""
    env = f"{bare.home}/own"
    bare.run("python3", "-m", "venv", env)
    done = bare.run(f"{env}/bin/pip", "install", "-q", ".")
    expect(done, done.code == 0, "pip install . failed")
    for command in ("gpt2d-server", "gpt2d-client"):
        done = bare.run(f"{env}/bin/{command}")
        expect(
            done,
            "pip install '.[server,client]'" in done.err and "Traceback" not in done.err,
            f"{command} does not say",
        )
    shutil.rmtree(bare.path(env))
    return "said what to type"


STEPS: dict[str, Callable[[Bare], str]] = {
    "first text": first_text,
    "second text": second_text,
    "Ctrl-C while it installs": interrupted,
    "no network": offline,
    "pip install .": plain_install,
}


def mirror() -> str:
    """Return where apt of this machine takes Debian from."""
    for file in (*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")):
        if file.exists() and (
            found := re.search(r"^(?:URIs:|deb)\s+(\S+/debian)/?\s", file.read_text() + "\n", re.MULTILINE)
        ):
            return found[1]
    sys.exit("no mirror of Debian is in /etc/apt; this needs one")


def make(name: str, machine: Machine, root: Path) -> Bare:
    """Make the chroot, unless it was kept from before."""
    if not (root / "etc/debian_version").exists():
        scripts = Path("/usr/share/debootstrap/scripts")
        script = [] if (scripts / machine.suite).exists() else [str(scripts / "sid")]
        packages = ",".join((*machine.packages, "ca-certificates"))
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={packages}",
            machine.suite,
            str(root),
            mirror(),
            *script,
        ]
        subprocess.run(command, stdout=sys.stderr, timeout=LIMIT_S, check=True)
    for inside in ("proc", "sys", "dev"):
        subprocess.run(["mount", "--rbind", f"/{inside}", str(root / inside)], timeout=60, check=True)
    for shared in ("/etc/resolv.conf", "/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs", "/opt"):
        target = root / shared.lstrip("/")
        if Path(shared).is_dir():
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", shared, str(target)], timeout=60, check=True)
        elif Path(shared).exists():
            target.unlink(missing_ok=True)
            shutil.copy(shared, target)
    if machine.user != "root":
        subprocess.run(
            ["chroot", str(root), "useradd", "-m", machine.user], capture_output=True, timeout=60, check=False
        )
    bare = Bare(name, machine, root)
    bare.new_checkout()
    return bare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MACHINES), nargs="+", default=list(MACHINES), metavar="MACHINE")
    parser.add_argument("--steps", choices=list(STEPS), nargs="+", default=list(STEPS), metavar="STEP")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the machines here, and use them again")
    args = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("debootstrap"):
        parser.error("needs Linux, root, and debootstrap (Debian: apt install debootstrap)")
    if INSIDE not in os.environ:
        return outside(args.keep, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, it would be ignored by what is interrupted
    wrong = 0
    rows = []
    for name in args.only:
        root = args.keep.resolve() / name
        root.mkdir(parents=True, exist_ok=True)
        bare = make(name, MACHINES[name], root)
        for step in args.steps:
            print(f"{name}: {step}", file=sys.stderr, flush=True)
            try:
                result = STEPS[step](bare)
            except Wrong as e:
                wrong += 1
                result = f"WRONG: {str(e).splitlines()[0]}"
                print(f"{name}: {step}: {e}", file=sys.stderr, flush=True)
            rows.append(f"| {name} | {step} | {result} |")
    print("\n".join(["| machine | step | result |", "|---|---|---|", *rows]))
    return 1 if wrong else 0


def outside(keep: Path | None, arguments: list[str]) -> int:
    """Run this in a mount namespace; delete the machines from outside of it, where nothing is mounted."""
    words = ["unshare", "--mount", "--propagation=private", sys.executable, "-m", "scripts.newcomer", *arguments]
    with contextlib.ExitStack() as stack:
        if keep is None:
            words += ["--keep", stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="newcomer-"))]
        return subprocess.run(words, cwd=ROOT, env=os.environ | {INSIDE: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
