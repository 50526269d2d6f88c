"""The judge: a process of transformers 5 in an environment of its own, which is made once."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from scripts.checkpoints.judge import Answer
from scripts.checkpoints.kind import Kind

ROOT = Path(__file__).resolve().parents[2]
TRANSFORMERS = "5.24.0"
PACKAGES = (f"transformers=={TRANSFORMERS}", "sentencepiece", "protobuf")
ALONE = ("peft", "accelerate", "psutil")
"""Packages that are installed without what they ask for: they would fetch a second torch."""
OURS = "made-by-gpt2d"
"""A file that says that an environment was made here, and may be made again."""
INSTALL_S = 1200.0
ANSWER_S, STOP_S = 120.0, 10.0


class JudgeFailed(Exception):
    """The judge's process ended, or does not answer."""


def judges_python(folder: Path) -> Path:
    """Return the Python of the environment in `folder`, which is made where it does not fit.

    Its torch is that of the environment that this runs in. Raises: SubprocessError; OSError, also where somebody else's
    files are in that folder: only an environment that was made here is made again.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if _fits(python):
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / OURS).exists():
        raise OSError(f"{folder} has files, and no Python with transformers {TRANSFORMERS}: name another folder")
    print(f"making {folder} with transformers {TRANSFORMERS} (once; minutes)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=INSTALL_S)
    (folder / OURS).touch()
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES], check=True, timeout=INSTALL_S, stdout=sys.stderr)
    subprocess.run([*pip, "--no-deps", *ALONE], check=True, timeout=INSTALL_S, stdout=sys.stderr)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([str(python), "-c", ask], check=True, timeout=60, capture_output=True, text=True)
    # Its own packages come first on the path; the name sorts behind theirs.
    Path(packages.stdout.strip(), "zz-torch.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    if not _fits(python):
        raise OSError(f"{folder} was made, but its Python does not import torch and transformers {TRANSFORMERS}")
    return python


def _fits(python: Path) -> bool:
    code = "import sys, peft, sentencepiece, torch, transformers; sys.exit(transformers.__version__ != sys.argv[1])"
    command = [str(python), "-c", code, TRANSFORMERS]
    return python.exists() and subprocess.run(command, check=False, timeout=120, capture_output=True).returncode == 0


class Judge:
    """The judge's process. A context manager: it ends with it."""

    def __init__(self, python: Path, log: Path) -> None:
        """Start it; what its libraries say goes to `log`. Raises: OSError."""
        command = [str(python), "-m", "scripts.checkpoints.judge"]
        # It reads folders alone, and asks no hub whether there is more of them.
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT, env=variables
            )
        self._log = log
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, folder: Path, kind: Kind) -> None:
        """Ask about a folder, and do not wait for the answer. Raises: JudgeFailed."""
        assert self._process.stdin
        try:
            order = {"folder": str(folder), "texts": kind.texts, "prompts": kind.prompts}
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except OSError as e:
            raise JudgeFailed(f"the judge's process ended ({e}); its log is {self._log}") from None

    def answer(self) -> Answer | str:
        """Return the answer to the question before, or what transformers raised. Raises: JudgeFailed."""
        try:
            line = self._lines.get(timeout=ANSWER_S)
        except queue.Empty:
            line = ""
        if not line:
            raise JudgeFailed(f"the judge ended, or did not answer in {ANSWER_S:.0f} s; its log is {self._log}")
        found = json.loads(line)
        return str(found["error"]) if "error" in found else cast("Answer", found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
