#!/usr/bin/env python3
"""Try gpt2d: install it into .venv, start the daemon with the embedded model, open the client.

    python3 scripts/run.py                                      write at a prompt
    python3 scripts/run.py --prompt "Shall I compare thee"      one generation
    python3 scripts/run.py --no-client                          only the daemon, in the foreground

A daemon that already answers on the endpoint is used, and goes on afterwards; one started here ends with this command.
"""

from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import environment

LOG = environment.ROOT / "build" / "gpt2d-server.log"
ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What ends this command, and with it what it started: asked to, or its terminal was closed."""
START_S = 30.0
STOP_S = 15.0
PING = """
import sys
from protocol import Client, Gpt2dError
with Client(sys.argv[1]) as client:
    try:
        client.ping()
    except Gpt2dError as e:
        sys.exit(str(e))
"""


def listening(endpoint: str) -> bool:
    """True if something accepts connections there."""
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1).close()
    except (OSError, TypeError, ValueError):
        return False
    return True


def check_daemon(endpoint: str) -> None:
    """Exit with a sentence unless a gpt2d daemon answers there."""
    done = subprocess.run([environment.PYTHON, "-P", "-c", PING, endpoint], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr.strip()}\nStop what uses {endpoint}, or choose another place: --endpoint tcp://127.0.0.1:PORT")


def start_daemon(endpoint: str, preload: str) -> subprocess.Popen[bytes]:
    """Start a daemon in the background."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("wb") as log:
        return subprocess.Popen(
            [environment.PYTHON, "-P", "-m", "server", f"--endpoint={endpoint}", f"--preload={preload}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the client's: it cancels a generation
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def wait_until_listening(daemon: subprocess.Popen[bytes], endpoint: str) -> None:
    """Exit with what the daemon's log says if it ends instead."""
    give_up = time.monotonic() + START_S
    while not listening(endpoint):
        if daemon.poll() is not None or time.monotonic() > give_up:
            sys.exit(f"the daemon did not start; {LOG} says:\n{LOG.read_text(errors='replace')}")
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_in_foreground(command: list[str | Path]) -> int:
    """Run a program that deals with Ctrl-C itself, which the terminal sends to both; a SIGTERM to this one ends it."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in ENDING:
        signal.signal(number, lambda *_: child.terminate())
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", metavar="TEXT", help="do one generation and exit")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="how many tokens to write at most")
    parser.add_argument("--model", default="demo", metavar="NAME", help="which model to load (default: %(default)s)")
    parser.add_argument("--precision", metavar="P", help="int8 or fp32 (default: int8)")
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:5757", help="where the daemon listens (default: %(default)s)")
    parser.add_argument("--no-client", action="store_true", help="only the daemon, in the foreground")
    args = parser.parse_args()

    if not re.fullmatch(r"tcp://[^/@]+:[1-9][0-9]*", args.endpoint):
        parser.error(f"{args.endpoint!r}: an endpoint looks like tcp://127.0.0.1:5757")
    environment.prepare(environment.LIGHT)
    preload = f"{args.model}//{args.precision}" if args.precision else args.model
    there = listening(args.endpoint)
    if there:
        check_daemon(args.endpoint)
    if args.no_client:
        if there:
            sys.exit(f"a daemon is already running on {args.endpoint}")
        return run_in_foreground([environment.PYTHON, "-P", "-m", "server", f"--endpoint={args.endpoint}", f"--preload={preload}"])
    daemon = None
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        if not there:
            daemon = start_daemon(args.endpoint, preload)
            wait_until_listening(daemon, args.endpoint)
        command = [environment.PYTHON, "-P", "-m", "client", args.endpoint, f"--model={args.model}"]
        command += [f"--precision={args.precision}"] if args.precision else []
        command += [f"--max-new-tokens={args.max_new_tokens}"] if args.max_new_tokens is not None else []
        command += [f"--prompt={args.prompt}"] if args.prompt is not None else []
        return run_in_foreground(command)
    finally:
        if daemon:
            stop(daemon)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
