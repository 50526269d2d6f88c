"""`gpt2d-client score`: a file of texts in, a table of surprisals out."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from client.corpus.scoring import ALONE
from protocol import Client, many, messages as m
from protocol.errors import BadRequest, WorkerDied
from protocol.testing import Answer, FakeServer
from scripts.daemon import Daemon
from server.worker.windows import Windows
from tests.client.corpus.running import LOADED, OURS, ROOT, command, here, position, read, run, usual
from tests.conftest import wait_for
from tests.protocol.scored import scored

SONNET = "Shall I compare thee\r\nto a summer's day?"
INPUT = f'\ufeffid,text,word\r\n1,"{SONNET}",noun\r\n2,,\r\n3,"café, ""so""",x\r\n'.encode()


def bits(value: float | None) -> float:
    assert value is not None
    return -value / math.log(2)


def scoring(request: m.AnyRequest) -> Answer:
    return scored(request) if isinstance(request, m.Score) else usual(request)


def call(server: FakeServer, *words: str) -> int:
    return here(server, "score", *words)


def test_a_user_gets_a_row_for_each_word(shared_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """Columns of the input come first, one with our name among them; no text is missing."""
    (tmp_path / "s.csv").write_bytes(INPUT)
    done = run(shared_daemon.endpoint, "score", "s.csv", "--unit", "word", "--out", "w.csv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the input has a column 'word'; ours is 'gpt2d_word'" in done.stderr
    rows = read(tmp_path / "w.csv")
    assert list(rows[0]) == [
        "id", "text", "word", "text_number", "word_number", "gpt2d_word", "start", "end", "surprisal_bits",
        "first_token_entropy_bits", "first_token_rank", "first_token_greedy",
    ]  # fmt: skip
    assert [(row["id"], row["word_number"], row["gpt2d_word"]) for row in rows] == [
        *(("1", str(place), word) for place, word in enumerate(SONNET.split(), 1)),
        ("2", "", ""),
        ("3", "1", "café,"),
        ("3", "2", '"so"'),
    ]
    texts = [line["text"] for line in csv.DictReader(INPUT.decode("utf-8-sig").splitlines(keepends=True))]
    assert rows[0]["text"] == texts[0] == SONNET
    values = []
    for text in (texts[0], texts[2]):
        score = client.score(text, unit="word")
        assert score.words is not None
        for value, first in zip(score.words.logprobs, score.words.tokens, strict=True):
            is_greedy = score.greedy[first] == score.ids[first]
            values.append((bits(value), -bits(score.entropies[first]), score.ranks[first], str(is_greedy).upper()))
    told = [row for row in rows if row["gpt2d_word"]]
    for row, (surprisal, entropy, rank, greedy) in zip(told, values, strict=True):
        assert row["text"][int(row["start"]) : int(row["end"])] == row["gpt2d_word"]
        assert float(row["surprisal_bits"]) == surprisal and float(row["first_token_entropy_bits"]) == entropy
        assert (row["first_token_rank"], row["first_token_greedy"]) == (str(rank), greedy)
    assert {file.name for file in tmp_path.iterdir()} == {"s.csv", "w.csv"}


def test_a_user_gets_a_row_for_each_token(shared_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """Parts of characters have names; the space after a context may be in it, in the text or in neither."""
    lines = ("To be,", "or"), ("To be, ", "or"), ("To be,", " or"), ("", "é字")
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"pre": pre, "x": x, "n": 1.50}) + "\n" for pre, x in lines))
    words = ("--column", "x", "--context-column", "pre", "--top", "2", "--out", "t.csv")
    done = run(shared_daemon.endpoint, "score", "s.jsonl", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "t.csv")
    assert list(rows[0]) == [
        "pre", "x", "n", "text_number", "token_number", "token", "token_id", "start", "end", "surprisal_bits",
        "entropy_bits", "rank", "greedy", "top_1", "top_1_surprisal_bits", "top_2", "top_2_surprisal_bits",
    ]  # fmt: skip
    (alone,) = client.score_many([" or"], contexts=["To be,"], top=2)
    for row, span in zip(rows, (("0", "2"), ("0", "2"), ("0", "3")), strict=False):
        assert (row["token"], row["token_id"]) == (" or", str(alone.ids[0]))
        assert float(row["surprisal_bits"]) == bits(alone.logprobs[0])
        assert row["top_2"] == alone.top[0][1].text and float(row["top_2_surprisal_bits"]) == bits(
            alone.top[0][1].logprob
        )
        assert (row["start"], row["end"]) == span
    parts = [row for row in rows if row["x"] == "é字"]
    assert len(parts) > 1
    assert {(row["start"], row["end"]) for row in parts} == {("0", "1"), ("1", "2")}
    assert all(row["token"].startswith("bytes:\\x") or row["token"] in "é字" for row in parts)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ctrl_c"])
def test_an_interrupted_one_goes_on_in_the_middle_of_a_text(tmp_path: Path, kill: bool) -> None:
    """The table is, to the last byte, that of a run which nothing has interrupted."""
    long = "word " * 60_000
    (tmp_path / "long.txt").write_text("one short line\n" + long)
    later, asked = threading.Event(), list[m.Score]()

    def slowly(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Score):
            return usual(request)
        asked.append(request)
        answer = scored(request, size=100)
        return answer if len(asked) < 3 else [later, *answer]

    words = ["score", "long.txt", "--unit", "token", "--out", "o.csv", "--bos", "auto"]
    with FakeServer(slowly) as server:
        process = subprocess.Popen(
            command(server.endpoint, *words), cwd=tmp_path, env=OURS, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: position(tmp_path) > 0 or process.poll() is not None)
        process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
        _, said = process.communicate(timeout=60)
        later.set()
        kept = position(tmp_path)
        before = sum(len(request.texts or []) for request in asked)
        assert 1 <= kept <= 4
        if not kill:
            assert process.returncode == 130 and "this goes on where it was:\n" in said
        done = run(server.endpoint, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"going on after \d+%, 1 of 2 texts\n", done.stderr)
        parts = list(many.parts(long, many.PART_BYTES))
        assert sum(len(request.texts or []) for request in asked) - before == 1 + len(parts) - kept
        words[5] = "whole.csv"
        assert run(server.endpoint, *words, folder=tmp_path).returncode == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = read(tmp_path / "o.csv")
    own = [row for row in rows if row["text_number"] == "2"]
    assert [row["token_number"] for row in own] == [str(place) for place in range(1, len(own) + 1)]
    starts = [begin for part in parts for begin in range(*part, 100)]
    assert [int(row["start"]) for row in own] == starts
    assert {row["line"] for row in own} == {"2"}


def test_a_long_cell_is_not_repeated_beside_each_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.csv").write_text("id,text,note\n7," + "word " * 1_000 + ",n\n")
    with FakeServer(scoring) as server:
        assert call(server, "s.csv", "-o", "o.csv") == 0
        said = capsys.readouterr().err
        assert "column 'text' is left out: one of its texts has 5,000 characters, repeated for each word" in said
        row = read(tmp_path / "o.csv")[-1]
        assert (row["id"], row["note"], "text" in row) == ("7", "n", False)
        assert (row["text_number"], row["end"]) == ("1", "5000")


def test_a_text_that_is_refused_ends_nothing(shared_daemon: Daemon, tmp_path: Path) -> None:
    """It has a row with its place alone; the others have the values that they have without it."""
    lines = ["Shall I compare", "a", "", "thee to a day?", "b"]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "good.txt").write_text("Shall I compare\nthee to a day?\n")
    words = ["score", "--bos", "never", "--out"]
    done = run(shared_daemon.endpoint, *words, "o.csv", "s.jsonl", folder=tmp_path)
    assert done.returncode == 3
    assert "s.jsonl, line 2: this text must have at least 2 tokens, got 1\n" in done.stderr
    assert "s.jsonl, line 5: this text" in done.stderr and "\n2 texts were refused: a row" in done.stderr
    rows = read(tmp_path / "o.csv")
    empty = [row for row in rows if not row["token"]]
    assert [(row["text"], row["start"], row["end"]) for row in empty] == [
        ("a", "0", "1"),
        ("", "", ""),
        ("b", "0", "1"),
    ]
    assert {row[name] for row in empty for name in ("token_number", "token_id", "surprisal_bits", "rank")} == {""}
    assert run(shared_daemon.endpoint, *words, "good.csv", "good.txt", folder=tmp_path).returncode == 0
    told = [(row["token"], row["surprisal_bits"]) for row in rows if row["token"]]
    assert told == [(row["token"], row["surprisal_bits"]) for row in read(tmp_path / "good.csv")]


@pytest.mark.parametrize("context", [1024, 2048])
def test_a_text_at_a_small_stride_is_cut_so_that_the_server_takes_it(
    context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a server for which each byte is a token. What was begun with other parts is not gone on with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.txt").write_text("word " * 2000 + "\n" + "short\n" * 50)

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Load):
            return m.Loaded(**(LOADED | {"context": context}))
        if not isinstance(request, m.Score):
            return usual(request)
        stride = request.stride or 512
        windows = [
            Windows(1 + len(one.context or ""), len(one.text or ""), stride, context, after=False)
            for one in request.texts or []
        ]
        computed = sum(each.computed for each in windows)
        return BadRequest("score: these texts are too much") if computed > m.MAX_COMPUTED else scored(request)

    with FakeServer(answer) as server:
        assert call(server, "s.txt", "-o", "o.csv", "--stride", "1") == 0, capsys.readouterr().err
        rows = read(tmp_path / "o.csv")
        assert "".join(row["token"] for row in rows) == "word " * 2000 + "short" * 50
        (tmp_path / "o.csv").rename(tmp_path / "o.csv.part")
        settings = {"unit": "token", "bos": "auto", "stride": 1, "top": 0, "context column": None}
        settings |= {"format": "csv", "column": "text", "per": "line"}
        kept = {"settings": settings, "position": {"done": 1, "size": 100}}
        (tmp_path / "o.csv.progress").write_text(json.dumps(kept))
        assert call(server, "s.txt", "-o", "o.csv", "--stride", "1") == 1
        assert "was begun with another size of parts (None, now " in capsys.readouterr().err


def strict(request: m.AnyRequest) -> Answer:
    """Answer as a server that takes no text with an x, four texts in a request at most, and no stride of 7."""
    if not isinstance(request, m.Score):
        return usual(request)
    if request.stride == 7:
        return BadRequest("score: a stride of 7 is too much")
    texts = [passage.text or "" for passage in request.texts or []]
    wrong = next((place for place, text in enumerate(texts) if "x" in text), None)
    if wrong is not None:
        return BadRequest(f"score: texts[{wrong}]: 'x' is not a token")
    return BadRequest("score: these texts are too much") if len(texts) > 4 else scored(request)


def test_refusals_are_counted_over_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"line {n} x" if n % 3 == 2 or n > 40 else f"line {n}" for n in range(1, 71)]
    (tmp_path / "s.txt").write_text("\n".join(lines))

    def dying(request: m.AnyRequest) -> Answer:
        answer = strict(request)
        texts = [passage.text for passage in (request.texts or [])] if isinstance(request, m.Score) else []
        return WorkerDied("gone") if isinstance(answer, list) and "line 10" in texts else answer

    with FakeServer(strict) as server:
        assert call(server, "s.txt", "-o", "whole.csv") == 3
        said = capsys.readouterr().err
        assert said.count("'x' is not a token") == 20 and "s.txt, line 2: 'x' is not a token\n" in said
        assert "whole.csv: 70 texts, " in said and "\n43 texts were refused (the first 20 were named): " in said
        server.answer = dying
        assert call(server, "s.txt", "-o", "o.csv") == 1, "a server that fails ends the run"
        assert 0 < position(tmp_path) < 70
        server.answer = strict
        assert call(server, "s.txt", "-o", "o.csv") == 3
        assert "\n43 texts were refused" in capsys.readouterr().err
        assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert call(server, "s.txt", "-o", "other.csv", "--stride", "7") == 1, "a setting ends the run"
        assert "gpt2d-client: score: a stride of 7 is too much" in capsys.readouterr().err


def test_where_many_are_refused_the_others_do_not_wait_for_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those near a refused one are asked by themselves, all at once, and the rest together again."""
    monkeypatch.chdir(tmp_path)
    lines = [f"line {n} x" if n % 3 == 2 and n < 150 else f"line {n}" for n in range(1, 401)]
    (tmp_path / "s.txt").write_text("\n".join(lines))

    def answer(request: m.AnyRequest) -> Answer:
        said = strict(request)
        return scored(request) if isinstance(request, m.Score) and "too much" in str(said) else said

    with FakeServer(answer) as server:
        assert call(server, "s.txt", "-o", "o.csv") == 3
        several = [request for request in server.asked(m.Score) if len(request.texts or []) > 1]
    assert len(several) == 1 + -(-149 // ALONE)
    texts = {row["text_number"]: row["token"] == "" for row in read(tmp_path / "o.csv")}
    assert [texts[str(n)] for n in range(1, 401)] == ["x" in line for line in lines]


def test_a_part_that_is_refused_leaves_a_gap_that_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "word " * 10_000 + "x " * 10 + "word " * 10_000 + "x " + "word " * 10_000
    (tmp_path / "s.txt").write_text(text)

    def by_hundreds(request: m.AnyRequest) -> Answer:
        answer = strict(request)
        return scored(request, size=100) if isinstance(request, m.Score) and isinstance(answer, list) else answer

    with FakeServer(by_hundreds) as server:
        assert call(server, "s.txt", "-o", "o.csv") == 3
    said = capsys.readouterr().err
    assert "1 text was refused: a row" in said and said.count("'x' is not a token") == 1
    rows = read(tmp_path / "o.csv")
    assert [int(row["start"]) for row in rows[1:]] == [int(row["end"]) for row in rows[:-1]]
    gaps = [row for row in rows if not row["token_id"]]
    assert len(gaps) == 2 and all("x" in text[int(gap["start"]) : int(gap["end"])] for gap in gaps)
    numbers = [int(row["token_number"]) for row in rows if row["token_number"]]
    assert numbers == [*range(1, len(rows) - 1)] and {row["text_number"] for row in rows} == {"1"}


def test_what_would_be_another_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.txt").write_text("a b\nc d\n")

    def begin(request: m.Score) -> Answer:
        return [scored(request)[1], WorkerDied("gone")]

    with FakeServer(lambda request: begin(request) if isinstance(request, m.Score) else usual(request)) as server:
        assert call(server, "s.txt", "-o", "o.csv") == 1
        assert position(tmp_path) == 1
        capsys.readouterr()
        server.answer = scoring
        for words in (
            ("--stride", "9"),
            ("--bos", "always"),
            ("--unit", "word"),
            ("--per", "paragraph"),
            ("--top", "1"),
        ):
            assert call(server, "s.txt", "-o", "o.csv", *words) == 1
            assert f"begun with another {words[0][2:]} (" in capsys.readouterr().err
        assert call(server, "s.txt", "-o", "o.csv", "--bos", "never", "--overwrite") == 0
        asked = server.asked(m.Score)[-1]
        assert (asked.bos, asked.unit, asked.model, asked.precision) == ("never", "token", "demo", "int8")
        assert [row["surprisal_bits"] == "" for row in read(tmp_path / "o.csv")] == [True, False, False] * 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["s.txt"], "required: -o/--out"),
        (["s.txt", "-o", "o.xls"], "its name must end in .csv, .jsonl, .ndjson, .parquet, or say which --format"),
        (["s.txt", "-o", "o.csv", "--stride", "0"], "invalid whole number >= 1 value: '0'"),
        (["s.txt", "-o", "o.csv", "--unit", "word", "--top", "3"], "ask for --unit token"),
    ],
)
def test_a_wrong_command_says_so(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server, pytest.raises(SystemExit) as ended:
        call(server, *words)
    assert ended.value.code == 2 and says in " ".join(capsys.readouterr().err.split())
    assert server.requests == []


def test_help_teaches_and_what_it_says_is_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client", "score", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("gpt2d-client score ") >= 3 and "exit codes" in done.stdout
    (tmp_path / "s.txt").write_text("a b")
    columns: dict[str, Any] = {}
    with FakeServer(scoring) as server:
        for unit in ("word", "token"):
            out = tmp_path / f"{unit}.jsonl"
            assert call(server, str(tmp_path / "s.txt"), "-o", str(out), "--unit", unit) == 0
            columns[unit] = list(json.loads(out.read_text().splitlines()[0]))
    text = " ".join(done.stdout.split())
    assert columns["word"][0] == "line"
    for name in {*columns["word"], *columns["token"]} - {"line"}:
        assert name in text
    for unit in ("word", "token"):
        assert text.index(f"{unit} {columns[unit][1]}, {columns[unit][2]}, {columns[unit][3]}") > 0


def test_the_documents_example_is_true(shared_daemon: Daemon) -> None:
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python many\n(.*?)```", page, re.DOTALL)
    code = code.replace("tcp://127.0.0.1:5757", shared_daemon.endpoint)
    done = subprocess.run([sys.executable, "-c", code], env=OURS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Shall I compare thee to a summer's day? ")
    assert [line.split()[0] for line in lines[1:9]] == SONNET.split()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("first text\nsecond\n")
    later = threading.Event()

    def slowly(request: m.AnyRequest) -> Answer:
        if not isinstance(request, m.Score):
            return usual(request)
        *texts, last = scored(request)  # the last text first
        return [texts[1], later, texts[0], last]

    main, terminal = os.openpty()
    with FakeServer(slowly) as server:
        words = command(server.endpoint, "score", "s.txt", "--out", "o.csv")
        process = subprocess.Popen(words, cwd=tmp_path, env=OURS, stderr=terminal)
        os.close(terminal)
        seen = b""
        while not re.search(rb"\r\x1b\[K\[#{15}\.{9}\] 62%, 1 of 2 texts, [\d,]+ tokens/s, \d+ s left", seen):
            seen += os.read(main, 1000)
        later.set()
        with contextlib.suppress(OSError):  # the process has ended
            while more := os.read(main, 1000):
                seen += more
        assert process.wait(timeout=60) == 0
    os.close(main)
    assert b"\r\x1b[Ko.csv: 2 texts, 16 tokens in " in seen
