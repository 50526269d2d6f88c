"""Clients in other languages, written from PROTOCOL.md alone, against a real daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zmq

from scripts.daemon import ROOT, Daemon

FILES = Path(__file__).resolve().parent / "node"
INSTALLED = ROOT / "build" / "node"
"""The packages of package-lock.json, kept between runs."""
LIMIT_S = 60
COMMAND = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0")

HEADER = f"""
#include <stddef.h>
#define ZMQ_REQ {int(zmq.REQ)}
#define ZMQ_RCVTIMEO {int(zmq.RCVTIMEO)}
void *zmq_ctx_new(void);
void *zmq_socket(void *, int);
int zmq_setsockopt(void *, int, const void *, size_t);
int zmq_connect(void *, const char *);
int zmq_send(void *, const void *, size_t, int);
int zmq_recv(void *, void *, size_t, int);
"""
"""What the example takes of zmq.h, so that it is compiled where the library's headers are not installed."""


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def libraries() -> list[Path]:
    """Return the ZeroMQ that Python's package brings."""
    folder = Path(zmq.__file__).parent.parent / "pyzmq.libs"
    return sorted(folder.glob("libzmq*.so*"))


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc") or not libraries(),
    reason="needs Linux, a C compiler (Debian: apt-get install gcc) and a pyzmq that was installed by pip",
)
def test_the_example_in_c(shared_daemon: Daemon, tmp_path: Path) -> None:
    (code,) = re.findall(
        r"^```c\n(.*?)^```", (ROOT / "protocol/PROTOCOL.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "zmq.h").write_text(HEADER)
    (tmp_path / "example.c").write_text(code)
    library = libraries()[0]
    where = [f"-Wl,-rpath,{library.parent}", f"-Wl,-rpath-link,{library.parent}"]
    strict = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-I.")
    built = run("cc", *strict, "example.c", library, *where, "-o", "example", folder=tmp_path)
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "example", shared_daemon.endpoint, folder=tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def packages() -> Path:
    """Return the folder with the client in JavaScript and its packages, fetched once; skip where they cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node.js 18 or newer and npm (Debian: apt-get install nodejs npm)")
    major = int(run("node", "-p", "process.versions.node.split('.')[0]", folder=FILES).stdout)
    if major < 18:
        pytest.skip(f"needs Node.js 18 or newer, and this is {major}")
    lock = (FILES / "package-lock.json").read_bytes()
    mark = INSTALLED / "package-lock.json"
    if not mark.exists() or mark.read_bytes() != lock:
        INSTALLED.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=INSTALLED.parent, prefix="node-") as begun:
            fresh = Path(begun) / "node"
            shutil.copytree(FILES, fresh)
            try:
                fetched = run(*COMMAND, folder=fresh)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm could not fetch the packages of package-lock.json within {LIMIT_S} s")
            if fetched.returncode:
                why = "; ".join(fetched.stderr.splitlines()[:3])
                pytest.skip(f"npm could not fetch the packages of package-lock.json: {why}")
            shutil.rmtree(INSTALLED, ignore_errors=True)
            fresh.rename(INSTALLED)
    shutil.copy(FILES / "client.js", INSTALLED)
    return INSTALLED


@pytest.mark.skipif(sys.platform == "win32", reason="npm is a script of the shell there")
def test_a_client_in_javascript(shared_daemon: Daemon) -> None:
    done = run("node", "client.js", shared_daemon.endpoint, folder=packages())
    assert (done.returncode, done.stdout) == (0, "all of it holds\n"), done.stderr
