"""The one way to start a gpt2d-server for scripts and tests.

    with Daemon(folder, "--preload", "demo") as daemon, Client(daemon.endpoint) as client: ...

It listens on a port that the system chooses. Its log goes to a file, so that reading it costs the caller nothing while
something is measured. A pipe and a thread that reads it were rejected for that reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_S = 20.0
STOP_S = 20.0


class Daemon:
    """A gpt2d-server process that listens at `endpoint`. A context manager: it stops at the end."""

    program: tuple[str, ...] = ("server",)
    """The module to run, and what comes before its arguments."""
    before: tuple[str, ...] = ()
    """Words of the command before the interpreter."""

    def __init__(self, folder: Path | None, *arguments: str, **environment: str) -> None:
        """Start it and wait until it listens.

        Its models, caches and log are in `folder`, and it can reach no hub; with None it uses those of the user and
        their hub. `arguments` are further flags of gpt2d-server, `environment` further variables.
        Raises: RuntimeError with the log, if it ends or does not listen within START_S.
        """
        command = [*self.before, sys.executable, "-P", "-m", *self.program, "--endpoint=tcp://127.0.0.1:0"]
        variables = dict(os.environ)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            command += [f"--models-dir={folder / 'models'}", f"--cache-dir={folder / 'cache'}"]
            variables |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
            self.folder = folder
        else:
            self._temporary = tempfile.TemporaryDirectory()  # removed at the end of this object
            self.folder = Path(self._temporary.name)
        variables |= environment
        paths = (variables.get("PYTHONPATH"), str(ROOT))  # the child runs the same checkout as the caller
        variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        descriptor, name = tempfile.mkstemp(prefix="gpt2d-server-", suffix=".log", dir=self.folder)
        self.log = Path(name)
        """The file that it logs to."""
        with os.fdopen(descriptor, "wb") as log:
            self.process = subprocess.Popen([*command, *arguments], stderr=log, env=variables)
        self.endpoint = self._wait_until_listening()

    def _wait_until_listening(self) -> str:
        give_up = time.monotonic() + START_S
        while True:
            over = self.process.poll() is not None or time.monotonic() > give_up
            if found := re.search(r"listens on (\S+?),", self.logged()):
                return found[1]
            if over:
                self.kill()
                raise RuntimeError(f"the daemon did not start: {self.logged()}")
            time.sleep(0.005)

    def logged(self) -> str:
        """Return everything that it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes that run now, without the one that looks into models' files."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "server.checkpoint.inspection" not in _command(child)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it finish what streams, and return its exit code. Raises: subprocess.TimeoutExpired after STOP_S."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it if it still runs; after an error kill it, since nobody waits for its answers."""
        if self.process.poll() is not None:
            return
        if kind is None:
            self.stop()
        else:
            self.kill()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
