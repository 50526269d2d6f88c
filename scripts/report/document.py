"""The document: how it was measured, the sections with their conclusions, and what follows."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.investigation.harness import QUICK_RUNS, RESAMPLES, RUNS, WARMUPS
from scripts.investigation.one_daemon import LEAST
from scripts.investigation.texts import PROMPT_TOKENS
from scripts.report import drawing, recommendation
from scripts.report.conclusions import FINDINGS, Conclusions
from scripts.report.measured import Measured, command_of, escaped, listed, markdown, origins, under
from scripts.report.recommendation import Point
from scripts.report.sections import Section, in_short, sections
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO

QUESTION = (
    "What is the fastest possible autoregressive decoding of GPT-2 on a CPU, with text still worth reading? An earlier "
    "investigation compared optimisations of a model in torch, with means of 10 runs of 25 tokens. This one asks the "
    "same again, of every size, with runtimes and kernels that are made for it."
)


def method_text(found: Measured) -> list[str]:
    """Return how it was measured; the amounts are those of the scripts."""
    runs = ", ".join(f"{count} on {size}" for size, count in RUNS.items())
    reads = f"here {found.read_gb_s:.1f} GB/s at best" if found.read_gb_s else "measured before each series"
    untrained = {str(r.key["model"]) for rows in found.rows.values() for r in rows if not r.key.get("trained")}
    random = listed(sorted(untrained, key=[*PUBLISHED].index))
    stood_in = f" Random weights of the published shapes stood in for {random}: their speed and memory are right, what "
    stood_in += "they write is noise and is not judged."
    return [
        (
            f"- **Runs.** {WARMUPS} runs of each variant warm it up and are not counted; then come {runs} (with "
            f"`--quick` {QUICK_RUNS}). A slow variant may get fewer, {LEAST} at least, evenly spread over the others'. "
            "The tables say how many."
        ),
        (
            "- **Turns.** Variants that are compared are all loaded and asked in turns, A B C A B C, so that a busy "
            "moment of the machine meets each of them. Each turn has another prompt, the same for all."
        ),
        (
            "- **Processes.** Each variant works in a process of its own, so that its memory, its threads and its "
            "libraries are its own; variants of the daemon are asked through its socket."
        ),
        (
            "- **Medians.** Figures are medians of all runs and, in brackets, their 95 % intervals by the "
            f"percentile bootstrap with {RESAMPLES:,} resamples. Ratios are taken turn by turn, and then their median."
        ),
        (
            "- **The limit.** A decode step reads every weight once and does little with it: the memory's read "
            f"bandwidth ({reads}, summing half a gibibyte with all threads) divided by the bytes of the weights bounds "
            "tokens/s of one text. Guessing ahead and several texts at once use what was read more than once."
        ),
        (
            f"- **Weights.** `{DEMO}` (6 million parameters) is trained, on Shakespeare and Milton; its texts are "
            "judged, on verse that it was not trained on, and so is the fidelity of each precision."
            f"{stood_in if untrained else ''}"
        ),
        f"- **Prompts** have {PROMPT_TOKENS} tokens, and the end of text is ignored, so that each text has its length.",
        (
            "- **Conclusions** are written by hand. Each of them names the figures that it cites, and the interval of "
            "each in which it is true; one whose figures have left their intervals is not printed."
        ),
        "",
    ]


SECOND = "The second machine"


def second_machine(found: Measured) -> list[str]:
    """Return the section on the machine that was measured before: what is in short of the first, and the limits."""
    rows = found.rows["optimisation_methods"]
    said = "Sentences of this document are about the machine under their figures. In brackets they say whether they "
    said += "hold on another one as well, or which figures it has. That one was measured before, with the version of "
    said += "gpt2d under its table: what differs is the machine's doing or the version's. One text there:"
    return [
        said,
        "",
        *(markdown(in_short(found).tables(rows), under(rows)[0]) if rows else not_measured("optimisation_methods")),
    ]


def old_findings(found: Measured, conclusions: Conclusions) -> list[str]:
    """Return the section on what the earlier investigation found."""
    sources = ("optimisation_methods", "decoder_methods")
    if not any(found.rows[name] for name in sources):
        return [*not_measured("optimisation_methods"), *not_measured("decoder_methods")]
    return [
        (
            "Old figures are seconds for 25 tokens, means of 10 runs. The last column has the figures that the "
            "sentence before it cites, in its order, with their 95 % intervals."
        ),
        "",
        f"Of these findings {counted(conclusions.findings().values())}.",
        "",
        *conclusions.findings_table(),
        "",
        *under(r for name in sources for r in found.rows[name]),
    ]


def counted(verdicts: Iterable[str]) -> str:
    """Return how many findings have each verdict."""
    counts = Counter(verdicts)
    return listed([f"{count} {'is' if count == 1 else 'are'} {verdict}" for verdict, count in counts.most_common()])


def recommended(found: Measured, point: Point, tables: dict[str, list[str]], conclusions: Conclusions) -> list[str]:
    """Return the section on the operating point."""
    text: list[str] = []
    for name, (title, _) in recommendation.PARTS.items():
        script = "decoder_methods" if name == "decoder" else "optimisation_methods"
        said = [*conclusions.of(name), *tables[name]] if tables[name] else not_measured(script)
        text += [f"### {title}", "", *said]
    if not point.engine and not point.decoder:
        return ["Nothing has been measured that an operating point could follow from.", "", *text]
    return [*conclusions.of("recommendation"), *recommendation.summary(found, point), *text]


def not_measured(script: str) -> list[str]:
    return [
        f"Nothing is measured yet: `{command_of(script)}` does it, or `python -m scripts.report --run {script}`.",
        "",
    ]


def write(found: Measured, folder: Path) -> dict[str, Any]:
    """Write the document with its figures; return what the last line of the command says of it."""
    images = folder / "images" / "results"
    problems: dict[str, str] = {}

    def guarded(name: str, title: str, make: Callable[[], list[str]]) -> list[str]:
        """Rows of another version of a script may not be as expected; the other sections are written."""
        try:
            return [f"## {title}", "", *make()]
        except Exception as e:  # noqa: BLE001 - whatever they lack
            problems[name] = f"{type(e).__name__}: {e}"
            print(f"{title}: cannot be written: {problems[name]}", file=sys.stderr)
            problem = f"This cannot be written from what was measured ({escaped(problems[name])}); `--again` makes a "
            return [f"## {title}", "", f"{problem}script measure once more.", ""]

    point = Point()
    tables: dict[str, list[str]] = {}

    def choose() -> list[str]:
        tables.update(recommendation.choose(found, point))
        return []

    no_choice = guarded("recommendation", recommendation.TITLE, choose)
    conclusions = Conclusions(found, point)
    short, parts = in_short(found), sections(found)
    body = ["## The question", "", QUESTION, ""]
    body += guarded("in short", short.title, partial(render, short, found, images, conclusions))
    body += ["## How it was measured", "", *method_text(found)]
    if found.second:
        body += guarded("second", SECOND, partial(second_machine, found.second))
    for part in parts:
        body += guarded(part.script, part.title, partial(render, part, found, images, conclusions))
    body += guarded(FINDINGS, "The old findings", partial(old_findings, found, conclusions))
    if tables:
        body += guarded("recommendation", recommendation.TITLE, partial(recommended, found, point, tables, conclusions))
    else:
        body += no_choice
    titles = [line.removeprefix("## ") for line in body if line.startswith("## ")]
    text = [
        "# Fast decoding on CPUs: what was measured",
        "",
        (
            "Written by `python -m scripts.report` from the measurements in `docs/results` and the sentences in "
            "`scripts/report/conclusions.toml`; do not edit it."
        ),
        "",
        *(f"{i}. [{title}](#{anchor(title)})" for i, title in enumerate(titles, 1)),
        "",
        *body,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / "RESULTS.md"
    document.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    chosen = ("engine", "precision", "decoder", "threads", "speculate", "size", "is_default")
    return {
        "document": str(document),
        "images": len(list(images.glob("*.png"))),
        "problems": problems,
        "rows": {name: len(rows) for name, rows in found.rows.items()},
        "missing": [name for name, rows in found.rows.items() if not rows],
        "findings": conclusions.findings(),
        "unsupported": conclusions.unsupported,
        "operating_point": {name: getattr(point, name) for name in chosen},
    }


def render(part: Section, found: Measured, images: Path, conclusions: Conclusions) -> list[str]:
    rows = found.rows[part.script]
    text = [part.asked, ""]
    if not rows:
        return [*text, *not_measured(part.script)]
    text += conclusions.of(part.conclusions or part.script)
    line = under(rows)[0]
    for picture in part.pictures:
        made = picture.plot(rows)
        if made is None:
            text += [f"*{picture.caption}* Nothing of it is measured yet.", ""]
            continue
        drawing.save(made, images / picture.file, "\n".join(origins(rows)))
        place = f"images/results/{picture.file}"
        alt = re.split(r"[.;:] |\.$", picture.caption)[0].replace("`", "")
        text += [f"[![{alt}]({place}.png)]({place}.svg)", "", picture.caption, "", line, ""]
    shown = list(markdown(part.tables(rows), line))
    if part.quoted:
        quotes = [s.replace(r"\\n", " / ") for s in shown if s.startswith("- ")]
        shown = [s for s in shown if not s.startswith("- ")]
        if quotes:
            shown += [f"<details><summary>{part.quoted}</summary>", "", *quotes, "", "</details>", ""]
    return [*text, *shown]


def anchor(title: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
