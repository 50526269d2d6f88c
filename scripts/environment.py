"""Virtual environment of this checkout. Standard library only: it runs before anything is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST, NEWEST = (3, 11), (3, 14)
"""Versions of Python that are supported; pyproject.toml says the same."""
CLIENT = ("requirements-client.txt",)
LIGHT = (*CLIENT, "requirements-server.txt")
FULL = ("requirements.txt", "requirements-cluster.txt", "requirements-report.txt", "requirements-dev.txt")
KINDS = {CLIENT: "client", LIGHT: "light", FULL: "full"}
"""Names of the installations, each of which contains the ones before it."""


def prepare(requirements: tuple[str, ...]) -> None:
    """Make .venv and install the requirements and this checkout into it, unless that has been done before.

    Exits with a message if this Python cannot be used or an installation fails.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        wanted = f"Python {'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
        sys.exit(f"gpt2d needs {wanted}; this is {sys.version.split()[0]} ({sys.executable})")
    if PYTHON.exists() and any(_installed(kind) for kind in list(KINDS)[list(KINDS).index(requirements) :]):
        return
    if not PYTHON.exists():
        if importlib.util.find_spec("ensurepip") is None:
            install_debian_packages([f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"])
        print(f"making {VENV}", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", str(VENV)], "the virtual environment could not be made")
    print(f"installing {' and '.join(requirements)} into {VENV} (once)", file=sys.stderr, flush=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    files = [word for name in requirements for word in ("-r", str(ROOT / name))]
    _run([*pip, *files], "the requirements could not be installed")
    _run([*pip, "--quiet", "--no-deps", "--editable", str(ROOT)], "this checkout could not be installed")
    _stamp(requirements).write_text(_fingerprint(requirements))


def install_debian_packages(packages: list[str]) -> None:
    """Install packages with apt-get on Debian as root; elsewhere exit and name them."""
    names = " ".join(packages)
    apt = shutil.which("apt-get")
    if not apt or os.name == "nt" or os.geteuid() != 0:
        sys.exit(f"please install first: {names} (Debian's names; as root: apt-get install {names})")
    print(f"installing {names}", file=sys.stderr, flush=True)
    _run([apt, "update", "-qq"], "apt-get update failed")
    _run([apt, "install", "-y", "-qq", "--no-install-recommends", *packages], "apt-get install failed")


def install_for_tests(packages: dict[str, str]) -> None:
    """Install {program: Debian package} where a program is missing and apt-get can be used.

    Elsewhere name what is missing, and that its tests are skipped.
    """
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if missing and shutil.which("apt-get") and os.name != "nt" and os.geteuid() == 0:
        install_debian_packages(missing)
    elif missing:
        print(f"without {' '.join(missing)} (Debian's names) the tests that need them are skipped", file=sys.stderr)


def _stamp(requirements: tuple[str, ...]) -> Path:
    return VENV / f"installed-{KINDS[requirements]}"


def _installed(requirements: tuple[str, ...]) -> bool:
    stamp = _stamp(requirements)
    return stamp.exists() and stamp.read_text() == _fingerprint(requirements)


def _fingerprint(requirements: tuple[str, ...]) -> str:
    """Return a text that changes with this Python and with every file that says what to install."""
    kernels = [
        str(p.relative_to(ROOT)) for p in (ROOT / "server" / "kernels").rglob("*") if p.is_file() and p.suffix != ".pyc"
    ]
    names = sorted({*requirements, *LIGHT, "pyproject.toml", *kernels})
    digest = hashlib.sha256("".join((ROOT / name).read_text(encoding="utf-8") for name in names).encode())
    return f"{sys.version_info[:3]} {ROOT} {digest.hexdigest()}"


def _run(command: list[str], problem: str) -> None:
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"{problem}; the lines above say why. The command was: {' '.join(command)}")
