#!/usr/bin/env python3
"""Writes docs/RESULTS.md and its figures from what the investigation's scripts have measured; runs them first where that is asked.

    python -m scripts.report                                      from the results that are there, in seconds
    python -m scripts.report --run                                all scripts first, hours; started again, they measure what is missing
    python -m scripts.report --run serving_methods onnx_methods   some of them first
    python -m scripts.report --quick                              all with --quick, some minutes, into docs/quick/: to see that everything works

A script that fails is told, and the others go on. Where nothing has been measured yet, a section says what command does it. Medians are
computed anew from the runs in docs/results/*.jsonl; of a trial that was measured more than once the last line counts. The last line
of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.investigation import combined_methods, decoder_methods, operating_point, serving_methods
from scripts.investigation.harness import QUICK_RUNS, RESAMPLES, RESULTS, ROOT, RUNS, WARMUPS, Row
from scripts.investigation.one_daemon import LEAST, figure, lines_of
from scripts.investigation.texts import PROMPT_TOKENS
from scripts.report import drawing, plots
from scripts.report.findings import Finding, compare_old
from scripts.report.measured import (
    BASELINE,
    SCRIPTS,
    Compared,
    Measured,
    escaped,
    listed,
    load,
    markdown,
    origins,
    under,
)
from scripts.report.recommendation import Point, recommended
from scripts.report.rows import is_plain, limits, precision_of, sizes_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO

# Sections


@dataclass(frozen=True)
class Picture:
    file: str
    caption: str
    plot: plots.Plot


@dataclass(frozen=True)
class Section:
    script: str
    title: str
    asked: str
    pictures: Sequence[Picture]
    tables: Callable[[list[Row]], str]
    quoted: str = ""
    """What the list under its tables is; hidden until it is opened."""


def sections(found: Measured) -> list[Section]:
    """In the order in which they are run, and read."""
    reads = found.read_gb_s
    above = beyond(found.compared, reads)
    limit = f"Dashed: what {reads:.1f} GB/s, the fastest reading that was measured here, divided by the bytes of all matrices allows; `{DEMO}` is held by the processor's caches and has no such limit."
    return [
        Section(
            "optimisation_methods", "Optimisations",
            "Which optimisation makes decoding fast on a CPU, at what cost of memory and fidelity, beside `generate` of transformers in the same turns? "
            "`~` marks a time that follows from prefill and decode rate, since not every run was that long; the other names are explained in the script's `--help`.",
            (
                Picture("speed", f"Tokens/s by method and size; bars are medians, thin lines their 95 % intervals. {limit}{above}", partial(plots.speed, read_gb_s=reads, title="Tokens/s by method")),
                Picture("memory", "Tokens/s against the memory that the process takes.", plots.memory),
                Picture("threads", "Tokens/s by threads: more than the physical cores get in each other's way.", plots.threads),
            ),
            found.compared.tables,
        ),
        Section(
            "onnx_methods", "ONNX graphs, exported and made by hand",
            "Why does a hand-made ONNX graph decode faster than an exported one: products, fused operators, the cache, I/O binding?",
            (
                Picture("onnx_speed", f"Tokens/s by graph and size. {limit}", partial(plots.speed, read_gb_s=reads, title="Tokens/s by graph")),
                Picture("onnx_operators", "Operators by their share of a decode step. A share is not a time: the step of the graph above may be many times as long.", plots.operators),
            ),
            found.onnx.tables,
        ),
        Section(
            "decoder_methods", "Ways of decoding",
            "What does each way of choosing the next token cost, and what does it write? Perplexity is that of the text under the model at full precision: "
            "too low is dull, too high is noise. Only what trained weights write is judged.",
            (
                Picture("decoders", "Time against repetition and against perplexity.", plots.decoder_text),
                Picture("decoder_time", "Time of each decoder on each size.", plots.decoder_time),
            ),
            decoder_methods.tables, "The first text of each decoder, the same prompt for all",
        ),
        Section(
            "combined_methods", "Everything together",
            "How fast are engines, quantisation and sampling together, for one text and for many at once?",
            (Picture("together", "Tokens/s of all texts together. Engines with one row write one text after the other.", plots.together),),
            combined_methods.tables,
        ),
        Section(
            "operating_point", "The operating point",
            "How does the latency of the daemon's default set-up spread over many seeds, and how much do its texts differ?",
            (Picture("latency", "Inference time of single requests, prefill and decoding, as the server measures it.", plots.latency),),
            operating_point.tables, "The first texts",
        ),
        Section(
            "serving_methods", "Serving",
            "How does the daemon serve many clients at once, and how does the cost of a request grow with its prompt, its length and its texts?",
            (
                Picture("clients", "Throughput and time to the first token against clients (a closed loop).", plots.clients),
                Picture("rate", "The same against the rate of arrival (an open loop): where the lines rise, requests come faster than they are answered.", plots.rate),
                Picture("cost", "One request: prefill by prompt, whole time by new tokens, tokens/s by texts.", plots.cost),
            ),
            serving_methods.tables,
        ),
    ]  # fmt: skip


SHORT = {
    "transformers-fp32": "transformers, `generate`", "transformers-int8": "torch, dynamic int8", "optimum-fp32": "optimum, ONNX Runtime",
    "optimum-int8": "optimum, dynamic int8", "onnx-int8": "our ONNX graph, int8", "native-fp32": "**our kernels, fp32**",
    "native-int8": "**our kernels, int8**", "native-int4": "**our kernels, int4**",
}  # fmt: skip
"""Method -> what it is to somebody who reads one table only."""


def in_short(found: Measured) -> Section:
    """What most people want to know."""

    def few(rows: Sequence[Row]) -> list[Row]:
        kept = [row for row in rows if row.key["method"] in SHORT]
        return [row for row in kept if row.key["model"] in PUBLISHED] or kept

    def tables(rows: Sequence[Row]) -> str:
        ways, sizes = found.compared, sizes_of(few(rows))
        lines = list[list[str]]()
        for method, name in SHORT.items():
            cells = []
            for size in sizes:
                row, ratio = ways.row(size, method), ways.ratio(size, method, BASELINE)
                times = f" ({figure(statistics.median(ratio))}x)" if ratio and method != BASELINE else ""
                cells.append(f"{figure(row.median('tok_s'))}{times}" if row else "-")
            if set(cells) != {"-"}:
                lines.append([name, *cells])
        return "\n".join(lines_of(["tokens/s of one text, and times as fast as the first", *sizes], lines))

    caption = "Tokens/s of one text, by the road taken; thin lines are 95 % intervals, dashed ones what the memory's read bandwidth allows at each precision."
    plot = partial(plots.speed, read_gb_s=found.read_gb_s, title="Tokens/s of one text", columns=3)
    return Section("optimisation_methods", "In short", "How fast is one text written, by the ways that people know and by ours? Times as fast: 25 tokens with their prefill, in the same turns.", (Picture("in_short", caption, lambda rows: plot(few(rows))),), tables)  # fmt: skip


def beyond(found: Compared, read_gb_s: float) -> str:
    """Which methods are faster than the limit says: the bandwidth was measured on a busy machine, then."""
    over: dict[str, list[str]] = {}
    for size in found.sizes:
        for method in filter(is_plain, found.methods(size)):
            row, most = found.row(size, method), limits(size, read_gb_s).get(precision_of(method))
            if row and most and row.interval("tok_s")[0] > most:
                over.setdefault(method, []).append(size)
    names = listed([f"`{method}` ({', '.join(sizes)})" for method, sizes in over.items()])
    return (
        f" Faster than their line are {names}: more can be read than was seen when the bandwidth was measured."
        if over
        else ""
    )


# The document


def method_text(found: Measured) -> list[str]:
    runs = ", ".join(f"{count} on {size}" for size, count in RUNS.items())
    reads = f"here {found.read_gb_s:.1f} GB/s at best" if found.read_gb_s else "measured before each series"
    random = (
        sorted(
            {str(r.key["model"]) for rows in found.rows.values() for r in rows if not r.key.get("trained")},
            key=[*PUBLISHED].index,
        )
        if found.rows
        else []
    )
    return [
        f"- **Runs.** {WARMUPS} runs of each variant warm it up and are not counted; then come {runs} (with `--quick` {QUICK_RUNS}). A slow variant may get fewer, {LEAST} at least, evenly spread over the others'. The tables say how many.",
        "- **Turns.** Variants that are compared are all loaded and asked in turns, A B C A B C, so that a busy moment of the machine meets each of them. Each turn has another prompt, the same for all.",
        "- **Processes.** Each variant works in a process of its own, so that its memory, its threads and its libraries are its own; variants of the daemon are asked through its socket.",
        f"- **Medians.** What is given is the median of all runs and, in brackets, its 95 % interval by the percentile bootstrap with {RESAMPLES:,} resamples. Ratios are taken turn by turn, and then their median.",
        f"- **The limit.** A decode step reads every weight once and does little with it: the memory's read bandwidth ({reads}, summing half a gibibyte with all threads) divided by the bytes of the weights bounds tokens/s of one text. Guessing ahead and several texts at once use what was read more than once.",
        f"- **Weights.** `{DEMO}` (6 million parameters) is trained, on Shakespeare and Milton; its texts are judged, on verse that it was not trained on, and so is the fidelity of each precision."
        + (f" Random weights of the published shapes stood in for {listed(random)}: their speed and memory are right, what they write is noise and is not judged." if random else ""),
        f"- **Prompts** have {PROMPT_TOKENS} tokens, and the end of text is ignored, so that each text has its length.",
        "",
    ]  # fmt: skip


def write(found: Measured, folder: Path) -> dict[str, Any]:
    """The document with its figures; what the last line says of it."""
    images, problems = folder / "images" / "results", {}
    parts = sections(found)
    short = in_short(found)
    titles = [
        "The question",
        short.title,
        "How it was measured",
        *(part.title for part in parts),
        "The old findings",
        "The recommended operating point",
    ]

    def guarded(name: str, title: str, make: Callable[[], list[str]]) -> list[str]:
        """Rows of another version of a script may not be what is expected; the other sections are written."""
        try:
            return [f"## {title}", "", *make()]
        except Exception as e:  # noqa: BLE001 - whatever they lack
            problems[name] = f"{type(e).__name__}: {e}"
            print(f"{title}: it cannot be written: {problems[name]}", file=sys.stderr)
            return [
                f"## {title}",
                "",
                f"This cannot be written from what was measured ({escaped(problems[name])}); `--again` makes a script measure anew.",
                "",
            ]

    told: list[Finding] = []
    point = Point()
    body = [line for part in parts for line in guarded(part.script, part.title, partial(render, part, found, images))]
    body += guarded("findings", titles[-2], lambda: compare_old(found, told))
    body += guarded("operating point", titles[-1], lambda: recommended(found, point))
    text = [
        "# Fast decoding on CPUs: what was measured", "",
        "Written by `python -m scripts.report` from the measurements in `docs/results`; do not edit it.", "",
        *(f"{i}. [{title}](#{anchor(title)})" for i, title in enumerate(titles, 1)), "",
        "## The question", "",
        ("What is the fastest possible autoregressive decoding of GPT-2 on a CPU, with text still worth reading? An earlier investigation compared "
        "optimisations of a model in torch, with means of 10 runs of 25 tokens. This one asks the same again, of every size, with runtimes and kernels that are made for it."), "",
        *guarded("in short", short.title, partial(render, short, found, images)), "## How it was measured", "", *method_text(found), *body,
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / "RESULTS.md"
    document.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return {
        "document": str(document), "images": len(list(images.glob("*.png"))), "problems": problems,
        "rows": {name: len(rows) for name, rows in found.rows.items()}, "missing": [name for name, rows in found.rows.items() if not rows],
        "findings": {f.old: f.verdict for f in told},
        "operating_point": {"engine": point.engine, "precision": point.precision, "decoder": point.decoder, "threads": point.threads, "speculate": point.speculate, "size": point.size, "is_default": (not point.differs()) if point.whole else None},
    }  # fmt: skip


def render(part: Section, found: Measured, images: Path) -> list[str]:
    rows = found.rows[part.script]
    text = [part.asked, ""]
    if not rows:
        return [
            *text,
            f"Nothing is measured yet: `python -m scripts.investigation.{part.script}` does it, or `python -m scripts.report --run {part.script}`.",
            "",
        ]
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
        shown += (
            ["<details><summary>" + part.quoted + "</summary>", "", *quotes, "", "</details>", ""] if quotes else []
        )
    return [*text, *shown]


def anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# Running


def run(names: Sequence[str], files: dict[str, Path], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Each script in a process; how it ended, and what it took."""
    took: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    for i, name in enumerate(names, 1):
        command = [sys.executable, "-m", f"scripts.investigation.{name}"]
        command += ["--quick"] if quick else []
        command += ["--json", str(files[name])] if files[name].parent != RESULTS else []
        print(f"{i}/{len(names)} {name}: {' '.join(['python', *command[1:]])}", file=sys.stderr, flush=True)
        start = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # it has been told, too, and ends what it has started
                process.wait()
                sys.exit(f"{name}: stopped; started again, it measures what is missing")
        minutes = (time.monotonic() - start) / 60
        took[name] = {"exit": code, "minutes": round(minutes, 1)}
        end = (
            f"FAILED with exit code {code} after {minutes:.1f} min; the others go on"
            if code
            else f"done in {minutes:.1f} min"
        )
        print(f"{i}/{len(names)} {name}: {end}", file=sys.stderr, flush=True)
    print(f"all: {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr, flush=True)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        nargs="*",
        choices=SCRIPTS,
        metavar="NAME",
        help=f"run these first (no name: all of them): {', '.join(SCRIPTS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run them with --quick first, and write into OUT/quick: to see that everything works",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs",
        metavar="DIR",
        help="where RESULTS.md and images/results go (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help=f"where the scripts' results are (default: {RESULTS}; with --quick OUT/quick/results)",
    )
    args = parser.parse_args()
    out = args.out / "quick" if args.quick else args.out
    results = (args.results or (out / "results" if args.quick else RESULTS)).resolve()
    wanted = (
        [name for name in SCRIPTS if not args.run or name in args.run] if args.quick or args.run is not None else []
    )
    took = run(wanted, {name: results / f"{name}.jsonl" for name in wanted}, quick=args.quick) if wanted else {}
    told = write(load(results, quick=args.quick), out)
    print(
        json.dumps(
            told | {"ran": took, "minutes": round(sum(t["minutes"] for t in took.values()), 1)}, ensure_ascii=False
        )
    )
    if any(t["exit"] for t in took.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
