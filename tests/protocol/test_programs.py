"""What our programs print, where it cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "gpt2d-server": ("server", "--check"),
    "gpt2d-client": ("client", "--version"),
    "gpt2d-keygen": ("server.keygen", "folder"),
    "gpt2d-http": ("client.doors.http", "--version"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("program", COMMANDS)
def test_a_full_disk_is_one_sentence(program: str) -> None:
    if program == "gpt2d-http":
        pytest.importorskip("starlette", reason="needs requirements-http.txt")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # argparse hides the fault
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", *COMMANDS[program]]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"{program}: stdout cannot be written to: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_reader_that_has_gone_is_no_fault_to_speak_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "server", "--check"], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
