"""Conclusions of the report: true of the committed results, and left out where their figures are others."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from scripts.bench.engine import ROOT
from scripts.investigation.harness import RESULTS, Row
from scripts.report import document, measured, recommendation
from scripts.report.conclusions import FINDINGS, RULE_ROWS, Cited, Conclusion, Conclusions, read
from scripts.report.sections import sections

pytestmark = pytest.mark.timeout(300)

EVERY = read()
SCRIPT = "optimisation_methods"
RATE = Cited(text="288", row={"model": "gpt2", "method": "native-int8"}, script=SCRIPT, of="tok_s", within=(270, 305))
SENTENCE = Conclusion(section="in_short", text="It writes 288 tokens/s.", cites=[RATE])


@cache
def committed() -> tuple[measured.Measured, recommendation.Point]:
    found, point = measured.load(RESULTS, quick=False), recommendation.Point()
    recommendation.choose(found, point)
    return found, point


def with_rates(factor: float, method: str = "native-int8") -> measured.Measured:
    """Return the committed results with other rates of one method on gpt2."""
    found, _ = committed()

    def other(row: Row) -> Row:
        if (row.key["model"], row.key["method"]) != ("gpt2", method):
            return row
        return replace(row, samples=row.samples | {"tok_s": [factor * v for v in row.samples["tok_s"]]})

    rows = found.rows | {"optimisation_methods": [other(row) for row in found.rows["optimisation_methods"]]}
    return measured.Measured(rows)


@cache
def true() -> tuple[Cited, Conclusion]:
    """Return what the committed results have for RATE, with an interval round it, and a sentence that says so."""
    middle = statistics.median(RATE.values(committed()[0]))
    rate = msgspec.structs.replace(RATE, text=f"{middle:.0f}", within=(0.94 * middle, 1.06 * middle))
    return rate, msgspec.structs.replace(SENTENCE, text=f"It writes {rate.text} tokens/s.", cites=[rate])


@pytest.mark.parametrize("conclusion", EVERY, ids=lambda c: f"{c.section}: {c.text[:40]}")
def test_each_figure_that_a_sentence_cites_lies_in_its_interval(conclusion: Conclusion) -> None:
    assert conclusion.problems(*committed()) == []


@pytest.mark.parametrize("conclusion", EVERY, ids=lambda c: f"{c.section}: {c.text[:40]}")
def test_a_sentence_has_no_figure_that_it_does_not_cite(conclusion: Conclusion) -> None:
    assert conclusion.uncited() == []
    assert [cited.text for cited in conclusion.cites if cited.text not in conclusion.text] == []
    assert [given for given in conclusion.given if given not in conclusion.text] == []


@pytest.mark.parametrize("conclusion", EVERY, ids=lambda c: f"{c.section}: {c.text[:40]}")
def test_intervals_are_narrow_enough_to_mean_something(conclusion: Conclusion) -> None:
    """The sentence's number lies in the interval, whose upper bound is at most three times the lower one.

    If the whole measured interval has to lie within, it may be as wide as that one needs.
    """
    for cited in conclusion.figures():
        low, high = cited.within
        assert low <= high
        if cited.script != RULE_ROWS and low > 0 and high < 1000 and not cited.whole:
            assert high <= 3 * low, cited.name
        number = re.fullmatch(r"-?[\d.,]+", cited.text.split(" ")[0])
        above = cited.of == "share_of_limit" and low > 100  # "above by 18 %"
        bound = cited.whole and "up to" in conclusion.text
        if number and not above and not bound:
            assert low <= float(number[0].replace(",", "")) <= high, cited.name


def test_every_section_of_the_report_has_conclusions_and_no_other_has() -> None:
    parts = sections(committed()[0])
    known = {"in_short", "recommendation", FINDINGS, *recommendation.PARTS, *(part.script for part in parts)}
    assert {c.section for c in EVERY} == known


def test_the_committed_report_is_what_the_committed_results_and_sentences_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are made, but not their files: these are not compared, and tests/test_report.py writes others."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    summary = document.write(committed()[0], tmp_path)
    assert summary["unsupported"] == {} and summary["problems"] == {}
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text == (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8"), "run: python -m scripts.report"


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.05, True), (1.1, False), (0.8, False)])
def test_a_figure_that_leaves_its_interval_is_found(factor: float, holds: bool) -> None:
    rate, sentence = true()
    found = with_rates(factor)
    low, high = rate.within
    problem = f"{rate.name} is {rate.shown(found)}, the sentence is for {low:g} to {high:g}"
    assert sentence.problems(found, committed()[1]) == ([] if holds else [problem])


def test_a_sentence_that_is_no_longer_true_is_not_in_the_document() -> None:
    sentence, point = true()[1], committed()[1]
    conclusions = Conclusions(with_rates(2.0), point, [sentence])
    assert conclusions.of("in_short") == [
        "- *1 conclusion is left out: these results lack the figures, or have others.*",
        "",
    ]
    assert [*conclusions.unsupported] == [sentence.text]
    assert Conclusions(with_rates(1.0), point, [sentence]).of("in_short") == [f"- {sentence.text}", ""]


def test_a_sentence_about_what_is_not_measured_is_left_out() -> None:
    nothing = measured.Measured({name: [] for name in measured.SCRIPTS})
    (reason,) = SENTENCE.problems(nothing, recommendation.Point())
    assert reason == "optimisation_methods gpt2 native-int8 tok_s is not measured"


def test_a_sentence_about_a_choice_falls_with_the_choice() -> None:
    sentence = msgspec.structs.replace(SENTENCE, cites=[], chosen={"decoder": "min-p", "is_default": False})
    assert sentence.problems(*committed()) == [
        "the rule chooses decoder=top-k, the sentence is for min-p",
        "the rule chooses is_default=True, the sentence is for False",
    ]


def test_a_finding_whose_figures_are_others_has_no_verdict() -> None:
    rate, sentence = true()
    finding = msgspec.structs.replace(sentence, section=FINDINGS, then="It is fast.", verdict="confirmed")
    same, twice = with_rates(1.0), with_rates(2.0)
    assert Conclusions(same, committed()[1], [finding]).findings_table()[-1] == (
        f"| It is fast. | **confirmed** | {sentence.text} | {rate.shown(same)} |"
    )
    assert Conclusions(twice, committed()[1], [finding]).findings_table()[-1] == (
        f"| It is fast. | **not supported by these results** |  | {rate.shown(twice)} |"
    )


def test_a_whole_interval_may_be_asked_for() -> None:
    middle = statistics.median(RATE.values(committed()[0]))
    narrow = msgspec.structs.replace(RATE, within=(0.999 * middle, 1.001 * middle))
    assert narrow.problem(committed()[0]) == ""
    assert msgspec.structs.replace(narrow, whole=True).problem(committed()[0]) != ""


def test_a_key_that_fits_several_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="rows have this key, expected one"):
        msgspec.structs.replace(RATE, row={"model": "gpt2"}).problem(committed()[0])


@pytest.mark.parametrize(
    ("text", "uncited"),
    [
        ("It is 288 tokens/s.", []),
        ("It is 288 tokens/s, 9.3 times as fast.", ["9.3"]),
        ("`native-int8` and gpt2-large at int8: 288 and 1,288.", ["1,288"]),
    ],
)
def test_numbers_that_are_not_cited_are_found(text: str, uncited: list[str]) -> None:
    found = msgspec.structs.replace(SENTENCE, text=text).uncited()
    assert [number.rstrip(".") for number in found] == uncited


@pytest.mark.parametrize(
    "text", ['[[conclusion]]\nsection = "a"\ntext = "b"\nnumber = 3', '[[conclusion]]\nsection = "a"', "[[conclusion]"]
)
def test_a_file_with_mistakes_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "conclusions.toml"
    file.write_text(text)
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        read(file)


def test_the_command_names_sentences_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from scripts.report import __main__ as command

    def write(_: measured.Measured, __: Path) -> dict[str, Any]:
        return {"unsupported": {"It is fast.": ["it is slow"]}}

    monkeypatch.setattr(command, "write", write)
    monkeypatch.setattr("sys.argv", ["scripts.report", "--results", str(tmp_path), "--out", str(tmp_path)])
    command.main()
    out, err = capfd.readouterr()
    assert "left out: 'It is fast.': it is slow" in err and json.loads(out.splitlines()[-1])["unsupported"]
