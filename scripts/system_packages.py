"""What the operating system brings: the commands that install it, and running them. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

APT_S = 1200
ASK_S = 60


def is_root() -> bool:
    """True for the user who may install packages."""
    return sys.platform != "win32" and os.geteuid() == 0


def command(debian: str, fedora: str, macos: str, windows: str) -> str:
    """Return the command that installs something here: packages of Debian and Fedora, whole commands of the others.

    On a Linux that is related to neither, both are named.
    """
    if sys.platform == "darwin":
        return macos
    if sys.platform == "win32":
        return windows
    sudo = "" if is_root() else "sudo "
    ways = {"debian": f"{sudo}apt install {debian}", "fedora": f"{sudo}dnf install {fedora}"}
    relatives = _distribution()
    return next(
        (way for name, way in ways.items() if name in relatives),
        f"{ways['debian']} (Debian, Ubuntu), {ways['fedora']} (Fedora)",
    )


def _distribution() -> list[str]:
    """Return the names of this Linux and of those that it descends from."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return []
    return [release.get("ID", ""), *release.get("ID_LIKE", "").split()]


def compiler() -> str | None:
    """Return the command of a C++ compiler; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = name and shutil.which(name)
        # macOS has programs of these names that only ask for the compiler to be installed.
        if (
            path
            and subprocess.run([path, "--version"], capture_output=True, timeout=ASK_S, check=False).returncode == 0
        ):
            return path
    return None


def can_install() -> bool:
    """True on Debian and its relatives, as root."""
    return is_root() and shutil.which("apt-get") is not None


def install(packages: list[str]) -> None:
    """Install Debian packages. Exits with a message where apt-get fails."""
    print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *words],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=APT_S,
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-10:])
            sys.exit(f"{last}\n`apt-get {' '.join(words)}` failed; the lines above say why")
