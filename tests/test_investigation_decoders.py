"""Measures of texts on texts whose measures are known; each script of the investigation's decoders, on `demo`."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from scripts.investigation import combined_methods, decoder_methods, one_daemon, texts
from scripts.investigation.harness import command, model_of
from tests.investigation import run_script

pytestmark = pytest.mark.timeout(300)  # a script starts a daemon, and loads what it compares


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def run(home: Path, name: str, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Return the rows that a quick run has kept, and what it printed."""
    kept = ("--json", str(home / f"{name}.jsonl"))
    done = run_script(home, f"investigation.{name}", "--quick", "--threads", "1", *kept, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (home / f"{name}.quick.jsonl").read_text().splitlines()]
    assert rows and not any(row["problem"] for row in rows), done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["script"] == name and len(last["rows"]) == len(rows)
    assert all(row["key"]["model"] == "demo" and row["key"]["trained"] for row in rows)
    return rows, done.stdout


def test_a_row_says_how_it_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["anywhere/texts.py", "--prompt", "Once upon"])
    assert command("operating_point") == "python -m scripts.investigation.operating_point --prompt 'Once upon'"


def test_repetition_and_distinct_ngrams() -> None:
    assert texts.distinct([1, 2, 3, 4], 1) == 1 and texts.distinct([1, 1, 1, 1], 1) == 0.25
    assert texts.distinct([1, 2, 1, 2, 1], 2) == 0.5  # (1 2) (2 1) (1 2) (2 1)
    assert texts.distinct([1, 2], 3) == 1
    assert texts.repetition(range(20)) == 0
    assert texts.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert texts.repetition([7] * 13) == pytest.approx(9 / 10)


def test_pairwise_distinct() -> None:
    assert texts.pairwise_distinct([[1, 2, 3], [1, 2, 3]]) == 0
    assert texts.pairwise_distinct([[1, 2, 3], [4, 5, 6]]) == 1
    assert texts.pairwise_distinct([[1, 2, 3], [1, 2, 4]]) == pytest.approx(2 / 3)  # one 2-gram of three
    assert texts.pairwise_distinct([[1, 2, 3], [1, 2, 3], [4, 5, 6]]) == pytest.approx(2 / 3)
    assert texts.pairwise_distinct([[1, 2, 3]]) == 0


def test_perplexity() -> None:
    assert texts.perplexity([math.log(1 / 8)] * 5) == pytest.approx(8)
    assert texts.perplexity([math.log(1 / 2), math.log(1 / 8)]) == pytest.approx(4)


def test_prompts_differ() -> None:
    model = model_of("demo", Path("nowhere"))
    prompts = [texts.random_prompt(model, seed) for seed in range(50)]
    assert len({tuple(p[:4]) for p in prompts}) == 50 and all(len(p) == texts.PROMPT_TOKENS for p in prompts)
    assert texts.random_prompt(model, (1, 2)) != texts.random_prompt(model, (2, 1))
    assert texts.is_trained(model)


class Counting:
    """Trial that counts, and takes as long as it is asked to."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        self.seeds: list[int] = []
        self._seconds, self._clock = seconds, clock

    def run(self, seed: int) -> dict[str, float]:
        self.seeds.append(seed)
        self._clock[0] += self._seconds
        return {"x": 1.0}

    def facts(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("seconds", "turns"), [(0.01, 30), (1.0, 8), (1.5, 5), (100.0, 3)])
@pytest.mark.parametrize("warm", [False, True])
def test_a_slow_trial_gets_fewer_turns(monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int, warm: bool) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    trial = Counting(seconds, clock)
    limited = one_daemon.Limited(trial, 30, 8.0, warm=warm)
    kept = [seed for seed in range(32) if limited.run(seed) and seed >= 2]
    assert len(kept) == turns and kept[0] == 2 and kept == sorted(set(kept))
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1 or warm  # evenly spread
    warm_ups = 1 if seconds > one_daemon.LONG_S else 2
    assert len(trial.seeds) - len(kept) == (0 if warm else warm_ups)


@pytest.fixture(scope="module")
def decoders(home: Path) -> list[dict[str, Any]]:
    rows, printed = run(home, "decoder_methods")
    assert "perplexity" in printed and "demo, beam:" in printed
    return rows


def test_decoders(decoders: list[dict[str, Any]]) -> None:
    names = set(decoder_methods.DECODERS)
    assert {(row["key"]["decoder"], row["key"]["new_tokens"]) for row in decoders} == {
        (name, n) for name in names for n in (25, 100)
    }
    wanted = {"inference_ms", "whole_ms", "tok_s", "repetition", "distinct_1", "distinct_2", "distinct_3", "perplexity"}
    for row in decoders:
        assert wanted <= set(row["samples"]) and all(len(values) == 3 for values in row["samples"].values())
        assert len(row["facts"]["texts"]) == 3 and row["facts"]["rss_mb"] > 0
        assert all(
            whole > inside
            for whole, inside in zip(row["samples"]["whole_ms"], row["samples"]["inference_ms"], strict=True)
        )


def test_guessing_ahead_writes_what_greedy_writes(decoders: list[dict[str, Any]]) -> None:
    written = {
        name: [row["facts"]["texts"] for row in decoders if row["key"]["decoder"] == name]
        for name in ("greedy", "prompt lookup", "top-k")
    }
    assert written["greedy"] == written["prompt lookup"] != written["top-k"]


def test_combined(home: Path) -> None:
    rows, printed = run(home, "combined_methods", "--only", "transformers/fp32", "native/int8", "onnx/int4")
    assert len(rows) == 9 and "1 x" in printed
    for row in rows:
        tokens = row["key"]["outputs"] * row["key"]["new_tokens"]
        assert all(
            tok_s == pytest.approx(tokens / ms * 1000, rel=1e-4)
            for tok_s, ms in zip(*map(row["samples"].get, ("tok_s", "whole_ms")), strict=True)
        )
        assert all(row["facts"][name] > 0 for name in ("loaded_mb", "rss_mb", "load_s"))


def test_variants_are_measured_in_parts_that_fit() -> None:
    model = model_of("demo", Path("nowhere"))
    everything = list(combined_methods.VARIANTS)
    (together,) = combined_methods.groups(model, everything, 32, 1e12)
    assert sorted(together) == sorted(everything) and together[0] == ("optimum", "int8")
    alone = list(combined_methods.groups(model, everything, 32, 1.0))
    assert sorted(v for part in alone for v in part) == sorted(everything) and all(len(part) == 1 for part in alone)


def test_operating_point(home: Path) -> None:
    rows, printed = run(home, "operating_point", "--set", "top_k=20")
    assert [row["key"]["new_tokens"] for row in rows] == [25, 100] and "demo, seed 2:" in printed
    for row in rows:
        assert row["facts"]["settings"]["top_k"] == 20 and row["facts"]["settings"]["speculate"] == 8
        assert len(row["samples"]["inference_ms"]) == len(row["facts"]["texts"]) == row["facts"]["different_texts"] == 3
        assert 0 < row["facts"]["pairwise_distinct"] <= 1
    longer = rows[1]["facts"]["texts"]
    assert all(
        text.startswith(short) for text, short in zip(longer, rows[0]["facts"]["texts"], strict=True)
    )  # the seeds are the same


def test_operating_point_says_what_is_wrong(home: Path) -> None:
    for arguments in (["--set", "temperature=-1"], ["--set", "heat=1"], ["--precision", "int3"]):
        done = run_script(home, "investigation.operating_point", "--quick", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_serving(home: Path) -> None:
    rows, printed = run(home, "serving_methods", "--only", "rate", "batch")  # the rates begin with one client
    sweeps = {row["key"]["sweep"] for row in rows}
    assert sweeps == {"clients", "rate", "batch"} and "first token ms, p95" in printed
    for row in rows:
        samples = row["samples"]
        assert all(value > 0 for value in samples["tok_s"])
        if row["key"]["sweep"] == "batch":
            assert max(samples["mean_batch"]) <= row["key"]["outputs"]
        else:
            assert all(
                p50 <= p95
                for p50, p95 in zip(samples["first_token_p50_ms"], samples["first_token_p95_ms"], strict=True)
            )
    rates = [row["key"]["rate"] for row in rows if row["key"]["sweep"] == "rate"]
    assert len(rates) >= 2


def test_bench_serving(home: Path) -> None:
    for more in ([], ["--rate", "40"]):
        shape = ["--clients", "3", "--requests", "2", "--new-tokens", "8"]
        done = run_script(home, "bench.serving", "--model", "demo", *shape, *more)
        figures = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 0 and figures["clients"] == 3 and figures["tok_s"] > 0 and figures["fairness"] >= 1
