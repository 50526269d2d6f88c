#!/usr/bin/env python3
"""Run every check and test: install everything into .venv, then ruff, mypy and import-linter at once, then pytest.

python3 scripts/test.py                     all of it: two tests at a time, then those that need the machine alone
python3 scripts/test.py tests/protocol -x   the checks, and pytest with these arguments, one test at a time
"""

from __future__ import annotations

import sys

try:
    import contextlib
    import shutil
    import subprocess
    import sysconfig
    import tempfile
    import time
    from collections.abc import Iterable
    from pathlib import Path
    from typing import IO

    import ending
    import environment
    import system_packages
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

PRODUCT = ("gpt2d_commands.py", "protocol", "server", "client")
SOURCES = (*PRODUCT, "scripts", "tests")
ALONE = tuple(
    f"scripts/{name}.py" for name in ("run", "test", "environment", "shared_daemon", "ending", "own_addresses")
)
"""Files that run before anything is installed and import each other as top-level modules: mypy checks them apart."""
MYPY = ["-m", "mypy", "--strict", "--explicit-package-bases"]
PROGRAMS = {
    "Xvfb": "xvfb", "openbox": "openbox", "xdotool": "xdotool", "ip": "iproute2", "g++": "g++", "objdump": "binutils",
}  # fmt: skip
"""Programs that the native engine's build and tests, the window's tests and those of two hosts use, and their Debian
packages.
"""
OPTIONAL = (
    {"node": "nodejs", "npm": "npm"},
    {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"},
)
"""Programs of a test each, which is skipped where they cannot be installed."""
FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
CHECKS = (
    ("ruff check", ["-m", "ruff", "check", "."]),
    ("ruff format", ["-m", "ruff", "format", "--check", "."]),
    ("mypy", [*MYPY, *SOURCES, "--exclude", f"^({'|'.join(ALONE)})$"]),
    ("mypy of scripts/test.py", [*MYPY, "--cache-dir", ".mypy_cache/scripts", *ALONE]),
    ("mypy for Windows", [*MYPY, "--platform", "win32", "--cache-dir", ".mypy_cache/windows", *PRODUCT, *ALONE]),
    ("import-linter", ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]),
)
PHASES = (
    ("pytest, two tests at a time", ["-n", "2", "--dist", "loadfile", "-m", "not alone"]),
    ("pytest, those that need the machine alone", ["-m", "alone"]),
)
VARIABLES = {
    name: {"MYPYPATH": str(environment.ROOT / "scripts")} for name in ("mypy of scripts/test.py", "mypy for Windows")
}
"""Variables of the environment that a check needs."""
UNWANTED = "PYTHONDONTWRITEBYTECODE"
"""The variable that would have each of the many processes that the tests start compile this checkout again."""
END_S = 60.0
"""Seconds that a command has to end what it started, after Ctrl-C."""


def missing_of(programs: dict[str, str]) -> list[str]:
    """Return the Debian packages of the programs that are not here."""
    return [package for program, package in programs.items() if not shutil.which(program)]


def install_programs() -> None:
    """Install what is missing where that can be done; elsewhere name it, and that its tests are skipped."""
    missing = missing_of(PROGRAMS)
    missing += [] if FONT.exists() else ["fonts-dejavu-core"]
    if sys.base_prefix == "/usr" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append(f"libpython{sys.version_info[0]}.{sys.version_info[1]}-dev")
    if missing and system_packages.can_install():
        system_packages.install(missing)
        missing = []
    for optional in filter(None, map(missing_of, OPTIONAL)):
        if not system_packages.can_install():
            missing += optional
            continue
        try:
            system_packages.install(optional)
        except (SystemExit, subprocess.TimeoutExpired) as e:
            print(e, file=sys.stderr)
            missing += optional
    if missing:
        print(f"without {' '.join(missing)} (Debian's names) the tests that need them are skipped", file=sys.stderr)


def start(name: str, arguments: list[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    variables = environment.surroundings() | VARIABLES.get(name, {})
    variables.pop(UNWANTED, None)
    command = [str(environment.PYTHON), *arguments]
    error = subprocess.STDOUT if output else None
    return subprocess.Popen(command, cwd=environment.ROOT, env=variables, stdout=output, stderr=error)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command that Ctrl-C has reached too: it has to end what it started."""
    try:
        process.wait(END_S)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.kill()
        process.wait()


def check() -> list[str]:
    """Run the checks at once, the output of each kept apart; return the names of those that failed."""
    failed = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        running = []
        for name, arguments in CHECKS:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = start(name, arguments, output)
            stack.callback(end, process)
            running.append((name, process, output))
        for name, process, output in running:
            code = process.wait()
            print(f"--- {name}", flush=True)
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
            print(f"--- {name}: {'failed' if code else 'ok'}", flush=True)
            failed += [name] if code else []
    print(f"--- checks: {time.monotonic() - began:.0f} s", flush=True)
    return failed


def test(phases: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Run phases of the tests one after the other; return the names of those that failed."""
    failed = []
    for name, arguments in phases:
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        process = start(name, ["-m", "pytest", *arguments])
        try:
            code = process.wait()
        finally:
            end(process)
        print(f"--- {name}: {'failed' if code else 'ok'} ({time.monotonic() - began:.0f} s)", flush=True)
        failed += [name] if code else []
    return failed


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    if sys.platform == "linux":
        install_programs()
    environment.prepare(environment.FULL)
    failed = check()
    failed += test([("pytest", sys.argv[1:])] if sys.argv[1:] else PHASES)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    ending.run(main)
