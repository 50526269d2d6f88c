"""The README's blocks do what they say, and those of the pages that it leads to."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import msgpack
import pytest
import zmq

from protocol import Client, codec, messages as m
from protocol.programs import VERSION
from scripts.bench.engine import module_environment
from scripts.daemon import Daemon
from tests.conftest import free_port, listener, wait_for

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
TWO_MACHINES = (ROOT / "docs" / "two-machines.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "protocol" / "PROTOCOL.md").read_text(encoding="utf-8")
DEFAULT = "tcp://127.0.0.1:5757"
LINES = ["the window", "a terminal", "a script"]


def blocks(text: str, kind: str) -> list[str]:
    """Return the bodies of the fenced blocks whose opening line is `kind`."""
    parts = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)
    # Text, opening line, body, closing line, text, ...
    found = [body for info, body in zip(parts[1::4], parts[2::4], strict=True) if info == kind]
    assert found, f"no {kind!r} block"
    return found


def written_by(page: str, shared_daemon: Daemon) -> str:
    """Run the page's script against this daemon, and return what it printed."""
    (code,) = blocks(page, "python")
    assert DEFAULT in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace(DEFAULT, shared_daemon.endpoint)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_script(shared_daemon: Daemon) -> None:
    printed = written_by(README, shared_daemon)
    assert len(printed) > 60 and float(printed.split()[-1]) > 1


def test_the_longer_script(shared_daemon: Daemon) -> None:
    assert re.search(r"\d+\.\d ms, \d+ tokens/s", written_by(SCRIPTS, shared_daemon))


def test_the_readme_is_short() -> None:
    """A stranger reads it in a minute; lines fit a terminal, but for rows of tables."""
    lines = README.splitlines()
    assert len(lines) < 150
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!"))] == []
    pictures = [ROOT / path for path in re.findall(r"!\[.*\]\((.*)\)", README)]
    assert pictures and sum(picture.stat().st_size for picture in pictures) < 3_000_000


def test_the_speeds_are_those_that_were_measured() -> None:
    section = README.split("## How fast it is\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert len(table) > 5 and "\n".join(table) in PERFORMANCE


def test_hello_tells_the_version(client: Client) -> None:
    assert client.hello().version == VERSION


def test_the_sample_is_what_its_seed_gives(client: Client) -> None:
    (line,) = blocks(README, "bash")
    (sample,) = blocks(README, "text sample")
    found = re.search(r'--prompt "(.*)" --max-new-tokens (\d+) --seed (\d+)', line)
    assert found
    prompt, number = found[1], int(found[2])
    written = client.generate(prompt, max_new_tokens=number, seed=int(found[3]), engine="native", precision="int8")
    assert prompt + written.text.rstrip() == sample.rstrip()


def test_the_test_of_a_script() -> None:
    (code,) = blocks(SCRIPTS, "python fake")
    exec(code, {})


def test_every_extra_that_is_named_exists_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for names in re.findall(r"'\.\[([\w,-]+)\]'", INSTALL) for name in names.split(",")}
    assert named == project["optional-dependencies"].keys()


def test_the_three_lines(shared_daemon: Daemon) -> None:
    (code,) = blocks(PROTOCOL, "python")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.rcvtimeo = 20_000
    socket.linger = 0
    socket.connect(shared_daemon.endpoint)
    printed: list[str] = []
    exec(code, {"socket": socket, "msgpack": msgpack, "print": printed.append})
    assert len(code.splitlines()) == 3 and len(printed) == 1 and printed[0]
    context.destroy(linger=0)


def test_the_worked_bytes() -> None:
    request = m.Generate(id=7, prompt="Hi", temperature=0.5, seed=1)
    reply = m.Tokens(id=7, seq=0, text="!", ids=[0])
    for listing, encoded in zip(blocks(PROTOCOL, ""), (codec.encode(request), codec.encode(reply)), strict=True):
        pairs = [w for line in listing.splitlines() for w in re.split(r'\s+("|map)', line)[0].split()]
        assert bytes.fromhex("".join(pairs)) == encoded


def run(line: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    words[0] = {".venv/bin/gpt2d-client": str(Path(sys.executable).parent / "gpt2d-client")}.get(words[0], words[0])
    command = [*words, "--endpoint", endpoint] if words[0] == "python3" else [words[0], endpoint, *words[1:]]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110, check=False
    )


def test_the_command_that_scores_a_file(shared_daemon: Daemon, tmp_path: Path) -> None:
    found = re.search(r"`gpt2d-client (score \S+ [^`]+)`", README)
    assert found
    words = found[1].split()
    (tmp_path / words[1]).write_text("Shall I compare thee\nNow is the winter\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "client", *words, "--connect", shared_daemon.endpoint]
    done = subprocess.run(command, cwd=tmp_path, env=module_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / words[-1]).read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + 8 and "winter" in table[-1]


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="run.py would install everything into a new .venv")
def test_the_first_command() -> None:
    """The command starts a daemon and writes; the daemon goes on for a while."""
    (line,) = blocks(README, "bash")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    done = run(line.strip(), endpoint)
    daemon = listener(endpoint)
    assert daemon, done.stderr
    try:
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 60
        ledger = r"\[inference \d+ ms: .* 5 \+ 60 tokens, .*; demo/native/int8, length, seed \d+\]"
        assert re.search(ledger, done.stderr)
        assert re.findall("^(the window|a terminal|a script): ", done.stderr, re.MULTILINE) == LINES
    finally:
        daemon.terminate()
        daemon.wait(20)


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="run.py would install everything into a new .venv")
def test_a_running_daemon_is_used_and_left_running(shared_daemon: Daemon) -> None:
    before = len(shared_daemon.logged())
    done = run("python3 scripts/run.py --prompt x --max-new-tokens 3", shared_daemon.endpoint)
    assert done.returncode == 0, done.stderr
    assert shared_daemon.process.poll() is None
    wait_for(lambda: "generate demo/native/int8 length" in shared_daemon.logged()[before:])


def test_the_client_command(shared_daemon: Daemon) -> None:
    (block,) = blocks(SCRIPTS, "bash daemon")
    start, ask = block.splitlines()
    assert start == ".venv/bin/gpt2d-server --preload demo"
    done = run(ask, shared_daemon.endpoint)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert run(ask, shared_daemon.endpoint).stdout == done.stdout, "a seed fixes the text"
