#!/usr/bin/env python3
"""Run every check and test: install everything into .venv, then ruff, mypy, import-linter, pytest.

python3 scripts/test.py                     all of it
python3 scripts/test.py tests/protocol -x   the checks, and pytest with these arguments
"""

from __future__ import annotations

import sys

try:
    import shutil
    import subprocess
    import sysconfig
    import time
    from pathlib import Path

    import ending
    import environment
    import system_packages
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

SOURCES = ("gpt2d_commands.py", "protocol", "server", "client", "scripts", "tests")
ALONE = tuple(
    f"scripts/{name}.py" for name in ("run", "test", "environment", "shared_daemon", "ending", "own_addresses")
)
"""Files that run before anything is installed and import each other as top-level modules: mypy checks them apart."""
MYPY = ["-m", "mypy", "--strict", "--explicit-package-bases"]
PROGRAMS = {"Xvfb": "xvfb", "openbox": "openbox", "xdotool": "xdotool", "ip": "iproute2", "g++": "g++"}
"""Programs that the native engine's build, the window's tests and those of two hosts use, and their Debian packages."""
OPTIONAL = {"node": "nodejs", "npm": "npm"}
"""Programs of one test, which is skipped where they cannot be installed."""
FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
CHECKS = (
    ("ruff check", ["-m", "ruff", "check", "."]),
    ("ruff format", ["-m", "ruff", "format", "--check", "."]),
    ("mypy", [*MYPY, *SOURCES, "--exclude", f"^({'|'.join(ALONE)})$"]),
    ("mypy of scripts/test.py", [*MYPY, *ALONE]),
    ("import-linter", ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]),
)
VARIABLES = {"mypy of scripts/test.py": {"MYPYPATH": str(environment.ROOT / "scripts")}}
"""Variables of the environment that a check needs."""


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
    optional = missing_of(OPTIONAL)
    if optional and system_packages.can_install():
        try:
            system_packages.install(optional)
            optional = []
        except (SystemExit, subprocess.TimeoutExpired) as e:
            print(e, file=sys.stderr)
    missing += optional
    if missing:
        print(f"without {' '.join(missing)} (Debian's names) the tests that need them are skipped", file=sys.stderr)


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    if sys.platform == "linux":
        install_programs()
    environment.prepare(environment.FULL)
    python = str(environment.PYTHON)
    failed = []
    for name, arguments in (*CHECKS, ("pytest", ["-m", "pytest", *sys.argv[1:]])):
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        variables = environment.surroundings() | VARIABLES.get(name, {})
        code = subprocess.run([python, *arguments], cwd=environment.ROOT, env=variables, check=False).returncode
        print(f"--- {name}: {'failed' if code else 'ok'} ({time.monotonic() - began:.0f} s)", flush=True)
        if code:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    ending.run(main)
