"""The report: from rows as the scripts make them, from none, from broken ones; and that it runs what is asked."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import DEMO, DEMO_FOLDER, Model
from tests.investigation import script

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.timeout(300)

SIZES = (DEMO, "gpt2", "gpt2-medium", "gpt2-large")
MACHINE = {
    "cpu": "Some Processor",
    "cores": 2,
    "memory_gb": 25.3,
    "system": "Linux",
    "python": "3.11.7",
    "read_gb_s": 33.0,
    "load": 0.2,
}
VERSIONS = {"gpt2d": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.32.0"}


report, harness, drawing, rows_of = script("__main__"), script("harness"), script("drawing"), script("rows")
measured, findings, recommendation = script("measured"), script("findings"), script("recommendation")


class Rows:
    """Rows with the keys that the scripts' own plans have, and figures that are made up."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def around(self, value: float, count: int = 10, wide: float = 0.04) -> list[float]:
        return [float(v) for v in value * np.exp(self.random.normal(0, wide, count))]

    def row(self, name: str, key: dict[str, Any], samples: dict[str, list[float]], facts: dict[str, Any]) -> Any:
        return harness.Row(
            name,
            key,
            samples,
            facts,
            "2026-11-26T03:00:00Z",
            f"python -m scripts.investigation.{name}",
            MACHINE,
            VERSIONS,
        )

    def everything(self) -> dict[str, list[Any]]:
        return {
            name: [row for size in SIZES for row in getattr(self, name)(size, model_of(size))]
            for name in measured.SCRIPTS
        }

    def optimisation_methods(self, size: str, model: Model) -> Iterator[Any]:
        yield from self.methods(size, model, "optimisation_methods", (25, 100))

    def onnx_methods(self, size: str, model: Model) -> Iterator[Any]:
        yield from self.methods(size, model, "onnx_methods", (8,))

    def methods(self, size: str, model: Model, name: str, lengths: tuple[int, ...]) -> Iterator[Any]:
        methods = script("methods")
        scale = model.architecture.parameters / 124e6 if model.architecture else 1.0
        losses = {"fp32": (0.0, 1.0), "bf16": (0.05, 0.98), "int8": (0.2, 0.98), "int4": (0.5, 0.9)}
        for i, method in enumerate(script(name).methods_of(size, 2, SIZES)):
            key = methods.key(
                method, SimpleNamespace(size=size, model=model, threads=2), 1 + i % 2 if i and not method.against else 1
            )
            row = self.row(name, key, {}, {})
            if reason := method.skip(model.architecture):
                yield replace(row, problem=f"Skipped: {reason}")
                continue
            rates = self.around(min(method.tok_s / scale, 3000.0))
            prefill = self.around(50 * scale * 23 / method.tok_s)
            samples = {"tok_s": rates}
            if method.make is methods.MethodTrial or "two-texts" not in method.name:
                samples["prefill_ms"] = prefill
                for length in lengths:
                    whole = [p + 1000 * (length - 1) / r for p, r in zip(prefill, rates, strict=True)]
                    samples[f"whole_{length}_ms"] = whole if statistics_fit(whole) else whole[:1]
            facts: dict[str, Any] = {"load_s": 1.0, "rss_mb": round(method.bytes(model.architecture) / 1e6)}
            if size == DEMO and method.judged:
                facts |= dict(
                    zip(
                        ("perplexity_change_pct", "top1_agreement"),
                        losses[rows_of.precision_of(method.name)],
                        strict=True,
                    )
                )
            if name == "onnx_methods" and not method.option:
                facts["profile"] = {
                    "Gemm": 0.55,
                    "MatMulNBits": 0.2,
                    "Concat": 0.1,
                    "GroupQueryAttention": 0.05,
                    "Reshape": 0.04,
                }
            if "lookup" in method.name or "page" in method.name:
                facts |= {
                    "texts": "abc",
                    "reused_tokens": 0,
                    "prompt_tokens": 1,
                    "guessed_tokens": 0,
                    "accepted_tokens": 0,
                }
            if method.name == "lookup-repeating-on":
                samples |= {name: [v / 2 for v in values] for name, values in samples.items() if "whole" in name}
            yield replace(row, samples=samples, facts=facts)
        if name == "optimisation_methods":  # the second group has the baseline, too
            key = methods.key(
                script(name).methods_of(size, 2, SIZES)[0], SimpleNamespace(size=size, model=model, threads=2), 2
            )
            rates = self.around(min(23 / scale, 3000.0))
            yield self.row(name, key, {"tok_s": rates, "prefill_ms": self.around(50 * scale), "whole_25_ms": [24000 / r for r in rates]}, {"rss_mb": 900, "load_s": 2.0, "perplexity_change_pct": 0.0})  # fmt: skip

    def decoder_methods(self, size: str, model: Model) -> Iterator[Any]:
        decoders = script("decoder_methods")
        args = Namespace(only=list(decoders.DECODERS), new_tokens=[25, 100], threads=2, quick=False, seconds=4.0)
        slow = {
            "beam": 3.5,
            "beam sampling": 3.8,
            "diverse beam": 3.7,
            "contrastive": 6.0,
            "prompt lookup": 0.7,
            "sampling": 1.03,
            "mirostat": 1.05,
        }
        repeated = {
            "greedy": 0.42,
            "prompt lookup": 0.42,
            "beam": 0.55,
            "diverse beam": 0.5,
            "beam sampling": 0.2,
            "contrastive": 0.05,
        }
        perplexity = {"greedy": 4.0, "prompt lookup": 4.0, "beam": 3.2, "diverse beam": 3.4, "beam sampling": 6.0, "contrastive": 11.0, "sampling": 60.0, "top-p": 45.0, "typical": 43.0, "mirostat": 30.0, "min-p": 14.0}  # fmt: skip
        for plan in decoders.plans(args, None, size, model):
            name, count = str(plan.key["decoder"]), int(plan.key["new_tokens"])
            ms = (
                count * 3.0 * slow.get(name, 1.0) * (model.architecture.parameters / 124e6 if model.architecture else 1)
            )
            samples = {
                "inference_ms": self.around(ms),
                "whole_ms": self.around(ms * 1.1),
                "tok_s": self.around(count / ms * 1000),
            }
            if plan.key["trained"]:
                share = repeated.get(name, 0.01)
                samples |= {
                    "repetition": self.around(share, wide=0.2),
                    "perplexity": self.around(perplexity.get(name, 22.0), wide=0.15),
                }
                samples |= {f"distinct_{n}": self.around(1 - share / n) for n in (1, 2, 3)}
            texts = [{"prompt": "To *be*, or", "text": " not\n`to` be | that"}] if plan.key["trained"] else []
            yield self.row(
                "decoder_methods",
                plan.key,
                samples,
                {"texts": texts, "settings": {}, "rss_mb": 100.0, "model": model.name},
            )

    def combined_methods(self, size: str, model: Model) -> Iterator[Any]:
        combined = script("combined_methods")
        args, scale = (
            Namespace(outputs=None, threads=2, quick=False, seconds=4.0),
            model.architecture.parameters / 124e6 if model.architecture else 1,
        )
        fast = {"transformers": 22, "torch": 90, "optimum": 54, "onnx": 200, "native": 300}
        for plan in combined.plans(args, None, None, size, model, list(combined.VARIANTS)):
            engine, outputs = str(plan.key["engine"]), int(plan.key["outputs"])
            rate = (
                fast[engine]
                / scale
                * (0.3 if plan.key["precision"] == "fp32" else 1)
                * (outputs**0.6 if engine in {"onnx", "native", "transformers"} else 1)
            )
            samples = {"tok_s": self.around(rate), "whole_ms": self.around(25000 * outputs / rate)}
            yield self.row("combined_methods", plan.key, samples, {"loaded_mb": 100.0, "rss_mb": 200.0, "load_s": 1.0})

    def operating_point(self, size: str, model: Model) -> Iterator[Any]:
        point = script("operating_point")
        args = Namespace(
            new_tokens=[25, 100],
            engine="native",
            precision="int8",
            prompt=point.PROMPT,
            settings={},
            reuse=False,
            trials=200,
            threads=2,
        )
        for plan in point.plans(args, None, size, model):
            ms = (
                int(plan.key["new_tokens"]) * 3.0 * (model.architecture.parameters / 124e6 if model.architecture else 1)
            )
            values = [ms * (1 + v) for v in self.random.gamma(2, 0.04, 200)]
            samples = {
                "inference_ms": values,
                "first_token_ms": self.around(9, 200),
                "whole_ms": [v + 1 for v in values],
                "tok_s": [25000 / v for v in values],
            }
            facts = {
                "texts": ["One text"] * 4,
                "different_texts": 200,
                "pairwise_distinct": 0.98,
                "repetition": 0.01,
                "distinct_1": 0.8,
                "distinct_2": 0.95,
            }
            yield self.row("operating_point", plan.key, samples, facts)

    def serving_methods(self, size: str, model: Model) -> Iterator[Any]:
        serving = script("serving_methods")
        server = SimpleNamespace(model=model, engine="native", precision="int8")
        series = serving.Series(Namespace(rows=16, threads=2, quick=False, seconds=3.0), None, server, size)
        step = 3.0 * (model.architecture.parameters / 124e6 if model.architecture else 1)

        def many(sweep: str, together: float, late: float, **told: Any) -> Any:
            key = series.plan(sweep, serving.Closed, 1, **told).key
            rate = 1000 / step * min(together, 12) ** 0.6
            samples = {
                "tok_s": self.around(rate),
                "requests_per_s": self.around(rate / 25),
                "token_p50_ms": self.around(step),
            }
            samples |= {
                "first_token_p50_ms": self.around(late),
                "first_token_p95_ms": self.around(late * 2),
                "first_token_p99_ms": self.around(late * 3),
            }
            return self.row("serving_methods", key, samples, {"rss_mb": 100.0})

        for count in (1, 2, 4, 8, 16, 32):
            yield many("clients", count, 4 * step * count, clients=count)
        for i, rate in enumerate((8.0, 16.0, 32.0, 64.0)):
            yield many("rate", i + 1, 4 * step * (1 + math.exp(i)), rate=rate, clients=64)
        shapes = [
            ("prompt", "prompt_tokens", serving.PROMPTS),
            ("new", "new_tokens", serving.NEW),
            ("batch", "outputs", serving.BATCH),
        ]
        for sweep, name, values in shapes:
            for value in values:
                key = series.plan(sweep, serving.One, **{name: value}).key
                whole = step * (value if sweep == "new" else 25)
                samples = {"whole_ms": self.around(whole), "prefill_ms": self.around(step * value / 8), "token_ms": self.around(step), "tok_s": self.around(1000 / step * value**0.5)}  # fmt: skip
                yield self.row("serving_methods", key, samples, {"rss_mb": 100.0})


def statistics_fit(whole: list[float]) -> bool:
    return whole[0] < 1000


def model_of(size: str) -> Model:
    return (
        Model(DEMO, DEMO_FOLDER, read_architecture(DEMO_FOLDER))
        if size == DEMO
        else Model(f"random-{size}", None, PUBLISHED[size])
    )


def keep(folder: Path, rows: dict[str, list[Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in own))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the report says in its last line of made-up rows of all scripts, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    keep(folder / "results", Rows().everything())
    return report.write(measured.load(folder / "results", quick=False), folder), folder


def sections_of(folder: Path) -> dict[str, str]:
    parts = (folder / "RESULTS.md").read_text().split("\n## ")[1:]
    return {part.splitlines()[0]: part for part in parts}


def test_the_document_is_whole(written: tuple[dict[str, Any], Path]) -> None:
    told, folder = written
    assert told["problems"] == {} and told["missing"] == [] and all(told["rows"].values())
    text, parts = (folder / "RESULTS.md").read_text(), sections_of(folder)
    anchors = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in anchors] == list(parts) and all(
        report.anchor(title) == link for title, link in anchors
    )
    images = re.findall(r"\]\((images/results/\w+\.(?:png|svg))\)", text)
    assert (
        len(images) == 26 == len(set(images))
        and all((folder / image).is_file() for image in images)
        and told["images"] == 13
    )


def test_each_figure_and_table_says_where_it_is_from(written: tuple[dict[str, Any], Path]) -> None:
    lines = [line for line in (written[1] / "RESULTS.md").read_text().splitlines() if line]
    for i, line in enumerate(lines):
        if line.startswith("[!["):
            assert lines[i + 2].startswith("<sub>"), line
        if line.startswith("|") and not lines[i + 1].startswith("|"):
            assert re.match(
                r"<sub>Some Processor, 2 cores.*torch 2\.13.*python -m scripts\.investigation\.\w+; 2026-11-26 03:00 UTC",
                lines[i + 1],
            ), line


def test_figures_are_as_wide_as_they_are_meant(written: tuple[dict[str, Any], Path]) -> None:
    for file in (written[1] / "images" / "results").glob("*.png"):
        picture = drawing.plt.imread(file)
        assert picture.shape[1] == 200 * drawing.WIDTH and 500 < picture.shape[0] < 2600, file
        assert picture[:4, :, :3].min() == 1 and picture[-4:, :, :3].min() == 1, file  # white to its edges


def test_texts_do_not_become_markdown(written: tuple[dict[str, Any], Path]) -> None:
    assert r"To \*be\*, or' -\> ' not / \`to\` be \| that" in sections_of(written[1])["Ways of decoding"]


def test_old_findings(written: tuple[dict[str, Any], Path]) -> None:
    told, folder = written
    verdicts = told["findings"]
    assert [v for name, v in verdicts.items() if name.startswith("Dynamic")] == [findings.CONFIRMED] * 3
    assert verdicts["torch.compile changes hardly anything."] == findings.REFUTED  # 30 tokens/s instead of 25
    assert verdicts["BetterTransformer changes hardly anything."] == findings.CONFIRMED
    assert verdicts["Quantisation together with multithreading is the fastest."] == findings.CONFIRMED
    assert verdicts["Sampling repeats itself less than greedy decoding."] == findings.CONFIRMED
    assert sum(verdict == findings.UNKNOWN for verdict in verdicts.values()) == 3
    assert "0.53 s became 0.42 s" in sections_of(folder)["The old findings"]


def test_the_operating_point(written: tuple[dict[str, Any], Path]) -> None:
    point, text = written[0]["operating_point"], sections_of(written[1])["The recommended operating point"]
    wanted = {
        "engine": "native",
        "precision": "int8",
        "decoder": "min-p",
        "threads": 2,
        "speculate": 8,
        "size": "gpt2-large",
        "is_default": False,
    }
    assert (
        point == wanted
        and "`native-int4` (+0.50 %, 90.0%)" in text
        and "This is not the default of daemon and client" in text
    )


def with_perplexity(rows: list[Any], decoder: str, value: float) -> list[Any]:
    return [
        replace(row, samples=row.samples | {"perplexity": [value * (0.9 + i / 50) for i in range(10)]})
        if row.key["decoder"] == decoder and row.key["trained"]
        else row
        for row in rows
    ]


def test_the_default_stays_where_nothing_is_seen_to_be_better() -> None:
    rows = Rows().everything()
    rows["decoder_methods"] = with_perplexity(with_perplexity(rows["decoder_methods"], "min-p", 21.0), "top-k", 22.0)
    point = recommendation.Point()
    text = recommendation.recommended(measured.Measured(rows), point)
    assert (
        recommendation.default_decoder() == "top-k" == point.decoder
        and point.differs() == []
        and "This is the default" in text[0]
    )


def test_the_default_stays_where_nothing_fits() -> None:
    rows = Rows().everything()
    rows["decoder_methods"] = [
        replace(row, samples=row.samples | {"repetition": [0.3] * 10}) if row.key["trained"] else row
        for row in rows["decoder_methods"]
    ]
    point = recommendation.Point()
    text = recommendation.recommended(measured.Measured(rows), point)
    assert point.decoder == "top-k" and any("None fits it" in line for line in text)


def test_a_decoder_that_takes_long_is_not_recommended() -> None:
    rows = Rows().everything()
    slow = {"gpt2": 1.5, DEMO: 1.0}
    rows["decoder_methods"] = [
        replace(
            row,
            samples=row.samples
            | {"inference_ms": [v * slow.get(row.key["model"], 1.0) for v in row.samples["inference_ms"]]},
        )
        if row.key["decoder"] == "min-p"
        else row
        for row in rows["decoder_methods"]
    ]
    point = recommendation.Point()
    recommendation.recommended(measured.Measured(rows), point)
    assert point.decoder == "top-k"


def test_nothing_measured(tmp_path: Path) -> None:
    told = report.write(measured.load(tmp_path / "results", quick=False), tmp_path)
    assert told["missing"] == list(measured.SCRIPTS) and told["images"] == 0 and told["problems"] == {}
    assert set(told["findings"].values()) == {findings.MISSING, findings.UNKNOWN}
    text = (tmp_path / "RESULTS.md").read_text()
    assert (
        all(f"`python -m scripts.investigation.{name}`" in text for name in measured.SCRIPTS)
        and "Nothing has been measured that an operating point" in text
    )


def test_rows_that_are_broken_or_few(tmp_path: Path) -> None:
    rows = {name: own[:2] for name, own in Rows().everything().items()}
    rows["decoder_methods"] = [
        replace(rows["decoder_methods"][0], samples={}, facts={}, problem="EngineFailed: no | memory")
    ]
    rows["combined_methods"] = [replace(row, facts={}) for row in rows["combined_methods"]]  # of an older version
    keep(tmp_path / "results", rows)
    with (tmp_path / "results" / "serving_methods.jsonl").open("a") as file:
        file.write('{"script": "serving_me')
    told = report.write(measured.load(tmp_path / "results", quick=False), tmp_path)
    assert list(told["problems"]) == ["combined_methods"] and told["rows"]["serving_methods"] == 2
    parts = sections_of(tmp_path)
    assert "cannot be written" in parts["Everything together"] and r"no \| memory" in parts["Ways of decoding"]


def test_the_last_line_of_a_trial_counts() -> None:
    first = Rows().row("s", {"model": DEMO}, {"tok_s": [1.0]}, {})
    other, last = replace(first, key={"model": "gpt2"}), replace(first, samples={"tok_s": [2.0]})
    assert rows_of.newest([first, other, last]) == [last, other]


def test_methods_of_different_groups_are_compared_by_the_baseline_of_each() -> None:
    def row(method: str, group: int, *rates: float) -> Any:
        return harness.Row("optimisation_methods", {"model": "gpt2", "trained": False, "method": method, "threads": 2, "group": group}, {"tok_s": list(rates)}, {}, "", "", MACHINE, VERSIONS)  # fmt: skip

    base = measured.BASELINE
    rows = [
        row(base, 1, 10, 20),
        row("onnx-int8", 1, 20, 40),
        row(base, 2, 30, 30),
        row("native-int8", 2, 120, 120),
        row("native-int4", 2, 240, 240),
    ]
    ways = measured.Compared(rows, script("optimisation_methods"), (25, 100))
    assert ways.ratio("gpt2", "native-int8", base) == [4, 4] and ways.ratio("gpt2", "native-int4", "native-int8") == [
        2,
        2,
    ]
    assert (
        ways.ratio("gpt2", "native-int8", "onnx-int8") == [2, 2]
        and ways.ratio("gpt2", "native-int8", "torch-fp32") is None
    )


def test_the_limit_is_what_the_weights_take() -> None:
    megabytes = {precision: rows_of.bytes_a_token("gpt2", precision) / 1e6 for precision in ("int8", "int4", "fp32")}
    assert megabytes == pytest.approx({"int8": 131, "int4": 89, "fp32": 494}, abs=0.5)  # as docs/kernels.md has it
    assert rows_of.limits("gpt2", 13.1)["int8"] == pytest.approx(100, rel=0.01) and rows_of.limits(DEMO, 13.1) == {}


def test_a_script_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scripts" / "investigation"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder.parent / "__init__.py").touch()
    for name in measured.SCRIPTS:
        (folder / f"{name}.py").write_text(
            f"import sys\nprint(*sys.argv[1:])\nsys.exit({int(name == 'onnx_methods')})\n"
        )
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    out, err = capfd.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert ended.value.code == 1 and [ran["exit"] for ran in told["ran"].values()] == [0, 1, 0, 0, 0, 0]
    assert "2/6 onnx_methods: FAILED with exit code 1" in err and "6/6 serving_methods: done" in err and "all: " in err
    assert (
        f"--quick --json {tmp_path}/quick/results/serving_methods.jsonl" in err
        and (tmp_path / "quick" / "RESULTS.md").exists()
    )


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.report", "--results", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["document"] == str(
        tmp_path / "RESULTS.md"
    ), done.stderr
    assert subprocess.run([*command, "--run", "nothing"], capture_output=True, timeout=120).returncode == 2
