"""Our programs as their users meet them: the version, the command that starts one, the command that installs packages.

A message names a command that works where it is read: typed in the same shell, in whatever environment.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse  # not for scripts, which have no options of ours

VERSION = "0.2.0"
MODULES = {
    "gpt2d-server": "server",
    "gpt2d-client": "client",
    "gpt2d-keygen": "server.keygen",
    "gpt2d-http": "client.doors.http",
}
"""Each program and the module that it is."""
OWN = ("protocol", "server", "client")


def typed(*words: str) -> str:
    """Return a command as it is typed in a shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def words(program: str) -> list[str]:
    """Return the words that start one of our programs, wherever they are typed."""
    started = Path(sys.argv[0]).absolute()  # the message may be read in another folder
    folder = started.parent if started.stem in MODULES else sysconfig.get_path("scripts")
    own = shutil.which(program, path=str(folder))
    return [own] if own else [sys.executable, "-m", MODULES[program]]


def command(program: str, *arguments: str) -> str:
    """Return what starts one of our programs here: by its name where the shell finds it, else by the whole path."""
    own, *module = words(program)
    found = shutil.which(program)
    named = found and not module and Path(found).samefile(own)
    return typed(program if named else own, *module, *arguments)


def install(extras: str) -> str:
    """Return the command that installs what these extras bring; it is typed in the checkout."""
    return typed(sys.executable, "-m", "pip", "install", f".[{extras}]")


def given_line(text: str) -> str:
    """Return the connect line that an argument means: `-` is for one from stdin, which nobody sees typed.

    Raises: ValueError where stdin is closed, EOFError.
    """
    if text != "-":
        return text
    if sys.stdin is None:
        raise ValueError("stdin is closed, so no connect line can be read from it")
    return (getpass.getpass("connect line: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()


@contextlib.contextmanager
def needed_by(program: str, extras: str = "server,client") -> Iterator[None]:
    """Exit with what to install where an import fails because a package is missing: what these extras bring."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in OWN:
            raise
        sys.exit(f"{program}: {e.name} is not installed; in the checkout of gpt2d type: {install(extras)}")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options for the settings of a generation, which `parameters.read_settings` reads."""
    parser.add_argument("-n", "--max-new-tokens", metavar="N", help="the largest number of tokens to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a generation setting; may be repeated, and a list (stop, bad_words, logit_bias) then grows",
    )


@contextlib.contextmanager
def printed_by(program: str) -> Iterator[None]:
    """Exit with a sentence where what was printed cannot be written: the disk is full, or a pipe's reader is gone."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as e:
        if e.filename is not None or sys.stdout is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it would try again when it ends
        if isinstance(e, BrokenPipeError):
            sys.exit(141)
        sys.exit(f"{program}: stdout cannot be written to: {e.strerror}")
