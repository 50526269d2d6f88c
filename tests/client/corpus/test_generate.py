"""`gpt2d-client generate`: a file of prompts in, a table of continuations out."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client.corpus import commands
from client.corpus.journal import Done, Position
from client.corpus.model import Model
from client.corpus.progress import Bar
from protocol import Client, messages as m
from protocol.errors import TooLong, Unauthorised, WorkerDied
from protocol.testing import Answer, FakeServer, generated
from scripts.daemon import Daemon
from tests.client.corpus.running import OURS, READY, command, here, position, read, run, usual
from tests.conftest import wait_for


def written(request: m.AnyRequest) -> Answer:
    return generated(request, f"{request.prompt}!") if isinstance(request, m.Generate) else usual(request)


def dying(request: m.AnyRequest) -> Answer:
    """Answer as a server whose worker dies at the fifth prompt."""
    return WorkerDied("gone") if isinstance(request, m.Generate) and request.prompt == "4" else written(request)


def call(server: FakeServer, *words: str) -> int:
    """Run the command in this process; return its exit code."""
    return here(server, "generate", *words)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of ten prompts, in the folder that the test works in."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{number}", "kind": {number % 2}}}\n' for number in range(10)))
    return file


def test_a_user_gets_a_table(shared_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """Columns of the input first; each text's seed is that after the last one's, so that it can be had again."""
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfid,prompt\r\n7,"To be,\r\nor"\r\n8,\r\n')
    words = ("generate", "p.csv", "--out", "o.csv", "--set", "n=2", "-n", "6", "--set", "seed=5")
    done = run(shared_daemon.endpoint, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 texts, by demo/native/int8\no.csv: 2 texts, 24 tokens in " in done.stderr
    rows = read(tmp_path / "o.csv")
    assert list(rows[0]) == [
        "id", "prompt", "text_number", "continuation", "generated", "finish_reason", "new_tokens", "prompt_truncated",
        "seed",
    ]  # fmt: skip
    assert [(row["id"], row["text_number"], row["continuation"], row["seed"]) for row in rows] == [
        ("7", "1", "1", "5"), ("7", "1", "2", "6"), ("8", "2", "1", "7"), ("8", "2", "2", "8"),
    ]  # fmt: skip
    for row in rows:
        again = client.generate(row["prompt"], seed=int(row["seed"]), max_new_tokens=6)
        assert again.text == row["generated"]
    assert {file.name for file in tmp_path.iterdir()} == {"p.csv", "o.csv"}


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ctrl_c"])
def test_an_interrupted_one_goes_on_where_it_was(prompts: Path, tmp_path: Path, kill: bool) -> None:
    """The table is, to the last byte, that of a run which nothing has interrupted; what was kept is not asked again."""
    later = threading.Event()

    def slowly(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Generate):
            return usual(request)
        answer = generated(request, f"{request.prompt}!")
        return answer if int(request.prompt or "") < 3 else [later, answer]

    words = ["generate", prompts.name, "--out", "o.csv", "--set", "n=1"]
    with FakeServer(slowly) as server:
        process = subprocess.Popen(
            command(server.endpoint, *words), cwd=tmp_path, env=OURS, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: (position(tmp_path) > 0 and len(server.asked(m.Generate)) == 10) or process.poll() is not None)
        process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
        _, said = process.communicate(timeout=60)
        later.set()
        kept, asked = position(tmp_path), len(server.asked(m.Generate))
        assert 1 <= kept <= 3 and asked == 10
        assert not (tmp_path / "o.csv").exists()
        if not kill:
            assert process.returncode == 130
            assert "stopped; what is done is kept in o.csv.part; this goes on where it was:\n" in said
            named = ["generate", "--model=demo", "--engine=native", "--precision=int8"]
            assert said.rstrip().endswith(" ".join(named + command(server.endpoint, *words)[4:]))
        done = run(server.endpoint, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"going on after {kept}0%, {kept} of 10 texts\n" in done.stderr
        assert len(server.asked(m.Generate)) == asked + 10 - kept
        words[3] = "whole.csv"
        assert run(server.endpoint, *words, folder=tmp_path).returncode == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = read(tmp_path / "o.csv")
    assert [(row["generated"], row["seed"]) for row in rows] == [(f"{number}!", str(number)) for number in range(10)]


@pytest.mark.usefixtures("prompts")
def test_what_a_server_ends_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    with FakeServer(dying) as server:
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 1
        said = capsys.readouterr().err
        assert "this goes on where it was:" in said and said.endswith("gpt2d-client: gone\n")
        assert position(tmp_path) == 4
        server.answer = written
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 0
        assert [row["kind"] for row in read(tmp_path / "o.csv")] == ["0", "1"] * 5


@pytest.mark.usefixtures("prompts")
def test_a_prompt_that_is_refused_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a row that says so, and the seeds that follow are those that they are without it."""
    monkeypatch.chdir(tmp_path)

    def strict(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Generate) and request.max_new_tokens == 9:
            return TooLong("max_new_tokens must be at most 8")
        refused = isinstance(request, m.Generate) and request.prompt in ("3", "9")
        return TooLong("the prompt has 9 tokens") if refused else written(request)

    with FakeServer(written) as server:
        assert call(server, "prompts.jsonl", "-o", "all.csv") == 0
        server.answer = strict
        assert call(server, "prompts.jsonl", "-o", "o.csv", "--set", "n=2") == 3
        said = capsys.readouterr().err
        assert "prompts.jsonl, line 4: the prompt has 9 tokens\n" in said and "\n2 texts were refused: a row" in said
        rows = read(tmp_path / "o.csv")
        refused = [row for row in rows if row["finish_reason"] == "refused"]
        assert [row["prompt"] for row in refused] == ["3", "9"]
        assert {refused[0][name] for name in ("continuation", "generated", "new_tokens", "seed")} == {""}
        assert [row["seed"] for row in rows] == [str(2 * n) if n not in (3, 9) else "" for n in range(10)]
        assert call(server, "prompts.jsonl", "-o", "other.csv", "-n", "9") == 1, "a setting ends the run"
        assert "gpt2d-client: max_new_tokens must be at most 8" in capsys.readouterr().err
        assert not (tmp_path / "other.csv").exists()


def test_a_server_that_does_not_say_its_settings(prompts: Path, tmp_path: Path) -> None:
    """What they were is known of the request; the seed that was drawn is not told."""

    def silent(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Generate):
            return usual(request)
        return generated(request, "!", settings={"strategy": ["beam"]})

    with FakeServer(silent) as server:
        assert here(server, "generate", str(prompts), "-o", str(tmp_path / "o.csv"), "--set", "logprobs=1") == 0
        rows = read(tmp_path / "o.csv")
        assert {(row["generated"], row["seed"], row["logprobs"]) for row in rows} == {("!", "", "[]")}


@pytest.mark.usefixtures("prompts")
def test_what_would_be_another_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other settings, other weights under the same name, and another input."""
    monkeypatch.chdir(tmp_path)

    with FakeServer(dying) as server:
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 1
        server.answer = written
        capsys.readouterr()
        assert call(server, "prompts.jsonl", "-o", "o.csv", "-n", "3") == 1
        assert "begun with another settings" in capsys.readouterr().err
        server.answer = lambda request: usual(request, digest="e" * 64) or written(request)
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 1
        assert "begun with another model ('demo/native/int8 dddd" in capsys.readouterr().err
        server.answer = written
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 1
        said = "o.csv.part was begun with other texts: prompts.jsonl has changed; give another --out, which keeps"
        assert said in capsys.readouterr().err and position(tmp_path) == 4
        assert call(server, "prompts.jsonl", "-o", "o.csv", "--overwrite") == 0
        assert [row["generated"] for row in read(tmp_path / "o.csv")] == ["x!"]
        assert call(server, "prompts.jsonl", "-o", "o.csv") == 1
        assert "o.csv exists already; give another --out, or --overwrite" in capsys.readouterr().err


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize("files", ["b.jsonl prompts.jsonl", "prompts.jsonl b.jsonl prompts.jsonl"])
def test_the_same_files_in_another_order_are_other_texts(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell lists `*.jsonl` in another language, or cron."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n')
    with FakeServer(dying) as server:
        assert call(server, "prompts.jsonl", "b.jsonl", "-o", "o.csv") == 1
        server.answer = written
        capsys.readouterr()
        assert call(server, *files.split(), "-o", "o.csv") == 1
        assert "begun with another order of files (['prompts.jsonl', 'b.jsonl'], now" in capsys.readouterr().err
        assert call(server, "prompts.jsonl", "b.jsonl", "-o", "o.csv") == 0


def test_every_setting_of_the_terminal(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["temperature=0.5", "stop=a", "stop=\\n", "logit_bias=1:2,3:4", "logprobs=1", "seed=100", "n=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    with FakeServer(written) as server:
        assert call(server, prompts.name, "-o", "o.jsonl", "--column", "prompt", *words) == 0
        asked = server.asked(m.Generate)
        assert (asked[0].stop, asked[0].logit_bias, asked[0].truncate) == (["a", "\n"], [(1, 2.0), (3, 4.0)], "left")
        assert [request.seed for request in asked] == list(range(100, 120, 2))
        assert {request.model for request in asked} == {"demo"}, "no other model can take its place on the way"
        row = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[3])
        assert (row["prompt"], row["kind"], row["logprobs"]) == ("3", 1, [])
        assert call(server, prompts.name, "-o", "p.csv", "--set", "temperatur=1") == 1
        assert "did you mean temperature?" in capsys.readouterr().err
        assert call(server, prompts.name, "-o", "p.csv", "--set", "n=17") == 1
        assert "gpt2d-client: generate: n must be a whole number <= 16" in capsys.readouterr().err
        assert not (tmp_path / "p.csv.part").exists()
        assert call(server, prompts.name, "-o", "p.csv", "--column", "text") == 1
        assert "no column 'text' in prompts.jsonl; its columns are 'prompt', 'kind'" in capsys.readouterr().err


def test_the_model_is_one_and_named(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing or several are loaded it has to be said which; who may not load uses what is there."""
    there: list[m.WorkerHealth] = []

    def answer(request: m.AnyRequest) -> Answer:
        match request:
            case m.Ping():
                return m.Pong(id=None, server_id="fake", uptime_ms=1, draining=False, workers=there)
            case m.Load():
                return Unauthorised("this key may not load")
            case m.Models():
                info = m.ModelInfo(name="demo", parameters=1, context=64, file_bytes=1, precisions=[])
                return m.ModelList(id=None, models=[info])
        return written(request)

    out = str(prompts.with_name("o.csv"))
    with FakeServer(answer) as server:
        assert call(server, str(prompts), "-o", out) == 1
        assert "nothing is loaded that this could be done with; name a model" in capsys.readouterr().err
        there += [READY, m.WorkerHealth(**(READY.to_dict() | {"precision": "int4"}))]
        assert call(server, str(prompts), "-o", out) == 1
        assert "several are loaded (demo/native/int8, demo/native/int4); say which" in capsys.readouterr().err
        assert call(server, str(prompts), "-o", out, "--precision", "int4") == 0
        assert {request.precision for request in server.asked(m.Generate)} == {"int4"}
        assert call(server, str(prompts), "-o", str(prompts.with_name("p.csv")), "-m", "gpt2") == 1
        assert "this key may not load" in capsys.readouterr().err


def test_the_command_that_goes_on_can_be_typed_and_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted server has nothing loaded, so it names the model; what starts the program may be several words."""
    monkeypatch.setattr(commands, "command", lambda _: "'/my programs/python' -m client")
    line = "tcp://host:5757#server.secret"
    model = Model("demo", "native", "int8", 64, "", calibrated=False)
    for given in (["--connect", line], [f"--connect={line}"]):
        words = ["generate", *given, "-o", "o.csv", "--", "-p.txt"]
        args = commands.parser_of("generate").parse_args(words[1:])
        args.words = words
        said = commands.again(args, model)
        assert "secret" not in said
        program, *again = [shlex.split(said)[0], *shlex.split(said)[3:]]
        assert program == "/my programs/python" and again[0] == "generate"
        args = commands.parser_of("generate").parse_args(again[1:])
        assert (args.server, args.model, args.engine, args.precision) == ("-", "demo", "native", "int8")
        assert [str(file) for file in args.files] == ["-p.txt"]


def test_what_is_read_is_not_written_over(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prompts.read_bytes()
    with FakeServer(written) as server:
        other = prompts.parent / "x" / ".." / prompts.name
        other.parent.parent.mkdir()
        assert call(server, str(prompts), "-o", str(other), "--overwrite") == 1
        assert "is what is to be read; give another --out" in capsys.readouterr().err
        assert server.requests == []
    assert prompts.read_bytes() == before


def test_nobody_who_reads_what_is_said_ends_no_work(tmp_path: Path, prompts: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with FakeServer(written) as server:
        words = command(server.endpoint, "generate", prompts.name, "--out", "o.csv")
        done = subprocess.run(words, cwd=tmp_path, env=OURS, stderr=write_end, timeout=60, check=False)
    os.close(write_end)
    assert done.returncode == 0 and len(read(tmp_path / "o.csv")) == 10


def test_a_line_stays_in_the_terminal() -> None:
    bar = Bar(10_000, 1_000_000, Position(done=0, size=0))
    bar.close()
    bar.add(Done([], 500_000, 123_456))
    assert len(bar.told()) > 40 and len(bar.drawn(200)) > 66
    assert len(bar.drawn(40)) == 39 and bar.drawn(40).startswith("[############............] 50%, 1 of ")


def test_a_folder_that_is_not_there(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(written) as server:
        assert call(server, str(prompts), "-o", str(prompts.parent / "missing" / "o.csv")) == 1
        assert "missing/o.csv.part: No such file or directory" in capsys.readouterr().err


def test_parquet_without_its_library(prompts: Path, tmp_path: Path) -> None:
    """A sentence that says what to install, before anything is computed."""
    (tmp_path / "pyarrow.py").write_text("raise ImportError('no pyarrow here')")
    with FakeServer(written) as server:
        done = subprocess.run(
            command(server.endpoint, "generate", str(prompts), "--out", "o.parquet"),
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "parquet needs pyarrow (no pyarrow here); in the checkout of gpt2d type: " in done.stderr
        assert server.requests == []


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client", "generate", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("gpt2d-client generate ") >= 3 and "exit codes" in done.stdout
