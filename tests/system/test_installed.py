"""The package as `pip install` leaves it: a wheel in an environment of its own, without the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from protocol.programs import MODULES, VERSION, command

pytest.importorskip("setuptools", "77", reason="the wheel is built with setuptools")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="packages are linked into the environments")

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = Path(msgspec.__file__).parent.parent
BASE = ("zmq", "pyzmq.libs", "msgspec")
"""What the package needs in any case, as it lies among the installed packages."""
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@dataclass
class Environment:
    """An environment with the wheel and some packages."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs as somebody does who has never used it."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            env={"PATH": "/usr/bin:/bin", "HOME": str(home)} | variables,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def environment(folder: Path, wheel: Path, packages: Iterable[str]) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], timeout=60, check=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    # Not by the checkout's path: there pip finds the package, and installs nothing.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, env=variables, cwd=folder, timeout=60, check=True)
    (place,) = folder.glob("lib/python*/site-packages")
    for name in packages:
        (place / name).symlink_to(PACKAGES / name)
    return Environment(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools writes beside its sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("protocol", "server", "client"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("gpt2d_commands.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    made = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(made)], cwd=sources, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = made.iterdir()
    return file


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """As `pip install .` leaves it, in a folder with a space in its name."""
    return environment(tmp_path_factory.mktemp("plain") / "my env", wheel, BASE)


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With every package that is installed here, but ours and the kernels."""
    packages = {p.name for p in PACKAGES.iterdir()} - {"protocol", "server", "client", "pip"}
    packages = {name for name in packages if "gpt2d" not in name and not name.endswith((".pth", "__pycache__"))}
    return environment(tmp_path_factory.mktemp("whole") / "env", wheel, packages)


def test_the_wheel_is_pure_and_carries_what_is_no_code(wheel: Path) -> None:
    assert wheel.name == f"gpt2d-{VERSION}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels, assets = ROOT / "server" / "kernels", ROOT / "client" / "window" / "assets"
    files = [*kernels.rglob("*"), *assets.rglob("*")]
    needed = {p for p in files if p.is_file() and p.parts[-2] not in {"__pycache__", "tests"}}
    assert len(needed) > 15 + 7 + 7
    assert {p.relative_to(ROOT).as_posix() for p in needed} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith(("scripts", "tests"))]


@pytest.mark.parametrize("program", MODULES)
def test_without_the_packages_a_command_says_what_to_type(program: str, plain: Environment) -> None:
    done = plain.run(program)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{program}: ")
    extras = "http" if program == "gpt2d-http" else "server,client"
    install = f"'{plain.bin}/python' -m pip install '.[{extras}]'"
    assert done.stderr.endswith(f" is not installed; in the checkout of gpt2d type: {install}\n")


@pytest.mark.parametrize("program", MODULES)
def test_version(program: str, whole: Environment) -> None:
    done = whole.run(program, "--version")
    assert (done.returncode, done.stdout) == (0, f"gpt2d {VERSION}\n"), done.stderr


@pytest.mark.parametrize("program", MODULES)
def test_packages_on_pythonpath_are_not_taken_for_ours(program: str, whole: Environment, tmp_path: Path) -> None:
    """As a shell's profile names a folder with another project's `server` and `client`."""
    (tmp_path / "server").mkdir()
    for name in ("server/__init__.py", "client.py", "protocol.py"):
        (tmp_path / name).write_text(f"raise SystemExit('another {name}')")
    done = whole.run(program, "--version", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"gpt2d {VERSION}\n"), done.stderr


def test_a_message_names_a_command_that_its_reader_has(whole: Environment) -> None:
    """By its name where the shell finds it, else by its path."""
    print_notices = "from server.catalogue.engines import notices; print(*notices())"
    asked = [
        (("python", "-c", print_notices), "gpt2d-server --build-kernels"),
        (("gpt2d-server", "--endpoint", "tcp://0.0.0.0:5757"), "gpt2d-keygen client NAME"),
        (("gpt2d-keygen", "server"), "gpt2d-server --endpoint tcp://0.0.0.0:5757"),
        (("gpt2d-client", "tcp://127.0.0.1:1", "--prompt", "x"), "gpt2d-server --endpoint tcp://127.0.0.1:1`"),
    ]
    for words, named in asked:
        done = whole.run(*words)
        assert f"{whole.bin}/{named}" in done.stdout + done.stderr, (words, done)
    for words, named in asked[:2]:
        done = whole.run(*words, PATH=f"{whole.bin}:/usr/bin:/bin")
        said = done.stdout + done.stderr
        assert named in said and str(whole.bin) not in said, (words, said)


def test_a_command_that_was_typed_with_a_relative_path_is_named_with_the_whole_one(whole: Environment) -> None:
    """What a daemon says is read by others, in other folders."""
    server = Path("..", "bin", "gpt2d-server")
    done = subprocess.run(
        [str(server), "--endpoint", "tcp://0.0.0.0:5757"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(whole.folder)},
        cwd=whole.folder / "lib",
        capture_output=True,
        text=True,
        timeout=60,
    )
    named = re.search(r"(\S+/gpt2d-keygen) server\n", done.stderr)
    assert named and Path(named[1]).is_absolute() and Path(named[1]).exists(), done.stderr


def test_where_the_package_is_not_installed_the_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with PYTHONPATH alone."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    assert command("gpt2d-keygen") == "'/my env/bin/python' -m server.keygen"


def test_the_kernels_are_built_from_the_installed_sources(whole: Environment) -> None:
    done = whole.run("python", "-c", "from server import build; print(build.SOURCES)")
    sources = Path(done.stdout.strip())
    assert sources.is_relative_to(whole.folder), done.stderr
    asked = set(re.findall(r"src/\w+\.cpp", (sources / "CMakeLists.txt").read_text()))
    assert len(asked) > 5 and all((sources / name).exists() for name in asked)
    done = whole.run("gpt2d-server", "--build-kernels", CXX="no-such-compiler")
    assert done.returncode == 1 and "CXX is 'no-such-compiler'" in done.stderr
