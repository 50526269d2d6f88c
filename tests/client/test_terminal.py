"""The terminal client: one-shot, commands, Ctrl-C, at a real daemon."""

from __future__ import annotations

import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import pytest

from client import servers
from client.history import open_history
from client.listings import ledger
from client.terminal import Choice, Terminal
from protocol import Client, messages as m
from protocol.errors import BadModel, BadRequest, UnknownModel
from protocol.keys import Address, CurveKeys, write_secret
from protocol.testing import FakeServer, generated
from scripts.daemon import Daemon
from scripts.reliability.daemon import Behaviour, FakeDaemon
from tests.client.fake import ReplicaServer

LEDGER = re.compile(
    r"\[inference \d+ ms: prefill \d+ \+ decode \d+; 5 \+ \d+ tokens, \d+ tokens/s( with [\d.]+ of \d+ threads)?; "
    r"first token \d+ ms; demo/native/int8, length, seed 1\]"
)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PROMPT = "Shall I compare thee"
ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def terminal(shared_daemon: Daemon) -> Iterator[Terminal]:
    with Terminal(Address(shared_daemon.endpoint)) as terminal:
        terminal.start(terminal.meet(), Choice("demo"), [], hint=False)
        yield terminal


def test_one_shot(shared_daemon: Daemon, client: Client) -> None:
    expected = client.generate(PROMPT, seed=1, max_new_tokens=30)
    assert expected.ledger.prompt_tokens == 5
    for done in (
        run(shared_daemon.endpoint, "--prompt", PROMPT, "--set", "seed=1", "-n", "30"),
        run(shared_daemon.endpoint, "--set", "seed=1", "--max-new-tokens", "30", stdin=PROMPT + "\n"),
    ):
        assert done.returncode == 0
        assert done.stdout == expected.text + "\n", "a pipe gets the text alone"
        assert LEDGER.search(done.stderr)


def test_several_continuations_come_one_after_the_other(shared_daemon: Daemon, client: Client) -> None:
    """By the address alone, and with a list that is given in parts."""
    settings: dict[str, Any] = {"seed": 1, "n": 3, "max_new_tokens": 30}
    expected = client.generate(PROMPT, stop=["the ", "\n\n"], **settings)
    texts = [expected.text, *(other.text for other in expected.others)]
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    address = shared_daemon.endpoint.removeprefix("tcp://")
    done = run(address, "-p", PROMPT, *words, "--set", "stop=the ", "--set", "stop=\\n\\n")
    assert done.stdout == "".join(f"{text}\n" for text in texts) and len({*texts}) > 1
    assert "continuation 2 of 3:\ncontinuation 3 of 3:\n" in done.stderr


def test_one_shot_errors_are_sentences(shared_daemon: Daemon) -> None:
    for arguments, says in (
        (["tcp://127.0.0.1:1", "-p", "x"], "gpt2d-server"),
        ([shared_daemon.endpoint, "-p", "x", "--model", "gpt5"], "no model 'gpt5'"),
        (
            [shared_daemon.endpoint, "-p", "x", "--set", "temperature=hot"],
            "temperature must be a number, got 'hot'",
        ),
        ([shared_daemon.endpoint, "-p", "x", "--set", "temperature=-1"], "temperature must be a number >= 0"),
        (
            [shared_daemon.endpoint, "-p", "x", "--max-new-tokens", "0"],
            "gpt2d-client: generate: max_new_tokens must be a whole number >= 1\n",
        ),
        (
            [shared_daemon.endpoint, "-p", "x", "--set", "heat=1"],
            "no setting 'heat'; the settings are: n, deterministic,",
        ),
        (
            [shared_daemon.endpoint, "-p", "x", "--set", "max_tokens=5"],
            "no setting 'max_tokens'; did you mean max_new_tokens?\n",
        ),
        (["nonsense", "-p", "x"], "no server 'nonsense' is saved"),
        (["host/1", "-p", "x"], "not an endpoint"),
        (["127.0.0.1:1", "-p", "x"], "nobody listens on tcp://127.0.0.1:1"),
    ):
        done = run(*arguments)
        assert done.returncode and says in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes it as a POSIX shell does")
@pytest.mark.parametrize("words", [["--terminal"], ["-", "-p", "x"]])
def test_a_closed_stdin_is_said(words: list[str]) -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    done = subprocess.run([*shell, sys.executable, "-m", "client", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode and "stdin is closed" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_commands(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    def says(line: str) -> str:
        assert terminal.do(line)
        return capsys.readouterr().err

    assert "/load MODEL" in says("/help")
    assert re.search(r"demo +6\.\d M parameters, context 1024\n +native int8 \(\d+ MB, loaded", says("/models"))
    assert "demo/native/int8" in says("/stats")
    settings = says("/set")
    assert "0 to 100" in settings
    assert re.search(r"logprobs +off ", settings) and re.search(r"seed +new each time ", settings)
    says("/set temperature 0.7")
    says("/set seed 1")
    says("/set stop \\n\\n")
    assert re.search(r"temperature +0\.7 ", says("/set"))
    assert re.search(r"stop +\['\\n\\n'\] ", says("/set"))
    says("/set logit_bias 5:2.5,7:-1")
    assert "[(5, 2.5), (7, -1.0)]" in says("/set")
    assert re.search(r"\d+ tokens, perplexity \d+\.\d, \d\.\d\d bits per byte", says("/score Shall I compare thee"))
    assert re.fullmatch(r"('.+?'=\d+ ?)+\n", says("/tokens Shall I compare thee"))
    says("/set logprobs 3")
    assert re.search(r"first token .*\n( +'.+' +\d+%   '.+' \d+%, .*\n)+", says("Shall I"))
    says("/set temperature")
    assert re.search(r"temperature +1\.0 ", says("/set"))
    with pytest.raises(ValueError, match="no setting"):
        terminal.do("/set heat 3")
    with pytest.raises(ValueError, match="not a command"):
        terminal.do("/sing")
    with pytest.raises(UnknownModel):
        terminal.do("/load gpt5")
    with pytest.raises(ValueError, match=r"no engine or precision 'int3'; it has the engines native, .*/models lists"):
        terminal.do("/load demo int3")
    for words in ("int8 int4", "native onnx"):
        with pytest.raises(ValueError, match=f"'{words.split()[1]}' is one too many"):
            terminal.do(f"/load demo {words}")
    assert says("/load demo native int8") == "demo/native/int8 is loaded already; what you write goes to it\n"
    with pytest.raises(BadRequest, match="is loaded with a KV cache of int8, not of fp16; unload it first"):
        terminal.do("/load demo native cache=fp16 int8")
    with pytest.raises(BadModel, match="native at int8 has no KV cache of 'q8_0'; it can be: int8, fp16"):
        terminal.do("/measure demo native int8 cache=q8_0")
    told = says("/calibrate demo")
    assert re.search(r"^this takes about \d+ s; Ctrl-C stops it", told), told
    assert re.search(r"demo/native/int4 is calibrated \(\d MB, \d+ s\); the next load takes it", told), told
    assert re.search(
        r"demo/native/int4 against full precision, over 4096 tokens: perplexity \d+\.\d\d \([+-]0\.\d\d %\)",
        says("/measure demo native int4"),
    )
    assert re.search(r"int4 \(\d+ MB, perplexity [+-]0\.\d\d %\)", says("/models"))
    terminal.do("/set top_p 7")
    with pytest.raises(BadRequest, match="top_p"):
        terminal.do("x")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/load", "'/load' is not how /load is written; /help shows it"),
        ("/unload a b", "'/unload a b' is not how /unload is written"),
        ("/quite", "'/quite' is not a command; /help lists them"),
        ("/MODEL", "'/MODEL' is not a command"),
    ],
)
def test_a_command_with_too_few_or_too_many_words_is_one(terminal: Terminal, line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        terminal.do(line)


def test_an_empty_line_goes_on(terminal: Terminal, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.do("/set strategy greedy")
    terminal.do("/set max_new_tokens 8")
    terminal.do(PROMPT)
    terminal.do("")
    first = client.generate(PROMPT, strategy="greedy", max_new_tokens=8).text
    second = client.generate(PROMPT + first, strategy="greedy", max_new_tokens=8).text
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_load_and_unload(own_daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(Address(own_daemon.endpoint)) as terminal:
        terminal.start(terminal.meet(), Choice(), [], hint=True)
        assert "try /load demo" in capsys.readouterr().err
        terminal.do("/load demo fp32")
        assert re.search(r"demo/native/fp32 loaded in \d\.\d s, \d+ MB, \d threads", capsys.readouterr().err)
        terminal.do("x")
        assert "demo/native/fp32, length" in capsys.readouterr().err
        terminal.do("/unload demo")
        assert "unloaded demo/native/fp32" in capsys.readouterr().err


def test_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    with ReplicaServer() as server, Terminal(Address(server.endpoint)) as terminal:

        def says(line: str) -> str:
            assert terminal.do(line)
            return capsys.readouterr().err

        terminal.start(terminal.meet(), Choice("demo"), [], hint=False)
        assert "demo/native/int8 loaded in 0.1 s, 42 MB, 2 threads\n" in capsys.readouterr().err
        assert "demo/native/int8: 3 requests" in says("/stats") and "loaded)" in says("/models")
        assert says("/load demo replicas=5 native int8") == "demo/native/int8: 5 replicas\n"
        assert "int8 (149 MB, loaded in 5 replicas: 2 on alpha, 2 on beta, 1 on gamma)" in says("/models")
        assert re.findall(r"demo/native/int8 replica (\d) on (\w+): 3 requests", says("/stats")) == [
            ("0", "alpha"), ("1", "beta"), ("2", "gamma"), ("3", "alpha"), ("4", "beta"),
        ]  # fmt: skip
        terminal.start(terminal.meet(), Choice(), [], hint=True)
        assert "loaded: demo/native/int8 in 5 replicas: 2 on alpha, 2 on beta, 1 on gamma\n" in capsys.readouterr().err
        says("/load demo compile")
        assert [load.replicas for load in server.asked(m.Load)] == [None, 5, None]
        for words in ("replicas=0", "replicas=65", "replicas=", "replicas=many"):
            with pytest.raises(ValueError, match="a whole number from 1 to 64"):
                terminal.do(f"/load demo {words}")
        with pytest.raises(ValueError, match="no engine or precision 'replicas=2'"):
            terminal.do("/load demo replicas=2 replicas=2")
        says("/unload demo")
        assert "loaded in 0.1 s, 2 replicas of 42 MB, 2 threads" in says("/load demo replicas=2")


@pytest.fixture
def slow_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with demo/native/int8, a fake one, whose text of a thousand tokens takes 20 s."""
    with FakeDaemon(tmp_path / "daemon", Behaviour(delay_ms=20)) as daemon:
        with Client(daemon.endpoint) as client:
            client.load("demo")
        yield daemon


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_real_terminal(slow_daemon: Daemon, tmp_path: Path) -> None:
    """Prompt, stream, Ctrl-C cancels, /quit; then the history of the last session, Ctrl-D."""
    import pty

    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path), "TERM": "xterm"}
    history = tmp_path / "gpt2d" / "history"

    def session(keys: list[tuple[str, bytes | int]], code: int = 0) -> str:
        """Wait for each pattern in what came since the last keys, then type the keys or send the signal."""
        main, child = pty.openpty()
        command = [sys.executable, "-m", "client", "--terminal", slow_daemon.endpoint]
        process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
        )
        os.close(child)
        everything, new = "", ""
        for wanted, action in keys:
            give_up = time.monotonic() + 60
            while not re.search(wanted, CONTROL.sub("", new)):
                assert time.monotonic() < give_up, (wanted, CONTROL.sub("", new))
                if select.select([main], [], [], 0.1)[0]:
                    data = os.read(main, 4096).decode(errors="replace")
                    everything, new = everything + data, new + data
            new = ""
            if isinstance(action, int):
                process.send_signal(action)
            elif action:
                os.write(main, action)
        assert process.wait(30) == code, everything
        os.close(main)
        return everything

    prompt = r">[\s\x08]*$"
    first = session(
        [
            (r"loaded: demo/native/int8[\s\S]*" + prompt, b"/set max_new_tokens 1000\r"),
            (prompt, b"/set ignore_eos on\r"),
            (prompt, b"Once upon\r"),
            (r"Once upon[\s\S]*\n[\s\S]*[a-z]{3,}[\s\S]*[a-z]{3,}", signal.SIGINT),
            (r"cancelled, seed[\s\S]*" + prompt, b"/quit\r"),
        ]
    )
    assert "cancelled" in first
    session([(prompt, b"\x1b[A\x1b[A"), (r"Once upon", b"\x15"), (r"", b"\x04")])
    assert history.stat().st_mode & 0o777 == 0o600

    history.chmod(0o644)  # as an earlier version made it
    interrupt = b"\x03"
    again = "Ctrl-C again leaves, and so does Ctrl-D[\\s\\S]*" + prompt
    session(
        [
            (prompt, b"half a line"),
            ("half a line", interrupt),
            (prompt, interrupt),
            (again, b"/tokens x\r"),
            (r"'x'=\d+[\s\S]*" + prompt, interrupt),
            (again, interrupt),
        ],
        code=130,
    )
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_connect_line_is_kept_when_it_has_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    address = Address("tcp://some.host:5757", CurveKeys.new().public, CurveKeys.new())
    assert servers.keep(address) == "some.host" and servers.resolve("some.host") == address
    moved = Address("tcp://some.host:6000", CurveKeys.new().public, CurveKeys.new())
    assert servers.keep(moved) == "some.host-6000" and servers.names() == ["some.host", "some.host-6000"]
    assert servers.kept() == [address, moved]
    for text, endpoint in (
        ("localhost", "tcp://localhost:5757"),
        ("10.0.0.7", "tcp://10.0.0.7:5757"),
        ("::1", "tcp://[::1]:5757"),
        ("other.host", "tcp://other.host:5757"),
        ("host:6000", "tcp://host:6000"),
    ):
        assert servers.resolve(text) == Address(endpoint)
    (servers.folder() / "damaged").write_text("tcp://h:1#x")
    assert servers.kept() == [address, moved]
    if os.name == "posix":
        assert {(servers.folder() / name).stat().st_mode & 0o777 for name in ("some.host", "some.host-6000")} == {0o600}


@pytest.mark.parametrize("name", servers.COMMANDS)
def test_no_command_hides_a_saved_server(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host may be called like one; what an earlier version has saved so is reached, and the user told how."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    address = Address(f"tcp://{name}:5757", CurveKeys.new().public, CurveKeys.new())
    assert servers.keep(address) == servers.keep(address) == f"{name}-server"
    assert servers.keep(Address(f"tcp://{name}:6000", CurveKeys.new().public, CurveKeys.new())) == f"{name}-6000"
    assert "the following arguments are required" in run(name).stderr
    saved = servers.folder() / f"{name}-server"
    saved.rename(saved.with_name(name)).write_text(Address("tcp://127.0.0.1:1").line() + "\n")
    told = run(name)
    assert told.returncode == 1 and f"client -- {name}` connects to it" in told.stderr
    assert "nobody listens on tcp://127.0.0.1:1" in run("--prompt", "x", "--", name).stderr


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these modes")
def test_a_kept_line_that_others_could_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    address = Address("tcp://127.0.0.1:1", CurveKeys.new().public, CurveKeys.new())
    kept = servers.folder() / servers.keep(address)
    assert "nobody listens" in run(kept.name, "-p", "x").stderr
    kept.chmod(0o640)
    refused = run(kept.name, "-p", "x")
    assert refused.returncode and f"{kept} can be read by users other than its owner" in refused.stderr
    assert f"chmod 600 {kept}" in refused.stderr and address.key and address.key.secret not in refused.stderr


def test_a_connect_line_can_be_typed_in(tmp_path: Path) -> None:
    line = Address("tcp://127.0.0.1:1", CurveKeys.new().public, CurveKeys.new()).line()
    done = subprocess.run(
        [sys.executable, "-m", "client", "-", "-p", "x"], input=line + "\n", capture_output=True, text=True, timeout=30,
        env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (
        "nobody listens on tcp://127.0.0.1:1;" in done.stderr
        and line not in done.stderr
        and list(tmp_path.iterdir()) == []
    )


def test_keys_can_be_given_apart(tmp_path: Path) -> None:
    write_secret(tmp_path / "own.key", CurveKeys.new())
    for words, says in (
        (["--server-key=" + CurveKeys.new().public, "--key", str(tmp_path / "own.key")], "nobody listens"),
        (["--key", str(tmp_path / "own.key")], "must be given together"),
        (["--server-key", "x", "--key", str(tmp_path / "own.key")], "not a valid key"),
        (["--server-key", "x", "--key", str(tmp_path / "none")], "cannot be read"),
    ):
        done = run("tcp://127.0.0.1:1", "-p", "x", *words)
        assert done.returncode and says in done.stderr, done.stderr


def test_what_users_of_a_server_should_know_is_said_with_where(capsys: pytest.CaptureFixture[str]) -> None:
    with ReplicaServer() as server, Terminal(Address(server.endpoint)) as terminal:
        info = terminal.meet()
        terminal.start(info, Choice(), [], hint=False)
        assert capsys.readouterr().err == "on the server: the slower engine onnx is the default\n"
        terminal.start(msgspec.structs.replace(info, host=platform.node()), Choice(), [], hint=False)
        assert capsys.readouterr().err == "the slower engine onnx is the default\n"


def test_clearly_fewer_threads_than_the_engine_has_are_said() -> None:
    said = list[str]()
    for used in (1.26, 1.95, 2.0, 0.0):  # the last of a server that does not say
        said += ledger(generated(m.Generate(prompt="a"), "b", threads=2, threads_used=used))
    assert "tokens/s with 1.3 of 2 threads; first token" in said[0]
    assert all("tokens/s; first token" in line for line in said[1:])


def test_text_is_asked_for_as_often_as_an_eye_wants_it() -> None:
    def answer(request: m.AnyRequest) -> list[str] | None:
        return ["x"] if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, Terminal(Address(server.endpoint)) as terminal:
        assert terminal.write("x")
        assert [asked.stream_interval_ms for asked in server.asked(m.Generate)] == [50]


def test_an_engine_that_the_server_lacks_is_named_with_the_reason() -> None:
    with ReplicaServer() as server, Terminal(Address(server.endpoint)) as terminal:
        info = msgspec.structs.replace(terminal.meet(), engines=[m.Engine(name="onnx", precisions=["int8"])])
        why = "onnx is the default: the kernels of native are not built; `COMMAND` builds them"
        terminal.start(msgspec.structs.replace(info, notices=[why, "something else"]), Choice(), [], hint=False)
        with pytest.raises(ValueError, match="no engine or precision 'native'") as caught:
            terminal.do("/load demo native")
    there = "it has the engines onnx, and /models lists their precisions"
    assert str(caught.value) == (f"this server has no engine or precision 'native'; {there}; on the server: {why}")


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts as a POSIX terminal does")
@pytest.mark.parametrize("program", ["client", "server"])
@pytest.mark.parametrize("library", ["argparse", "msgspec"])
def test_an_interrupt_while_a_program_starts_prints_no_traceback(program: str, library: str, tmp_path: Path) -> None:
    """A library whose import takes as long as the test wants stands in for the real one."""
    os.mkfifo(tmp_path / "reached")
    (tmp_path / f"{library}.py").write_text(
        f"open({str(tmp_path / 'reached')!r}, 'w').close(); import time; time.sleep(60)"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-P", "-m", program, "--help"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    (tmp_path / "reached").open().close()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_on_a_full_disk_the_session_has_its_history_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path)
    history = open_history()
    (tmp_path / "history").unlink()
    (tmp_path / "history").symlink_to("/dev/full")
    history.append_string(PROMPT)
    assert history.get_strings() == [PROMPT]
