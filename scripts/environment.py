"""Virtual environment of this checkout. Standard library only: it runs before anything is installed.

An environment is made in place, under a lock: its scripts hold its path, so it cannot be renamed. A mark lies beside it
from the first moment until `venv` has finished. An environment with the mark is cleared and made again; any other one
is kept, whoever made it. A second command that wants it meanwhile waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import quiet
import system_packages
import torch_build

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
PYTHON = BIN / ("python.exe" if sys.platform == "win32" else "python")
LAST = BIN / "activate"
"""The file that `venv` writes last."""
STATE = ROOT / "build"
LOCK, BEGUN = STATE / "environment.lock", STATE / "environment.begun"
LOG = STATE / "install.log"
KERNELS = VENV / "installed-kernels"
NO_ZIGLANG = VENV / "no-ziglang"
"""Where this exists, the compiler of the package ziglang was declined."""
NO_COMPILER = 3
BUILT = 4
"""Exit codes of server/build.py."""
TEMPORARY = STATE / "installing"
"""Where pip unpacks: the system's temporary folder may be memory."""
LOCKED_BYTE = 4096
"""The byte that is locked on Windows, where nobody can read what is locked: behind the text."""
WAIT_S, LOOK_S = 3600.0, 0.2
ENDING_S = 20.0
CHECK_S = 60.0
PLAN_S = 240.0
OLDEST, NEWEST = (3, 11), (3, 14)
"""Versions of Python that are supported."""
CLIENT = ("requirements-client.txt",)
LIGHT = (*CLIENT, "requirements-server.txt")
EXTRAS = ("requirements-http.txt", "requirements-cluster.txt", "requirements-report.txt", "requirements-dev.txt")
FULL = ("requirements.txt", *EXTRAS)
KINDS = {CLIENT: "client", LIGHT: "light", FULL: "full"}
"""Names of the installations, each of which contains the ones before it."""
PARTS = {CLIENT: "the client", LIGHT: "daemon and client", FULL: "everything that the tests use"}


def prepare(requirements: tuple[str, ...], *, ziglang: bool = True) -> None:
    """Make .venv and install the requirements and this checkout into it, unless that has been done before.

    For a daemon the native kernels are built too, by a compiler that is fetched where there is none, unless `ziglang`
    is False now or was before. Exits with a message if this Python cannot be used or an installation fails; without
    kernels everything works, but slower.
    """
    check_python()
    if requirements != CLIENT:
        check_engines()
    read_only = not os.access(ROOT, os.W_OK)
    if _ready(requirements) and (read_only or _kernels_ready(requirements)):
        return
    with _lock() as descriptor:
        try:
            if not _ready(requirements):  # nor has the one that was waited for done it
                LOG.unlink(missing_ok=True)
                _make(descriptor)
                _install(requirements, descriptor)
            if not ziglang:
                NO_ZIGLANG.touch()
            if not _kernels_ready(requirements):
                _build_kernels(descriptor)
        except quiet.Failed as e:
            sys.exit(str(e))
        except OSError as e:
            sys.exit(f"{e.filename or VENV}: {e.strerror}; what is installed so far is kept")


def surroundings() -> dict[str, str]:
    """Return the variables of our own programs.

    A folder of PYTHONPATH comes before the installed packages, and a shell's profile may name one that has a package
    `server`, `client` or `protocol`.
    """
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _without_pythonpath() -> dict[str, str]:
    """Return the variables of venv and pip, which takes what lies on PYTHONPATH for installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def check_python() -> None:
    """Exit where this Python is too old; say so where it is newer than those that are tested."""
    version = sys.version_info[:2]
    wanted = f"Python {'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    if version < OLDEST:
        sys.exit(f"gpt2d needs {wanted}; this is {sys.version.split()[0]} ({sys.executable})")
    if version > NEWEST:
        print(f"Python {version[0]}.{version[1]} is untested: gpt2d is tested with {wanted}", file=sys.stderr)


def has_onnx_runtime() -> bool:
    """True where ONNX Runtime has a wheel; requirements-server.txt says the same."""
    return sys.version_info < (3, 15) and (sys.platform != "darwin" or platform.machine() == "arm64")


def check_engines() -> None:
    """Exit where a daemon would have no engine: neither ONNX Runtime nor anything to build our own with."""
    ziglang = sys.platform == "linux" and platform.machine() == "x86_64"
    if has_onnx_runtime() or ziglang or system_packages.compiler():
        return
    way = system_packages.command(
        "g++", "gcc-c++", "xcode-select --install", "winget install BrechtSanders.WinLibs.POSIX.UCRT"
    )
    sys.exit(
        f"no engine can run here: ONNX Runtime is not made for {quiet.MACHINE}, and our own needs a C++ compiler. "
        f"Install one ({way}), or connect to a daemon on another machine (--connect), which needs none"
    )


def _ready(requirements: tuple[str, ...]) -> bool:
    kinds = list(KINDS)
    return PYTHON.exists() and any(_installed(kind) for kind in kinds[kinds.index(requirements) :])


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    """Hold the lock of this checkout's environment; give the descriptor that holds it.

    A command that inherits the descriptor holds the lock too, so nobody else begins while an orphan still writes. Exits
    with a message where this folder cannot be written to.
    """
    try:
        STATE.mkdir(exist_ok=True)
        file = LOCK.open("a+", encoding="utf-8")
    except OSError as e:
        sys.exit(
            f"{ROOT} cannot be written to ({e.strerror}), and .venv is made in it: copy the checkout to a folder of "
            "your own, and run this there"
        )
    with file:
        _wait_for(file.fileno())
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()


def _wait_for(descriptor: int) -> None:
    """Take the lock, and say whom that waits for. Exits with a message where it takes too long."""
    began = time.monotonic()
    while not _try_lock(descriptor):
        holder = LOCK.read_text(encoding="utf-8") or "another command"
        waited = time.monotonic() - began
        if waited > WAIT_S:
            sys.exit(f"{holder} has been installing into {VENV} for too long; end it, and run this again")
        line = f"{holder} is installing into {VENV}; waiting for it"
        if sys.stderr.isatty():
            quiet.show(f"{line}: {waited:.0f} s")
        elif waited < LOOK_S:
            quiet.say(line)
        time.sleep(LOOK_S)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _make(descriptor: int) -> None:
    """Make .venv where there is none or only one that was begun; see to it that it has pip."""
    if BEGUN.exists() and LAST.exists():
        BEGUN.unlink()  # somebody has finished it by hand
    if BEGUN.exists():
        _clear()
    if not VENV.exists() or (VENV.is_dir() and not any(VENV.iterdir())):
        if importlib.util.find_spec("ensurepip") is None:
            _get_ensurepip()
        BEGUN.touch()
        command = [sys.executable, "-P", "-m", "venv", str(VENV)]
        quiet.run(command, f"making {VENV}", log=LOG, env=_without_pythonpath(), keep_open=(descriptor,))
        BEGUN.unlink()
    elif not _runs("-c", ""):
        sys.exit(f"{VENV} has no Python that works, and was not made by this command: delete it, and run this again")
    elif not _runs("-P", "-m", "pip", "--version"):
        command = [str(PYTHON), "-P", "-m", "ensurepip", "--upgrade"]
        try:
            quiet.run(command, f"adding pip to {VENV}", log=LOG, env=_without_pythonpath(), keep_open=(descriptor,))
        except quiet.Failed as e:
            sys.exit(f"{VENV} has no pip, and it cannot be added ({e}): delete {VENV}, and run this again")


def _clear() -> None:
    """Delete what an interrupted `venv` left. Exits with a message where something goes on running from it."""
    if users := _users():
        quiet.say(f"{', '.join(users)} still runs from {VENV}, which is unfinished; waiting for its end")
    give_up = time.monotonic() + ENDING_S
    while users and time.monotonic() < give_up:  # what was interrupted a moment ago
        time.sleep(LOOK_S)
        users = _users()
    if users:
        sys.exit(f"{VENV} is unfinished, but used by {', '.join(users)}; end that, and run this again")
    for entry in VENV.iterdir() if VENV.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _users() -> list[str]:
    """Return the processes that run from .venv, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(os.fsencode(f"{BIN}{os.sep}")):
                found.append(f"process {process.name}")
    return found


def _get_ensurepip() -> None:
    """Install what Debian's Python lacks to make environments, or exit with the command that does."""
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if system_packages.can_install():
        system_packages.install([package])
        return
    way = system_packages.command(
        package,
        "python3-pip python3-libs",
        "brew install python3",
        "winget install Python.Python.3.13",
    )
    sys.exit(f"this Python ({sys.executable}) cannot make virtual environments: install what it lacks first: {way}")


def _runs(*arguments: str) -> bool:
    """True if the environment's Python succeeds with these arguments."""
    command = [str(PYTHON), *arguments]
    try:
        done = subprocess.run(
            command,
            env=_without_pythonpath(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _install(requirements: tuple[str, ...], descriptor: int) -> None:
    """Install the requirements and this checkout; what an interrupted installation left is gone over again."""
    packages = "Lib/site-packages" if sys.platform == "win32" else "lib/python*/site-packages"
    for folder in VENV.glob(f"{packages}/*.dist-info"):
        if not (folder / "RECORD").exists():  # written last: pip would take the package for whole
            shutil.rmtree(folder)
    pip = [str(PYTHON), "-P", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pip += ["--progress-bar=off"]
    pip += ["--no-compile"] if requirements == FULL else []  # most of its 20,000 files are never imported
    files = [word for name in requirements for word in ("-r", str(ROOT / name))]
    steps = {
        f"installing {PARTS[requirements]} into {VENV} (once)": ["--only-binary=:all:", *files],
        "installing this checkout": ["--no-deps", "--editable", str(ROOT)],
    }
    with _temporary(_without_pythonpath()) as env:
        if requirements == FULL and sys.platform == "linux":
            torch_build.announce(PYTHON, ROOT / "requirements.txt", env)
        for doing, arguments in steps.items():
            quiet.run([*pip, *arguments], doing, log=LOG, folders=(VENV, TEMPORARY), env=env, keep_open=(descriptor,))
    _stamp(requirements).write_text(_fingerprint(requirements), encoding="utf-8")


@contextlib.contextmanager
def _temporary(variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """Give these variables to a command, with TEMPORARY for its temporary files; delete what it leaves."""
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    TEMPORARY.mkdir()
    try:
        yield {"PIP_RETRIES": "1", **variables, "TMPDIR": str(TEMPORARY), "TEMP": str(TEMPORARY)}
    finally:
        shutil.rmtree(TEMPORARY, ignore_errors=True)


def _build_kernels(descriptor: int) -> None:
    """Build the native kernels where somebody has not done so by hand and there is something to build them with.

    Where that fails, a line says so.
    """
    command = [str(PYTHON), "-P", "-m", "server.build", *(["--no-ziglang"] if NO_ZIGLANG.exists() else [])]
    planned = subprocess.run(
        [*command, "--plan"], env=surroundings(), capture_output=True, text=True, timeout=PLAN_S, check=False
    )
    if planned.returncode == NO_COMPILER:
        return  # the daemon says so, and the next command looks again
    try:
        if planned.returncode not in {0, BUILT}:
            raise quiet.Failed(planned.stderr.strip())
        if planned.returncode != BUILT:
            doing = planned.stdout.strip() + ("; --no-compiler goes without" if "ziglang" in planned.stdout else "")
            with _temporary(surroundings()) as env:
                quiet.run(command, doing, log=LOG, env=env, keep_open=(descriptor,))
    except quiet.Failed as e:
        quiet.say(f"{e}\nThe slower engine onnx is used")
        return
    KERNELS.write_text(_fingerprint_of_kernels(), encoding="utf-8")


def _kernels_ready(requirements: tuple[str, ...]) -> bool:
    """Return True if they are built of the present sources, or not needed."""
    if requirements == CLIENT:
        return True
    return KERNELS.exists() and KERNELS.read_text(encoding="utf-8") == _fingerprint_of_kernels()


def _fingerprint_of_kernels() -> str:
    """Return a text that changes with this Python and with every source of the kernels."""
    files = sorted(p for p in (ROOT / "server" / "kernels").rglob("*") if p.is_file() and p.suffix != ".pyc")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return f"{sys.version_info[:3]} {digest.hexdigest()}"


def _stamp(requirements: tuple[str, ...]) -> Path:
    return VENV / f"installed-{KINDS[requirements]}"


def _installed(requirements: tuple[str, ...]) -> bool:
    stamp = _stamp(requirements)
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _fingerprint(requirements)


def _fingerprint(requirements: tuple[str, ...]) -> str:
    """Return a text that changes with this Python and with every file that says what to install."""
    names = sorted({*requirements, *LIGHT, "pyproject.toml"})
    digest = hashlib.sha256("".join((ROOT / name).read_text(encoding="utf-8") for name in names).encode())
    return f"{sys.version_info[:3]} {ROOT} {digest.hexdigest()}"
