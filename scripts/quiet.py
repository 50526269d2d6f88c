"""Long commands on one line of status, with all that they print in a log. Standard library only."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

LOOK_S = 0.5
MEASURE_S = 2.0
"""Seconds between two measurements of the folders: a walk through thousands of files."""
STOP_S = 10.0
TAIL_BYTES = 4096
ITEM = re.compile(
    r"^\s*(?:Collecting|Building wheel for|Installing build dependencies for) ([\w.\[\]-]+)", re.MULTILINE
)
MACHINE = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform} {platform.machine()}"
NETWORK = (
    "the package index cannot be reached: connect this machine to the network, or name a proxy "
    "(HTTPS_PROXY=http://HOST:PORT) or an index of your own (PIP_INDEX_URL=...), and run this again"
)
CAUSES = (
    (r"No space left on device|Errno 28\b", "the disk is full: free some space, and run this again"),
    (r"ProxyError|Tunnel connection failed", "the proxy refuses: check HTTPS_PROXY and pip's setting `proxy`"),
    (r"CERTIFICATE_VERIFY_FAILED", "a certificate is not trusted: give pip your network's own one (PIP_CERT=FILE)"),
    (r"NewConnectionError|NameResolutionError|ConnectTimeout|Failed to establish a new connection", NETWORK),
    (r"Read timed out|ReadTimeoutError|IncompleteRead|Connection aborted", NETWORK),
    (r"No matching distribution found for ([^\s(]+)", "{} has no wheel for " + MACHINE),
    (r"requires a different Python: (.+)", "this Python cannot be used: {}"),
    (r"Permission denied: (.+)", "{} cannot be written to"),
)
"""What a log of pip's says, and what that means; the first one that is found is the cause."""


class Failed(Exception):
    """A command failed; the message says why, as far as its log tells, and where the log lies."""


def run(
    command: list[str],
    doing: str,
    *,
    log: Path,
    folders: Iterable[Path] = (),
    env: Mapping[str, str] | None = None,
    keep_open: tuple[int, ...] = (),
    accept: tuple[int, ...] = (0,),
) -> int:
    """Run a command and return its exit code. Its output is added to the log; a terminal shows seconds and megabytes.

    `folders` are those that grow meanwhile, `keep_open` the descriptors that the command inherits. Raises: Failed where
    the code is not one to `accept`.
    """
    folders = list(folders)
    before, began = size(folders), time.monotonic()
    with log.open("ab") as output:
        start = output.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=() if os.name == "nt" else keep_open,
        )
        try:
            _watch(child, doing, log, start, folders, before)
        except KeyboardInterrupt:
            say(f"{doing}: interrupted; the next time it goes on from here")
            raise
        finally:
            _stop(child)
    code = child.returncode
    took = f"{time.monotonic() - began:.0f} s"
    if code not in accept:
        if sys.stderr.isatty():
            show("")
        raise Failed(f"{doing} failed after {took}: {cause(log, start)}. All that was printed: {log}")
    say(f"{doing}: {took}, {max(size(folders) - before, 0) / 1e6:.0f} MB" if folders else f"{doing}: {took}")
    return code


def _watch(child: subprocess.Popen[bytes], doing: str, log: Path, start: int, folders: list[Path], before: int) -> None:
    """Show the status until the command ends: in a terminal a line that changes, else one line at the beginning."""
    began = measured = time.monotonic()
    megabytes = 0.0
    if not sys.stderr.isatty():
        say(f"{doing} ...")
    while True:
        try:
            child.wait(LOOK_S)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if not sys.stderr.isatty():
            continue
        if folders and now - measured > MEASURE_S:
            measured, megabytes = now, max(size(folders) - before, 0) / 1e6
        item = ITEM.findall(_tail(log, start))
        amount = f", {megabytes:.0f} MB" if folders else ""
        show(f"{doing}: {now - began:.0f} s{amount}{': ' + item[-1] if item else ''}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, because this one was interrupted."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(STOP_S)


def show(line: str) -> None:
    """Replace the last line of the terminal."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[K{line[:width]}")
    sys.stderr.flush()


def say(line: str) -> None:
    """Print a line that stays, in place of a status."""
    begin = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{begin}{line}", file=sys.stderr, flush=True)


def size(folders: Iterable[Path]) -> int:
    """Return the bytes of all files in the folders, as far as they can be read."""
    total = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - thousands of files
                except OSError:
                    continue  # gone since
    return total


def cause(log: Path, start: int = 0) -> str:
    """Return why a command failed, by what its log says from `start` on."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    for pattern, meaning in CAUSES:
        if found := re.search(pattern, text):
            return meaning.format(*found.groups())
    if text and not text.endswith("\n"):
        return "its output was cut short, as on a full disk: free some space, and run this again"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"ERROR|error\b|\w*Error:", line)]
    return (errors or lines or ["it printed nothing"])[-1][:400].rstrip(".")


def _tail(log: Path, start: int) -> str:
    """Return the end of what was added to the log since `start`."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - TAIL_BYTES))
        return file.read().decode(errors="replace")
