"""Tables of engines beside others': their figures by hand, and that the documents have a place for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.bench import peers, peers_table
from scripts.bench.busy import busy_processes
from scripts.bench.engine import EngineFailed, Run
from scripts.bench.machine import allowed, processor
from scripts.bench.peers import DEFAULT, OWN, PEERS, PIECES, SHAPES, is_measured, measure, more_runs, most_sequences
from server.catalogue.architecture import PUBLISHED

MACHINE = {"read_gb_s": [40.0, 30.0, 50.0], "int8_gmac_s": [400.0], "fp32_gmac_s": [100.0]}
ROOT = Path(__file__).resolve().parent.parent


def row(engine: str, **more: Any) -> dict[str, Any]:
    rates = {"decode1": [200.0, 300.0, 250.0], "decode8": [1000.0], "decode16": [1200.0], "prefill512": [2000.0]}
    common = {"piece": "int8", "like": "gpt2", "cpu": processor(), "threads": 2, "date": "2026-11-30T00:00:00Z"}
    figures = {"rates": rates, "load_s": 0.5, "rss_mb": 250, "cold_s": [1.25, 1.5, 1.75], "machine": MACHINE}
    return {"engine": engine, "command": "python -m scripts.bench.peers", **common, **figures, **more}


ROWS = [row(DEFAULT), row("llama.cpp-q8_0"), row("optimum-int8", rates={"decode1": [80.0], "prefill512": [500.0]})]


def test_a_table_has_what_was_measured_last_on_the_newest_machine() -> None:
    older = [row(DEFAULT, cpu="another"), row("native-int4", cpu="another"), row(DEFAULT, rss_mb=1)]
    lines = peers_table.short([*older, *ROWS]).splitlines()
    assert [line for line in lines if line.startswith("| ") and "int8" in line] == [
        "| **`native`** int8 | 250 | 1,000 | 2,000 | 250 | 1.5 |",
        "| optimum int8 | 80 |  | 500 | 250 | 1.5 |",
    ]
    assert "| llama.cpp Q8_0 | 250 | 1,000 | 2,000 | 250 | 1.5 |" in lines and not [x for x in lines if "int4" in x]


def test_an_engine_of_several_pieces_stands_beside_those_of_its_own() -> None:
    later = [row(DEFAULT, piece="fp32", rss_mb=1), row("native-fp32", piece="fp32")]
    assert peers_table.newest([*ROWS, *later], "gpt2")[DEFAULT]["rss_mb"] == 250
    assert peers_table.newest(later, "gpt2")[DEFAULT]["rss_mb"] == 1


def test_a_processor_is_called_what_people_call_it() -> None:
    assert peers_table.named("Intel(R) Xeon(R) Processor, family 6, model 143") == "Intel Xeon, family 6, model 143"
    assert peers_table.named("AMD EPYC 9B14, family 25, model 17") == "AMD EPYC 9B14, family 25, model 17"
    assert peers_table.named("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz") == "Intel Core i5-8250U @ 1.60GHz"


def test_speeds_stand_beside_what_the_machine_allowed() -> None:
    gpt2, step = PUBLISHED["gpt2"], peers_table.STEPS["decode1"]
    at = allowed(gpt2, "int8", step, {"read_gb_s": 40.0, "int8_gmac_s": 400.0, "fp32_gmac_s": 100.0})
    assert peers_table.share(ROWS[0], "decode1") == f"{250 / at:.2f}" and 200 < at < 320
    assert peers_table.share(ROWS[1], "decode1") == ""
    # 85 million weights of blocks and 39 of the head at 34 bytes for 32 of them, 250 times a second.
    assert peers_table.read_gb_s(ROWS[1]) == pytest.approx(250 * 34 / 32 * 0.12353, rel=0.01)
    assert peers_table.gmac_s(ROWS[1]) == pytest.approx(2000 * 0.0850, rel=0.01)
    assert f"{at:,.0f}, " in " ".join(peers_table.full(ROWS).split())


def test_a_piece_is_measured_when_all_its_engines_have_lines_of_this_processor() -> None:
    rows = [row(engine) for engine in PIECES["int8"].engines]
    assert is_measured(rows, "gpt2", "int8") and not is_measured(rows, "gpt2-large", "int8")
    assert not is_measured([*rows[1:], row(DEFAULT, cpu="another")], "gpt2", "int8")
    assert {name for piece in PIECES.values() for name in piece.engines} <= {*OWN, *PEERS}
    assert all(DEFAULT in piece.engines for piece in PIECES.values())
    assert (most_sequences("optimum-int8"), most_sequences(DEFAULT), most_sequences("openvino-int8")) == (1, 16, 16)


def test_what_an_instruction_set_alone_came_to_stands_by_itself() -> None:
    assert PIECES["int8"].of("avx2") == (DEFAULT, "llama.cpp-q8_0") and PIECES["int8"].of("") == PIECES["int8"].engines
    assert not PIECES["fp32"].of("avx2")  # its peers choose their set themselves
    forced = [row(engine, instruction_set="avx2", rss_mb=7) for engine in PIECES["int8"].of("avx2")]
    assert is_measured(forced, "gpt2", "int8", "avx2") and not is_measured(forced, "gpt2", "int8")
    text = peers_table.full([*ROWS, *forced])
    assert text.index(", 2 threads") < text.index(", avx2 alone, 2 threads")
    assert peers_table.short([*ROWS, *forced]) == peers_table.short(ROWS)


def test_a_spread_is_the_farthest_run_from_its_median() -> None:
    assert peers_table.spread(ROWS[0]) == pytest.approx(0.2)  # 200 and 300 beside 250


def test_runs_go_on_while_there_is_time() -> None:
    assert [more_runs(done, 0.0, None) for done in (2, 6, 7)] == [True, True, False]
    assert [more_runs(done, 1e3, None) for done in (2, 3)] == [True, False]
    assert [more_runs(done, 1e3, 8) for done in (7, 8)] == [True, False]


def test_without_a_run_nothing_is_measured_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*_: Any) -> list[dict[str, Any]]:
        raise AssertionError("it began")

    monkeypatch.setattr(peers, "run", nothing)
    monkeypatch.setattr("sys.argv", ["peers", "--like", "gpt2", "--runs", "0", "--file", str(tmp_path / "lines")])
    with pytest.raises(SystemExit) as ended:
        peers.main()
    assert ended.value.code == 2 and "--runs must be at least 1" in capsys.readouterr().err


class Engine:
    """Engine's process that takes a second for each token, up to a batch that ends it."""

    def __init__(self, most: int) -> None:
        self._most = most

    def run(self, prompt: int, new: int, seed: int, batch: int = 1) -> Run:
        if batch > self._most:
            raise EngineFailed("it is gone")
        return Run(prompt, new - 1)


def test_an_engine_that_ends_leaves_the_others_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while somebody measures on this machine."""
    monkeypatch.setattr(peers, "LOCK", tmp_path / "lock")

    class Limits:
        def measured(self) -> dict[str, float]:
            return {"read_gb_s": 1.0}

    engines: Any = {"openvino-int8": Engine(8), DEFAULT: Engine(16)}
    limits: Any = Limits()
    found = measure(engines, limits, 2)
    assert found.failed == {"openvino-int8": "decode16: it is gone"}
    assert found.rates[DEFAULT] == {shape: [float(sequences)] * 2 for shape, (sequences, *_) in SHAPES.items()}
    assert found.machine == {"read_gb_s": [1.0] * 2 * len(SHAPES)}


def test_the_documents_have_a_place_for_the_tables(tmp_path: Path) -> None:
    for document, marks in (("README.md", ["table"]), ("docs/performance.md", ["table", "full tables"])):
        text = (ROOT / document).read_text(encoding="utf-8")
        for mark in marks:
            text = peers_table.between(text, mark, f"the new {mark}")
            assert f"-->\n\nthe new {mark}\n\n<!--" in text
    file = tmp_path / "peers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert peers_table.read(file) == ROWS and peers_table.read(tmp_path / "none") == []


def test_what_stands_beside_busy_processes_is_not_kept() -> None:
    command = [sys.executable, "-m", "scripts.bench.peers", "--like", "gpt2", "--busy", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--busy is for --only" in done.stderr


def test_busy_processes_are_busy_and_end() -> None:
    with busy_processes(2) as busy:
        for process in busy:
            before = psutil.Process(process.pid).cpu_times().user
            while psutil.Process(process.pid).cpu_times().user < before + 0.05:
                assert process.poll() is None
    assert all(process.returncode for process in busy)
