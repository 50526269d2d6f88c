"""The daemon that run.py starts for windows and terminals, or finds: all of them share it. Standard library only.

It goes on when the command that started it is gone, and ends by itself once nobody has been connected for IDLE_S, so
nobody stops it under somebody else. No lock is needed: of several that start at once one gets the endpoint, the others
end, and every command joins the one.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import environment

IDLE_S = 60
START_S = 30.0
END_S = 60.0
"""Longest wait for one that is ending: it may let streams finish first."""
STOP_S = 15.0
LOOK_S = 0.02
PROBE_S = 60.0
MAX_LOG_BYTES = 1 << 20
PROBE = environment.ROOT / "scripts" / "probe.py"


@dataclass(frozen=True)
class Found:
    """What is known of the daemon on an endpoint; see scripts/probe.py, which prints it."""

    trouble: str = ""
    """Why there is none that can be used, though something listens."""
    draining: bool = False
    pid: int | None = None
    lacks: tuple[str, ...] = ()
    """Engines that this checkout has and the daemon has not."""

    def how_to_end(self) -> str:
        """Return how a user ends it."""
        if self.pid is None:
            return "end it where it was started (Ctrl-C)"
        return f"end it with `{'taskkill /F /PID' if os.name == 'nt' else 'kill'} {self.pid}`"


def listening(endpoint: str) -> bool:
    """Return whether something accepts connections there."""
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1).close()
    except (OSError, TypeError, ValueError):
        return False
    return True


def join_or_start(endpoint: str, preload: str) -> bool:
    """See to it that a daemon listens on the endpoint; return whether it was started here.

    Exits with a message where something else listens there, or where none can be started.
    """
    found = find(endpoint)
    if found is None:
        start(endpoint, preload)
        return True
    if found.lacks:
        engines = " and ".join(found.lacks)
        print(
            f"the daemon on {endpoint} was started before this checkout had the engine {engines}, and goes on without "
            f"it; to use it, {found.how_to_end()} and run this again",
            file=sys.stderr,
            flush=True,
        )
    return False


def find(endpoint: str) -> Found | None:
    """Return the daemon that answers there, None where nobody listens. One that is ending is waited for.

    Exits with a message where something else listens.
    """
    give_up = time.monotonic() + END_S
    tries, told = 0, False
    while listening(endpoint):
        found = look(endpoint)
        if found.trouble:
            tries += 1  # once it may be a daemon that has just ended
        elif not found.draining:
            return found
        if tries > 1:
            sys.exit(
                f"{found.trouble}\nStop what uses {endpoint}, or choose another place: --endpoint tcp://127.0.0.1:PORT"
            )
        if time.monotonic() > give_up:
            sys.exit(f"the daemon on {endpoint} has been ending for {END_S:.0f} s; {found.how_to_end()}")
        if found.draining and not told:
            told = True
            print(f"the daemon on {endpoint} is ending; waiting for it", file=sys.stderr, flush=True)
        time.sleep(LOOK_S)
    return None


def look(endpoint: str) -> Found:
    """Ask the daemon on an endpoint what it is. Something must listen there."""
    command: list[str | Path] = [environment.PYTHON, "-P", PROBE, endpoint]
    try:
        done = subprocess.run(
            command, env=environment.surroundings(), capture_output=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Found(trouble=f"what listens on {endpoint} did not answer within {PROBE_S:.0f} s")
    if done.returncode:
        return Found(trouble=done.stderr.decode(errors="replace").strip())
    answer = json.loads(done.stdout)
    return Found(answer["trouble"], answer["draining"], answer["pid"], tuple(answer["lacks"]))


def start(endpoint: str, preload: str) -> None:
    """Start a daemon in the background and wait until it listens, or another does that was started meanwhile.

    Exits with what its log says if it ends instead.
    """
    command: list[str | Path] = [environment.PYTHON, "-P", "-m", "server"]
    command += [f"--endpoint={endpoint}", f"--preload={preload}", f"--idle-exit={IDLE_S}"]
    with open_log(endpoint) as log:
        begin = log.seek(0, os.SEEK_END)
        daemon = subprocess.Popen(
            command,
            env=environment.surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the client's, and the end of its terminal is not the daemon's
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # on Windows a console of its own
        )
        try:
            wait_until_listening(daemon, endpoint)
        except BaseException as e:
            stop(daemon)
            if isinstance(e, NotStarted):
                log.seek(begin)
                sys.exit(f"the daemon did not start; its log says:\n{log.read().decode(errors='replace').strip()}")
            raise


class NotStarted(Exception):
    """A daemon ended before it listened, or took too long."""


def wait_until_listening(daemon: subprocess.Popen[bytes], endpoint: str) -> None:
    """Wait until somebody listens on the endpoint. Raises: NotStarted."""
    give_up = time.monotonic() + START_S
    while True:
        over = daemon.poll() is not None or time.monotonic() > give_up
        if listening(endpoint):  # asked after that: it ends where another has just got the endpoint
            return
        if over:
            raise NotStarted
        time.sleep(LOOK_S)


def open_log(endpoint: str) -> IO[bytes]:
    """Open the log of the daemons on an endpoint, which go on where the last one ended, up to MAX_LOG_BYTES."""
    try:
        environment.STATE.mkdir(exist_ok=True)
        log = (environment.STATE / f"gpt2d-server-{urlsplit(endpoint).port}.log").open("a+b")
    except OSError:  # a checkout that is only read
        return tempfile.TemporaryFile()
    if log.seek(0, os.SEEK_END) > MAX_LOG_BYTES:
        log.truncate(0)
    return log


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(path: Path) -> str:
    """Return a path of the checkout as it is typed in the current folder: short in the checkout's own."""
    here = Path.cwd()
    return str(path.relative_to(here) if here == environment.ROOT and path.is_relative_to(here) else path)


def quoted(*words: str) -> str:
    """Return the words as a command to paste."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
