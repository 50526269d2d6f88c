"""The report: from rows as the scripts make them, from none, from broken ones; and that it runs what is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt

from scripts.investigation import optimisation_methods
from scripts.investigation.harness import Key, Row
from scripts.report import (
    __main__ as command,
    conclusions,
    document,
    drawing,
    measured,
    recommendation,
    rows as rows_of,
)
from server.catalogue.catalogue import DEMO
from tests.made_up_rows import MACHINE, VERSIONS, Rows, keep

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Return the report's last line for made-up rows of all scripts, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    keep(folder / "results", Rows().everything())
    return document.write(measured.load(folder / "results", quick=False), folder), folder


def sections_of(folder: Path) -> dict[str, str]:
    parts = (folder / "RESULTS.md").read_text().split("\n## ")[1:]
    return {part.splitlines()[0]: part for part in parts}


def test_the_document_is_whole(written: tuple[dict[str, Any], Path]) -> None:
    summary, folder = written
    assert summary["problems"] == {} and summary["missing"] == [] and all(summary["rows"].values())
    text, parts = (folder / "RESULTS.md").read_text(), sections_of(folder)
    anchors = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in anchors] == list(parts) and all(
        document.anchor(title) == link for title, link in anchors
    )
    images = re.findall(r"\]\((images/results/\w+\.(?:png|svg))\)", text)
    assert (
        len(images) == 26 == len(set(images))
        and all((folder / image).is_file() for image in images)
        and summary["images"] == 13
    )


def test_each_figure_and_table_says_where_it_is_from(written: tuple[dict[str, Any], Path]) -> None:
    lines = [line for line in (written[1] / "RESULTS.md").read_text().splitlines() if line]
    for i, line in enumerate(lines):
        if line.startswith("[!["):
            assert lines[i + 2].startswith("<sub>"), line
        if line.startswith("|") and not lines[i + 1].startswith("|"):
            command = r"python -m scripts\.investigation\.\w+; 2026-11-26 03:00 UTC"
            assert re.match(rf"<sub>Some Processor, 2 cores.*torch 2\.13.*{command}", lines[i + 1]), line


def test_figures_are_as_wide_as_they_are_meant(written: tuple[dict[str, Any], Path]) -> None:
    for file in (written[1] / "images" / "results").glob("*.png"):
        picture = plt.imread(file)
        assert picture.shape[1] == 200 * drawing.WIDTH and 500 < picture.shape[0] < 2600, file
        assert picture[:4, :, :3].min() == 1 and picture[-4:, :, :3].min() == 1, file  # white to its edges


def test_texts_do_not_become_markdown(written: tuple[dict[str, Any], Path]) -> None:
    assert r"To \*be\*, or' -\> ' not / \`to\` be \| that" in sections_of(written[1])["Ways of decoding"]


def test_the_operating_point(written: tuple[dict[str, Any], Path]) -> None:
    summary, folder = written
    text = sections_of(folder)["The recommended operating point"]
    assert summary["operating_point"] == {
        "engine": "native",
        "precision": "int8",
        "decoder": "min-p",
        "threads": 2,
        "speculate": 8,
        "size": "gpt2-large",
        "is_default": False,
    }
    assert "| `native-int4` | +0.50 | 90.0% | no |" in text and "| `native-int8` | +0.20 | 98.0% | yes |" in text
    assert "| engine and precision | native at int8 | native at int8 |" in text


def with_perplexity(rows: list[Row], decoder: str, value: float) -> list[Row]:
    return [
        replace(row, samples=row.samples | {"perplexity": [value * (0.9 + i / 50) for i in range(10)]})
        if row.key["decoder"] == decoder and row.key["trained"]
        else row
        for row in rows
    ]


def chosen(rows: dict[str, list[Row]]) -> tuple[recommendation.Point, dict[str, list[str]]]:
    point = recommendation.Point()
    return point, recommendation.choose(measured.Measured(rows), point)


def test_the_default_stays_where_nothing_is_seen_to_be_better() -> None:
    rows = Rows().everything()
    rows["decoder_methods"] = with_perplexity(with_perplexity(rows["decoder_methods"], "min-p", 21.0), "top-k", 22.0)
    point, _ = chosen(rows)
    assert recommendation.default_decoder() == "top-k" == point.decoder
    assert point.differs() == [] and point.is_default


def test_the_default_stays_where_nothing_fits() -> None:
    rows = Rows().everything()
    rows["decoder_methods"] = [
        replace(row, samples=row.samples | {"repetition": [0.3] * 10}) if row.key["trained"] else row
        for row in rows["decoder_methods"]
    ]
    point, tables = chosen(rows)
    assert point.decoder == "top-k" and not any(line.endswith("| yes |") for line in tables["decoder"])


def test_a_decoder_that_takes_long_is_not_recommended() -> None:
    rows = Rows().everything()

    def slower(row: Row) -> Row:
        if row.key["decoder"] != "min-p" or row.key["model"] != "gpt2":
            return row
        return replace(row, samples=row.samples | {"inference_ms": [1.5 * v for v in row.samples["inference_ms"]]})

    rows["decoder_methods"] = [slower(row) for row in rows["decoder_methods"]]
    point, _ = chosen(rows)
    assert point.decoder == "top-k"


def test_nothing_measured(tmp_path: Path) -> None:
    summary = document.write(measured.load(tmp_path / "results", quick=False), tmp_path)
    assert summary["missing"] == list(measured.SCRIPTS) and summary["images"] == 0 and summary["problems"] == {}
    sentences = [c for c in conclusions.read() if c.section == conclusions.FINDINGS]
    assert all(summary["findings"][c.then] == conclusions.UNSUPPORTED for c in sentences if c.cites)
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
    summary = document.write(measured.load(tmp_path / "results", quick=False), tmp_path)
    assert list(summary["problems"]) == ["combined_methods"] and summary["rows"]["serving_methods"] == 2
    parts = sections_of(tmp_path)
    assert "cannot be written" in parts["Everything together"] and r"no \| memory" in parts["Ways of decoding"]


def test_the_last_line_of_a_trial_counts() -> None:
    first = Rows().row("s", {"model": DEMO}, {"tok_s": [1.0]}, {})
    other, last = replace(first, key={"model": "gpt2"}), replace(first, samples={"tok_s": [2.0]})
    assert rows_of.newest([first, other, last]) == [last, other]


def test_methods_of_different_groups_are_compared_by_the_baseline_of_each() -> None:
    def row(method: str, group: int, *rates: float) -> Row:
        key: dict[str, str | int | float | bool] = {"model": "gpt2", "trained": False, "method": method, "threads": 2}
        key |= {"group": group}
        return Row("optimisation_methods", key, {"tok_s": list(rates)}, {}, "", "", MACHINE, VERSIONS)

    base = measured.BASELINE
    rows = [
        row(base, 1, 10, 20),
        row("onnx-int8", 1, 20, 40),
        row(base, 2, 30, 30),
        row("native-int8", 2, 120, 120),
        row("native-int4", 2, 240, 240),
    ]
    ways = measured.Compared(rows, optimisation_methods, (25, 100))
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


def test_a_script_that_fails_is_reported_and_the_others_go_on(
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
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["scripts.report", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    out, err = capfd.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert ended.value.code == 1 and [ran["exit"] for ran in summary["ran"].values()] == [0, 1, 0, 0, 0, 0]
    assert "2/6 onnx_methods: FAILED with exit code 1" in err and "6/6 serving_methods: done" in err and "all: " in err
    assert (
        f"--quick --json {tmp_path}/quick/results/serving_methods.jsonl" in err
        and (tmp_path / "quick" / "RESULTS.md").exists()
    )


def test_command_line(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "scripts.report", "--results", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["document"] == str(
        tmp_path / "RESULTS.md"
    ), done.stderr
    assert subprocess.run([*line, "--run", "nothing"], capture_output=True, timeout=120).returncode == 2


def test_speeds_stand_beside_what_the_machine_allowed() -> None:
    machine = {"read_gb_s": 40.0, "int8_gmac_s": 400.0, "fp32_gmac_s": 100.0}
    key: Key = {"model": "gpt2", "method": "native-int8", "threads": 2, "group": 1, "trained": False}
    row = Rows().row("optimisation_methods", key, {"tok_s": [250.0], "prefill_ms": [10.0]}, machine)
    found = rows_of.beside_limits(row)
    assert found["gb_s"] == pytest.approx(32.8, rel=0.01) and found["gmac_s"] == pytest.approx(276, rel=0.01)
    assert 0.7 < found["of_limit"] < 1.1
    others: list[Key] = [{"model": DEMO}, {"method": "native-int8-threads-1"}, {"method": "page-anew"}]
    for other in others:
        assert rows_of.beside_limits(replace(row, key=key | other)) == {}
    assert rows_of.beside_limits(replace(row, facts={})) == {}


def test_another_machine_stays_as_the_second(tmp_path: Path) -> None:
    everything = Rows().everything()
    older = {
        name: [replace(row, date="2026-11-01T00:00:00Z", machine=MACHINE | {"cpu": "Older"}) for row in rows]
        for name, rows in everything.items()
    }
    keep(tmp_path / "results", {name: [*older[name], *rows] for name, rows in everything.items()})
    found = measured.load(tmp_path / "results", quick=False)
    assert found.second and {row.machine["cpu"] for rows in found.rows.values() for row in rows} == {MACHINE["cpu"]}
    assert {row.machine["cpu"] for rows in found.second.rows.values() for row in rows} == {"Older"}

    rate = float(found.compared.row("gpt2", "native-int8").median("tok_s"))  # type: ignore[union-attr]
    cited = conclusions.Cited("fast", (rate - 1, rate + 1), {"model": "gpt2", "method": "native-int8"}, of="tok_s")
    said = conclusions.Conclusion(section="in_short", text="It is fast.", cites=[cited])

    def sentence(second: measured.Measured) -> str:
        both = measured.Measured(found.rows, second)
        return conclusions.Conclusions(both, recommendation.Point(), [said]).of("in_short")[0]

    assert sentence(found.second) == "- It is fast. *(Second machine: the same.)*"
    slow = [
        replace(row, samples=row.samples | {"tok_s": [1.0, 1.0]} if "tok_s" in row.samples else row.samples)
        for row in found.second.rows["optimisation_methods"]
    ]
    slower = measured.Measured(found.second.rows | {"optimisation_methods": slow})
    assert sentence(slower) == "- It is fast. *(Second machine: 1 [1, 1].)*"
    nothing = measured.Measured(found.second.rows | {"optimisation_methods": []})
    assert sentence(nothing) == "- It is fast. *(Second machine: not measured.)*"
    assert "| our kernels, int8" in "\n".join(document.second_machine(found.second)).replace("*", "")
