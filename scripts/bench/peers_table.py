"""Tables of what scripts.bench.peers has measured, for README.md and docs/performance.md.

GB/s is what a step of one sequence reads of the weights, as the engine's format has them, and GMAC/s what a prompt of
512 tokens multiplies; `of L` is a speed over the one that memory and arithmetic allowed in the same minutes, and
`spread` how far a run was from the median of its kind, at most.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.engine import ROOT
from scripts.bench.machine import Step, allowed, amount
from server.catalogue.architecture import PUBLISHED
from server.catalogue.engines import TRAITS

Row = dict[str, Any]
FILE = ROOT / "docs" / "results" / "peers.jsonl"
STEPS = {"decode1": Step(1, 40), "decode8": Step(8, 24), "decode16": Step(16, 24), "prefill512": Step(1, 0, 512)}
"""What each of peers.py's shapes computes, in the middle of its text."""
BYTES = {
    "fp32": (4.0, 4.0),
    "bf16": (2.0, 2.0),
    "f16": (2.0, 2.0),
    "int8": (1.0, 1.0),
    "int4": (0.5 + 2 / 128, 1.0),
    "q8_0": (34 / 32, 34 / 32),
    "q4_0": (18 / 32, 210 / 256),
}
"""Bytes of a weight of the blocks and of the head, in the formats of others."""
NAMES = {
    "llama.cpp-q4_0": "llama.cpp Q4_0 (LM head 6 bits)",
    "llama.cpp-q8_0": "llama.cpp Q8_0",
    "llama.cpp-f16": "llama.cpp F16",
    "native-int4": "**`native`** int4 (LM head 8 bits)",
}
LIBRARIES = {"native": "**`native`**", "onnx": "`onnx`", "openvino": "OpenVINO", "ctranslate2": "CTranslate2"}
SHORT = (
    "native-int4", "native-int8", "native-fp32", "llama.cpp-q4_0", "llama.cpp-q8_0", "openvino-int4", "openvino-int8",
    "ctranslate2-int8", "optimum-int8", "transformers-fp32",
)  # fmt: skip
"""Engines of the README's table."""
MARK = "<!-- {} of scripts.bench.peers --write -->"


def read(file: Path) -> list[Row]:
    """Return the lines of a file of results."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def set_of(row: Row) -> str:
    """Return the instruction set that engines were made to use; empty: each its best."""
    return str(row.get("instruction_set", ""))


def newest(rows: Sequence[Row], model: str, instruction_set: str = "") -> dict[str, Row]:
    """Return the last row of each engine of a model that was measured on the machine of the newest line.

    Of an engine that several pieces have, that of the piece that is called as its precision is.
    """
    own = [row for row in rows if (row["like"], set_of(row)) == (model, instruction_set) and "error" not in row]
    here = [row for row in own if row["cpu"] == own[-1]["cpu"]]
    found = {row["engine"]: row for row in sorted(here, key=lambda row: row["engine"].endswith(f"-{row['piece']}"))}
    return {row["engine"]: found[row["engine"]] for row in here}


def called(engine: str) -> str:
    name, precision = engine.rsplit("-", 1)
    return NAMES.get(engine) or f"{LIBRARIES.get(name, name)} {precision}"


def rate(row: Row, shape: str) -> float:
    """Return the median of an engine's runs; 0 where it has none."""
    return statistics.median(row["rates"][shape]) if shape in row["rates"] else 0.0


def spread(row: Row) -> float:
    """Return how far a run's speed was from the median of its kind, at most, as a part of it."""
    return float(max(abs(value / rate(row, shape) - 1) for shape, values in row["rates"].items() for value in values))


def machine(row: Row) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in row["machine"].items()}


def read_gb_s(row: Row) -> float:
    """Return GB/s of weights that one sequence's steps read."""
    name, precision = row["engine"].rsplit("-", 1)
    arch = PUBLISHED[row["like"]]
    traits = TRAITS.get(name)
    stored = traits.precisions[precision] if traits and name in {"native", "onnx"} else None
    blocks, head = (stored.blocks, stored.head) if stored else BYTES[precision]
    matrices = arch.layers * (4 * arch.width**2 + 2 * arch.width * arch.inner)
    return rate(row, "decode1") * (blocks * matrices + head * arch.vocabulary * arch.width) / 1e9


def gmac_s(row: Row) -> float:
    """Return GMAC/s that a prompt of 512 tokens comes to."""
    return amount(PUBLISHED[row["like"]], "int8", STEPS["prefill512"]).macs / 512 * rate(row, "prefill512") / 1e9


def share(row: Row, shape: str) -> str:
    """Return a speed of ours over the one that the machine allowed."""
    name, precision = row["engine"].rsplit("-", 1)
    if name != "native":
        return ""
    return f"{rate(row, shape) / allowed(PUBLISHED[row['like']], precision, STEPS[shape], machine(row)):.2f}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value else ""


SHORT_COLUMNS: dict[str, Callable[[Row], str]] = {
    "one sequence": lambda row: number(rate(row, "decode1")),
    "eight together": lambda row: number(rate(row, "decode8")),
    "prefill of 512": lambda row: number(rate(row, "prefill512")),
    "resident, MB, with room for 16": lambda row: number(row["rss_mb"]),
    "cold start, s": lambda row: f"{statistics.median(row['cold_s']):.1f}",
}
COLUMNS: dict[str, Callable[[Row], str]] = {
    "one sequence": SHORT_COLUMNS["one sequence"],
    "of L": lambda row: share(row, "decode1"),
    "GB/s": lambda row: number(read_gb_s(row)),
    "eight": SHORT_COLUMNS["eight together"],
    "of L ": lambda row: share(row, "decode8"),
    "sixteen": lambda row: number(rate(row, "decode16")),
    "of L  ": lambda row: share(row, "decode16"),
    "prefill": SHORT_COLUMNS["prefill of 512"],
    "of L   ": lambda row: share(row, "prefill512"),
    "GMAC/s": lambda row: number(gmac_s(row)),
    "spread": lambda row: f"{spread(row):.0%}",
    "MB": SHORT_COLUMNS["resident, MB, with room for 16"],
    "load, s": lambda row: f"{row['load_s']:.2f}",
    "cold start, s": SHORT_COLUMNS["cold start, s"],
}


def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> list[str]:
    lines = [f"| tokens/s | {' | '.join(name.strip() for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [
        f"| {called(row['engine'])} | {' | '.join(cell(row) for cell in columns.values())} |" for row in rows
    ]


def limits_line(row: Row) -> str:
    """Return what the machine allowed, in a sentence."""
    found, arch = machine(row), PUBLISHED[row["like"]]
    parts = [
        f"{precision} {', '.join(number(allowed(arch, precision, STEPS[s], found)) for s in STEPS)}"
        for precision in ("int8", "int4", "fp32")
    ]
    return wrapped(
        f"What the machine allowed in the same minutes (L; memory at {found['read_gb_s']:.0f} GB/s, products at "
        f"{found['int8_gmac_s']:.0f} GMAC/s, at fp32 {found['fp32_gmac_s']:.0f}): {'; '.join(parts)} tokens/s of one, "
        "eight and sixteen sequences and of a prompt."
    )


def short(rows: Sequence[Row]) -> str:
    """Return the README's table, with the machine that it is of."""
    found = newest(rows, "gpt2")
    first = next(iter(found.values()))
    of = wrapped(f"GPT-2 with 124 million parameters, random weights of its shapes ({setup(first)}):")
    return "\n".join([of, "", *table([found[name] for name in SHORT if name in found], SHORT_COLUMNS)])


def named(cpu: str) -> str:
    """Return a processor's name without its marks, as in "Intel Xeon, family 6, model 143"."""
    return re.sub(r"\((R|TM)\)| (CPU|Processor)\b", "", cpu)


def setup(row: Row) -> str:
    """Return the processor, the instruction set where one was forced, the threads and the day."""
    alone = f"{set_of(row)} alone, " if set_of(row) else ""
    return f"{named(row['cpu'])}, {alone}{row['threads']} threads, {row['date'][:10]}"


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def full(rows: Sequence[Row]) -> str:
    """Return the tables of docs/performance.md."""
    text = []
    sets = sorted({set_of(row) for row in rows})
    for model, instruction_set in itertools.product(PUBLISHED, sets):
        if found := newest(rows, model, instruction_set):
            first = next(iter(found.values()))
            commands = sorted({row["command"] for row in found.values()})
            text += [f"**{model}**, {setup(first)}:", ""]
            text += [*table(list(found.values()), COLUMNS), "", limits_line(first), "", "```", *commands, "```", ""]
    return "\n".join(text).rstrip()


def between(document: str, mark: str, text: str) -> str:
    """Return a document with a text between its two marks. Raises: ValueError."""
    begin, end = MARK.format(mark), MARK.format(f"end of {mark}")
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"the document has no place for the {mark}: {begin} and {end}")
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return found.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", document)


def write(rows: Sequence[Row]) -> None:
    """Put the tables into the documents. Exits with a sentence where nothing was measured."""
    if not newest(rows, "gpt2"):
        raise SystemExit("nothing of gpt2 is measured yet: python -m scripts.bench.peers --like gpt2")
    readme, performance = ROOT / "README.md", ROOT / "docs" / "performance.md"
    texts = {readme: {"table": short(rows)}, performance: {"table": short(rows), "full tables": full(rows)}}
    for document, parts in texts.items():
        text = document.read_text(encoding="utf-8")
        for mark, part in parts.items():
            text = between(text, mark, part)
        document.write_text(text, encoding="utf-8")
        print(f"wrote {document}")
