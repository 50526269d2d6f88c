"""scripts/run.py and the daemon that its commands share, as somebody at a terminal has them: in processes."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import Client, messages as m
from protocol.testing import server_info
from scripts.daemon import Daemon
from server.catalogue.engines import native_problem
from tests.client.fake import ReplicaServer
from tests.conftest import free_port, held, listener, wait_for

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60
RUN = """
import sys
from pathlib import Path
sys.argv.pop(0)  # -c
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import ending, environment, run
environment.PYTHON, environment.STATE = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
environment.prepare = lambda *_, **__: None
ending.run(run.main)
"""
"""What `python3 scripts/run.py` does once everything is installed, in the environment of these tests."""


class Runner:
    """Starts run.py on one endpoint, and ends the daemon that it leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.python = Path(sys.executable)

    def command(self, *words: str) -> list[str]:
        program = [sys.executable, "-c", RUN, str(ROOT / "scripts" / "run.py")]
        return [*program, str(self.python), str(self.folder), f"--endpoint={self.endpoint}", *words]

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        env = os.environ | {"PYTHONPATH": str(ROOT)} | pipes.pop("env", {})
        return subprocess.Popen(self.command(*words), cwd=self.folder, env=env, text=True, **pipes)

    def write(self) -> tuple[int, str]:
        """Write a text; return the exit code and what was said of it."""
        process = self.start("--prompt=Shall I", "--max-new-tokens=4")
        _, said = process.communicate(timeout=LIMIT_S)
        return process.returncode, said


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    yield runner
    if (daemon := listener(runner.endpoint)) and daemon.pid != os.getpid():
        daemon.terminate()
        daemon.wait(20)


def test_the_daemon_goes_on_for_a_while_and_the_three_lines_work(runner: Runner) -> None:
    """The folder of the environment has a space, and letters that are not ASCII."""
    runner.python = runner.folder / "a chéckout" / "python"
    runner.python.parent.mkdir()
    runner.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    runner.python.chmod(0o755)
    code, said = runner.write()
    assert code == 0, said
    daemon = listener(runner.endpoint)
    assert daemon and "--idle-exit=60" in daemon.cmdline()
    lines = dict(re.findall(r"^(the window|a terminal|a script): +(.+)$", said, re.MULTILINE))
    assert lines["a terminal"] == f"{lines['the window']} --terminal" and str(ROOT / "scripts" / "run.py") in said
    shell = subprocess.run(
        lines["a script"], shell=True, cwd=runner.folder, capture_output=True, text=True, timeout=LIMIT_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shell.returncode == 0 and shell.stdout.strip(), shell.stderr
    code, said = runner.write()
    assert code == 0 and "the window" not in said, "only the first text is followed by them"
    assert listener(runner.endpoint) == daemon


def test_several_at_once_share_one_daemon(runner: Runner) -> None:
    processes = [runner.start("--prompt=Shall I", "--max-new-tokens=4") for _ in range(3)]
    said = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    with Client(runner.endpoint) as client:
        assert client.stats().requests["generate"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pseudo-terminal")
def test_it_outlives_the_terminal_that_started_it(runner: Runner) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = runner.start("--terminal", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    read = ""
    while "/help lists the commands" not in read:
        read += os.read(ours, 4096).decode(errors="replace")
    with Client(runner.endpoint) as client:
        joined = client.hello().server_id
        os.close(ours)
        os.killpg(process.pid, signal.SIGHUP)  # what the system sends to the session's leader and its children
        process.wait(LIMIT_S)
        assert client.ping().server_id == joined


@pytest.mark.skipif(sys.platform == "win32", reason="closes a terminal as POSIX does")
def test_a_daemon_in_the_foreground_ends_its_texts_when_its_terminal_is_closed(runner: Runner) -> None:
    process = runner.start("--no-client", start_new_session=True)
    wait_for(lambda: listener(runner.endpoint) is not None)
    with Client(runner.endpoint) as client:
        client.load("demo")
        daemon = listener(runner.endpoint)
        assert daemon
        stream = client.stream("x", max_new_tokens=1000, ignore_eos=True, n=4)
        next(stream)
        with held(*daemon.children()):
            os.killpg(process.pid, signal.SIGHUP)  # what the system sends to all of its processes
            wait_for(lambda: client.ping().draining)
        list(stream)
        assert stream.result.finish_reason == "length"
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there a daemon is ended, not asked to end")
def test_a_daemon_that_is_ending_is_waited_for(runner: Runner) -> None:
    with Daemon(runner.folder / "old", "--preload=demo", "--drain-seconds=60") as old:
        runner.endpoint = old.endpoint
        with Client(old.endpoint) as client:
            client.load("demo")
            (worker,) = old.workers()
            worker.suspend()  # so that the stream takes as long as the test wants
            with client.stream("x", max_new_tokens=9):
                wait_for(lambda: client.stats().open_requests > 1)
                old.process.terminate()
                wait_for(lambda: client.ping().draining)
                process = runner.start("--prompt=Shall I", "--max-new-tokens=4")
                assert process.stderr
                first = process.stderr.readline()
                worker.resume()
        assert old.process.wait(LIMIT_S) == 0
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, first + said
    assert first == f"the daemon on {runner.endpoint} is ending; waiting for it\n"


class OlderServer(ReplicaServer):
    """A daemon that was started before there was a native engine, on this machine or on another."""

    def __init__(self) -> None:
        super().__init__()
        engines = [m.Engine(name=name, precisions=["int8"]) for name in ("onnx", "torch", "optimum")]
        self.info = server_info(engines=engines, host=platform.node())


@pytest.mark.skipif(bool(native_problem()), reason=f"needs the native engine: {native_problem()}")
def test_a_daemon_without_an_engine_that_the_checkout_has_is_named(runner: Runner) -> None:
    with OlderServer() as server:
        runner.endpoint = server.endpoint
        _, said = runner.write()
        sentence = f"the daemon on {server.endpoint} was started before this checkout had the engine native"
        assert sentence in said and f"end it with `kill {os.getpid()}` and run this again" in said
        server.info = server_info(engines=server.info.engines, host="elsewhere")
        _, said = runner.write()
        assert sentence not in said


def test_a_second_daemon_is_not_started(runner: Runner) -> None:
    with Daemon(runner.folder / "there") as daemon:
        runner.endpoint = daemon.endpoint
        port = daemon.endpoint.rpartition(":")[2]
        processes = [runner.start("--no-client"), runner.start(f"--serve=127.0.0.1:{port}")]
        alone, serve = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    end = f"end it with `kill {daemon.process.pid}`, or choose another"
    assert [process.returncode for process in processes] == [1, 1]
    assert alone == f"a daemon runs on {daemon.endpoint} already: {end} --endpoint\n"
    assert serve == f"something listens on port {port} already: {end}: --serve 127.0.0.1:PORT\n"


def test_another_program_on_the_endpoint_is_a_sentence(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        runner.endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # the listener was closed
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        code, said = runner.write()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    hangs_up = "it hangs up without a word: another program, a tunnel with no server at its end, or a server"
    assert code == 1 and said.startswith(f"something answers on {runner.endpoint}, but {hangs_up} that is full")


def test_a_daemon_that_cannot_start_says_why(runner: Runner) -> None:
    process = runner.start("--prompt=x", "--model=gpt5")
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert said.startswith("the daemon did not start; its log says:\n") and "no model 'gpt5' here" in said


def test_packages_on_pythonpath_are_not_taken_for_ours(runner: Runner) -> None:
    """As a shell's profile names a folder with another project's `server` and `client`."""
    for name in ("server", "client", "protocol"):
        package = runner.folder / "profile" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise SystemExit('another {name}')")
    for words in (["--prompt=Shall I", "--max-new-tokens=4"], ["--prompt=And"]):  # which starts a daemon, and joins it
        process = runner.start(*words, env={"PYTHONPATH": str(runner.folder / "profile")})
        text, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0 and text and "another" not in said, said


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("program", ["run.py", "test.py"])
def test_help_that_cannot_be_written_is_one_sentence(program: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / program), "--help"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # argparse hides the fault
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert done.stderr == f"{command[1]}: stdout cannot be written to: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env, text=True, timeout=LIMIT_S)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, ""), "its reader is gone, which is no fault to speak of"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_daemon_whose_line_cannot_be_printed_ends(runner: Runner) -> None:
    port = runner.endpoint.rpartition(":")[2]
    env = {"XDG_CONFIG_HOME": str(runner.folder / "config")}
    with Path("/dev/full").open("wb") as full:
        process = runner.start(f"--serve=127.0.0.1:{port}", stdout=full, env=env)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1 and "stdout cannot be written to: No space left" in said.splitlines()[-1], said
    assert "Traceback" not in said and listener(runner.endpoint) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no variable moves the folder")
def test_a_home_that_cannot_be_written_to_is_a_sentence_with_what_to_do(runner: Runner) -> None:
    """Which, done, leads on to the daemon; /proc has no room for files, whoever asks."""
    serve = f"--serve=127.0.0.1:{runner.endpoint.rpartition(':')[2]}"
    process = runner.start(serve, env={"HOME": "/proc", "XDG_CONFIG_HOME": ""})
    out, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out, said.count("\n")) == (1, "", 1)
    assert said.startswith("gpt2d-keygen: /proc/.config: ") and "another folder: XDG_CONFIG_HOME=FOLDER" in said
    process = runner.start(serve, env={"HOME": "/proc", "XDG_CONFIG_HOME": str(runner.folder)})
    assert process.stdout
    last = "Take a key back by deleting its file in the folder of authorised keys. Ctrl-C stops the server.\n"
    hint = "".join(iter(process.stdout.readline, last))
    assert "paste this line" in hint and "gpt2d-keygen client NAME --role generate --endpoint" in hint
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts as a POSIX terminal does")
@pytest.mark.parametrize("words", [["--no-client"], ["--connect=tcp://127.0.0.1:1", "--prompt=x"]])
def test_an_interrupt_before_a_program_is_ready_for_it_prints_nothing(runner: Runner, words: list[str]) -> None:
    """The interpreter is starting, as far as it can tell: it is a program that waits, and becomes the interpreter."""
    reached, go_on = (runner.folder / name for name in ("reached", "go_on"))
    os.mkfifo(reached)
    os.mkfifo(go_on)
    waits = f"import os, sys; open({str(reached)!r}, 'w').close(); open({str(go_on)!r}).close()"
    becomes = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    runner.python = runner.folder / "python"
    runner.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{waits}; {becomes}" "$@"\n')
    runner.python.chmod(0o755)
    process = runner.start(*words, start_new_session=True)
    reached.read_bytes()
    os.killpg(process.pid, signal.SIGINT)
    go_on.write_bytes(b"")
    out, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out, said) == (130, "", "")
