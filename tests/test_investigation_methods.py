"""The investigation's methods: how they are grouped and reported; its two scripts on `demo` with a few of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from scripts.bench.machine import can_measure
from scripts.investigation import method_child, method_figures, methods, onnx_methods, optimisation_methods
from scripts.investigation.harness import Row
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import ENGINES
from tests.investigation import run_script

pytestmark = pytest.mark.timeout(600)  # a script starts a process for each method, on a machine that may be busy

needs_native = pytest.mark.skipif("native" not in ENGINES, reason="gpt2d-kernels is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@dataclass
class Ran:
    found: dict[str, dict[str, Any]]
    """Figures of each method in the last line."""
    kept: dict[str, Any]
    """Rows in the file."""
    output: str


def run(home: Path, name: str, *only: str) -> Ran:
    wanted = ("--threads", "1", "--only", *only)
    done = run_script(home, f"investigation.{name}", "--quick", "--json", str(home / f"{name}.jsonl"), *wanted)
    assert done.returncode == 0, done.stderr
    kept = {
        row["key"]["method"]: row for row in map(json.loads, (home / f"{name}.quick.jsonl").read_text().splitlines())
    }
    assert not any(row["problem"] for row in kept.values()), done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["script"] == name
    found = {row["method"]: row for row in last["rows"]}
    assert set(found) == set(kept) and all(
        f["model"] == "demo" and f["runs"] == 3 and f["rss_mb"] > 10 for f in found.values()
    )
    return Ran(found, kept, done.stdout)


@needs_native
def test_optimisations(home: Path) -> None:
    more = ("native-int8-busy", "native-int8-coarse-head")
    wanted = ("transformers-int8-head", "native-int8", *more, "page-reused", "lookup-repeating-on")
    ran = run(home, "optimisation_methods", *wanted)
    found, kept = ran.found, ran.kept
    baseline = found["transformers-fp32"]
    assert set(found) == {"transformers-fp32", *wanted, "page-anew", "lookup-repeating-off"}
    assert "speedup" not in baseline and found["native-int8"]["against"] == "transformers-fp32"
    for name in ("transformers-fp32", "transformers-int8-head", "native-int8", *more):
        samples = kept[name]["samples"]
        assert len(samples["whole_8_ms"]) == len(samples["prefill_ms"]) == len(samples["tok_s"]) == 3
        assert samples["prefill_ms"][0] + samples["decode_8_ms"][0] == pytest.approx(samples["whole_8_ms"][0], rel=1e-4)
        low, high = found[name]["whole_25_ms_95"]
        assert low <= found[name]["whole_25_ms"] <= high < found[name]["whole_100_ms"]
    assert abs(baseline["perplexity_change_pct"]) < 0.01 and baseline["top1_agreement"] > 0.99
    assert 0.8 < found["native-int8"]["top1_agreement"] < 1
    assert can_measure() == all("read_gb_s" in row["facts"] for row in kept.values())
    assert found["page-reused"]["reused_tokens"] == 3 * 512 and found["page-anew"]["reused_tokens"] == 0
    assert found["lookup-repeating-on"]["accepted_tokens"] > 0 and found["lookup-repeating-off"]["guessed_tokens"] == 0
    assert found["page-reused"]["same_text"] and found["lookup-repeating-on"]["same_text"]
    assert "times as fast" in ran.output and "native-int8" in ran.output


def test_a_text_is_scored_by_transformers_as_the_engines_do() -> None:
    pytest.importorskip("transformers")
    order = method_child.Order("optimisation_methods.transformers", "fp32", "sdpa", str(DEMO_FOLDER), 1)
    loaded = optimisation_methods.transformers(order)
    assert loaded.score is not None
    found = np.asarray(loaded.score([5, 6, 7, 8]))[:, 0]
    logits = loaded.engine().prefill(0, [5, 6, 7], 0, [0, 1, 2])
    wanted = [float(row[token] - np.logaddexp.reduce(row)) for row, token in zip(logits, (6, 7, 8), strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_onnx(home: Path) -> None:
    wanted = ("exported-int4-blocks", "exported-fp32-bound", "ours-int4", "ours-int4-fed", "ours-int4-no-cache")
    ran = run(home, "onnx_methods", *wanted)
    found, kept = ran.found, ran.kept
    assert set(found) == {"exported-fp32", *wanted}
    assert len(kept["ours-int4-no-cache"]["samples"]["whole_4_ms"]) == 3
    # The same blocks make the same model, whichever graph they are in.
    assert found["exported-int4-blocks"]["perplexity"] == pytest.approx(found["ours-int4"]["perplexity"], rel=0.01)
    for name, operator in (
        ("exported-fp32", "Gemm"),
        ("exported-int4-blocks", "MatMulNBits"),
        ("ours-int4", "GroupQueryAttention"),
    ):
        profile = found[name]["profile"]
        assert operator in profile and len(profile) <= 8 and 0.5 < sum(profile.values()) <= 1.001
        assert f"demo {name}: " in ran.output


def test_the_graph_that_is_fed_computes_the_same() -> None:
    order = method_child.Order("onnx_methods.ours", "fp32", "fed", str(DEMO_FOLDER), 1)
    try:
        engine = method_child.own_engine(order, "onnx")
    except method_child.JustBuilt:
        engine = method_child.own_engine(order, "onnx")
    fed = onnx_methods.Fed(order.architecture, engine)
    for ids, past in (([5, 6, 7], 0), ([8], 3), ([9, 10], 4)):
        wanted = [len(ids) - 1]
        np.testing.assert_allclose(fed.prefill(0, ids, past, wanted), engine.prefill(0, ids, past, wanted), atol=1e-4)


def test_a_method_that_takes_too_long_or_fails_says_so() -> None:
    with pytest.raises(SystemExit, match="longer than 0 s"):
        methods.MethodProcess(method_child.Order("method_child.own", "fp32", "onnx", str(DEMO_FOLDER), 1), 0.01)
    with pytest.raises(SystemExit, match="AttributeError"):
        methods.MethodProcess(method_child.Order("method_child.nothing", "fp32", "onnx", str(DEMO_FOLDER), 1))


@pytest.mark.parametrize("script", [optimisation_methods, onnx_methods])
@pytest.mark.parametrize("size", ["gpt2", "gpt2-large"])
def test_groups_fit_and_have_the_baseline(script: ModuleType, size: str) -> None:
    arch = PUBLISHED[size]
    rows = script.methods_of(size, 2, ("gpt2", "gpt2-large"))
    assert len({method.name for method in rows}) == len(rows)
    packed = methods.groups(rows, arch)
    room = methods.GROUP_SHARE * psutil.virtual_memory().total
    for group in packed:
        assert group[0] is rows[0] and {m.against for m in group} - {""} <= {m.name for m in group}
        assert methods.memory(group, arch) <= room or len(group) == 2
    assert sorted(m.name for group in packed for m in group[1:]) == sorted(m.name for m in rows[1:])


def row(**samples: list[float]) -> Row:
    return Row("s", {"model": "demo", "method": "m", "group": 1}, samples, {}, "", "", {}, {})


def test_times_that_were_not_measured_in_all_runs_are_derived() -> None:
    slow = row(prefill_ms=[50.0, 50.0], tok_s=[20.0, 20.0], whole_25_ms=[1300.0])
    fast = row(prefill_ms=[5.0, 5.0], tok_s=[200.0, 100.0], whole_25_ms=[125.0, 245.0])
    assert method_figures.times(slow, 25) == [1250, 1250] and method_figures.times(fast, 25) == [125, 245]
    assert method_figures.speedups(fast, slow, 25) == pytest.approx([10, 1250 / 245])
    texts = row(tok_s=[30.0, 30.0])
    assert method_figures.speedups(replace(texts, samples={"tok_s": [60.0, 90.0]}), texts, 25) == [2, 3]
    found = method_figures.figures(slow, None, (25, 100))
    assert found["derived_25"] and found["whole_100_ms"] == 5000 and "speedup" not in found


def test_a_run_is_as_long_as_its_time_allows() -> None:
    longest = methods.longest
    assert longest(methods.LENGTHS, 0.01, 0.003, 5) == 100
    assert longest(methods.LENGTHS, 0.05, 0.03, 5) == 25
    assert longest(methods.LENGTHS, 0.05, 0.04, 0) == 100 and longest(methods.LENGTHS, 0.3, 0.3, 0) == 8
    assert longest((4,), 1.0, 1.0, 0) == 4
