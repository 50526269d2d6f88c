"""scripts.bench.rows: what L is, that steps and the machine are measured, and that its busy processes do not stay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from scripts.bench import steps
from scripts.bench.busy import SPIN
from scripts.bench.engine import module_environment
from scripts.bench.machine import Amount, Step, amount, compile_probe
from scripts.bench.rows import Turns, over_first, parser, steps_of, turns_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.engines import instruction_sets, native_problem
from server.checkpoint.tensors import expected_shapes
from server.convert.native_layout import FILE, Layout
from tests.conftest import wait_for

FAST = not native_problem() and {"avx512", "avx2"} & set(instruction_sets())


@pytest.mark.parametrize(
    ("precision", "rows", "least_ms"),
    [
        ("int8", 4, 1.79),
        ("int8", 8, 1.82),
        ("int8", 16, 2.7),
        ("int4", 4, 1.26),
        ("int4", 8, 1.41),
        ("int4", 16, 2.7),
    ],
)
def test_least_time_of_a_step(precision: str, rows: int, least_ms: float) -> None:
    """Figures worked out by hand for gpt2 at 79 GB/s and 0.76 of 2 x 525 GMAC/s; sixteen rows wait for arithmetic."""
    work = amount(PUBLISHED["gpt2"], precision, Step(rows, 33))
    assert work.least_ms(79, 0.76 * 2 * 525) == pytest.approx(least_ms, abs=0.02)


def test_a_prefill_has_the_head_of_one_token() -> None:
    gpt2 = PUBLISHED["gpt2"]
    prefill, step = amount(gpt2, "int8", Step(1, 0, 512)), amount(gpt2, "int8", Step(512, 0))
    assert step.macs - prefill.macs == 511 * 50272 * 768
    assert prefill.kv_bytes == step.kv_bytes == 512 * gpt2.row_bytes("native", "int8") / 1024


def rows(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "scripts.bench.rows", "--model", "demo", *arguments]
    return subprocess.run(command, env=module_environment(), capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not FAST or not shutil.which("gcc"), reason="needs gcc and the native kernels for AVX2")
def test_two_builds_take_turns_beside_what_the_machine_allows() -> None:
    import gpt2d_kernels

    shape = [
        "--precisions",
        "int8",
        "--rows",
        "1,3",
        "--past",
        "5",
        "--prefill",
        "8",
        "--processes",
        "1",
        "--turns",
        "2",
    ]
    done = rows(*shape, "--threads", "1", "--against", str(gpt2d_kernels.library()))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [build["name"] for build in found["builds"]] == ["ours", "against"]
    (process,) = found["precisions"]["int8"]
    assert process["meeting_us"] > 0
    assert [section["step"] for section in process["sections"]] == [
        {"rows": 1, "past": 5, "tokens": 1},
        {"rows": 3, "past": 5, "tokens": 1},
        {"rows": 1, "past": 0, "tokens": 8},
    ]
    for section, steps_of_a_turn, turns in zip(process["sections"], (3, 3, 1), (2, 2, 1), strict=True):
        for build in section["builds"]:
            assert [len(ms) for ms in build["ms"]] == [steps_of_a_turn] * turns and min(map(min, build["ms"])) > 0
            assert len(build["read_gb_s"]) == len(build["gmac_s"]) == turns
            assert min(*build["read_gb_s"], *build["gmac_s"]) > 0
    table = done.stderr.splitlines()
    assert "x L" in table[-7] and table[-1].endswith("against")


def test_the_machine_reads_the_weights_of_the_build_whose_turn_it_is() -> None:
    """Those of the first alone would lie in the caches before its steps, and in the way of the others'."""
    order = steps.Order({}, "int8", "", "avx512", [], [], turns=2, threads=1, probe="")
    said: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def time(self, *_: object) -> float:
            said.append(self.name)
            return 1.0

    def machine(model: steps.Timed) -> tuple[float, float]:
        assert isinstance(model, Fake)
        said.append(f"machine of {model.name}")
        return 30.0, 300.0

    models = [Fake("A"), Fake("B")]
    step = Step(1, 5)
    times = {step: [steps.Times() for _ in models]}
    for turn in range(2):
        steps.take_turn(turn, models, times, order, np.random.default_rng(1), machine)
    a, b = ([f"machine of {name}", *[name] * (1 + steps.TIMED), f"machine of {name}"] for name in "AB")
    assert said == [*a, *b, *b, *a]


@pytest.mark.parametrize(("last_first", "made"), [(False, ["A", "B"]), (True, ["B", "A"])])
def test_either_build_can_be_the_first_that_takes_memory(
    monkeypatch: pytest.MonkeyPatch, last_first: bool, made: list[str]
) -> None:
    said: list[str] = []

    class Fake:
        def __init__(self, _: steps.Order, build: steps.Build) -> None:
            self.name = build.name
            said.append(build.name)

    monkeypatch.setattr(steps, "Model", Fake)
    builds = [steps.Build(name, f"{name}.so", 1) for name in "AB"]
    order = steps.Order({}, "int8", "", "avx512", builds, [], turns=2, threads=1, probe="", last_first=last_first)
    assert [getattr(model, "name", None) for model in steps.make_models(order)] == ["A", "B"]
    assert said == made


def test_who_begins_a_turn_has_no_advantage_in_the_end() -> None:
    """Its weights are in the caches: a fifth faster, and 1.06 was said of the same build twice."""
    first, other = ([3.0, 3.6, 3.0, 3.6, 3.0], [3.6, 3.0, 3.6, 3.0, 3.6])
    assert over_first([Turns(first, [], [], [])], [Turns(other, [], [], [])]) == pytest.approx(1)
    assert over_first([Turns([2.0], [], [], [])], [Turns([3.0], [], [], [])]) == pytest.approx(1.5)


def test_a_turn_is_judged_by_the_machine_beside_it() -> None:
    """Memory halves its speed in the second turn, arithmetic in the third: the step is as near to L as before."""
    work = Amount(weight_bytes=60e6, kv_bytes=0, macs=800e6)
    build = {"ms": [[2.2, 9.0, 2.2], [4.2], [4.2]], "read_gb_s": [30.0, 15.0, 30.0], "gmac_s": [400.0, 400.0, 200.0]}
    process = {"sections": [{"builds": [build]}]}
    turns = turns_of(process, 0, 0, work, busy=False)
    assert turns.ms == [2.2, 4.2, 4.2] and turns.least_ms == pytest.approx([2.1, 4.1, 4.1])
    assert turns.over == pytest.approx([2.2 / 2.1, 4.2 / 4.1, 4.2 / 4.1])
    assert turns_of(process, 0, 0, work, busy=True).ms == pytest.approx([13.4 / 3, 4.2, 4.2])


@pytest.mark.skipif(not FAST or not shutil.which("gcc"), reason="needs gcc and the native kernels for AVX2")
def test_beside_a_busy_process_the_engine_chooses_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpt2d_kernels

    monkeypatch.setattr(steps, "BUSY_TURN_S", 0.01)
    arch = replace(PUBLISHED["distilgpt2"], layers=1, vocabulary=100)
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in expected_shapes(arch).items()}
    Layout(arch, weights, "int8", lambda *_: None).write(tmp_path)
    found = steps.measure(
        steps.Order(
            arch=asdict(arch),
            precision="int8",
            weights=str(tmp_path / FILE),
            instruction_set=instruction_sets()[0],
            builds=[steps.Build("fixed", str(gpt2d_kernels.library()), 2), steps.Build("chosen", "", 2)],
            steps=[Step(2, 3), Step(1, 0, 4)],
            turns=1,
            threads=2,
            probe=str(compile_probe(tmp_path)),
            busy=1,
            busy_ms=1,
            period_ms=2,
        )
    )
    for section in found["sections"]:
        (fixed,), (chosen,) = (build["ms"] for build in section["builds"])
        assert min(*fixed, *chosen) > 0
    assert not [child for child in psutil.Process().children() if "begun" in " ".join(child.cmdline())]


@pytest.mark.parametrize("arguments", [["--past", "33,1024"], ["--prefill", "1025"]])
def test_what_does_not_fit_is_refused(arguments: list[str]) -> None:
    args = parser().parse_args(["--like", "gpt2", *arguments])
    with pytest.raises(SystemExit, match="this model's context is 1024 tokens"):
        steps_of(args, PUBLISHED["gpt2"])


def test_steps_of_a_short_context_are_those_that_fit() -> None:
    args = parser().parse_args(["--like", "gpt2", "--rows", "1,8"])
    found = steps_of(args, replace(PUBLISHED["gpt2"], context=256))
    assert found == [Step(1, 33), Step(8, 33), Step(1, 0, 256)]


@pytest.mark.skipif(sys.platform == "win32", reason="a child there does not see that its parent is gone")
def test_a_busy_process_ends_with_the_one_that_started_it() -> None:
    """Also where that was killed: nothing stays that takes a core for ever."""
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SPIN!r}, '0.001', '0.002'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    wait_for(lambda: ended(pid))


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
