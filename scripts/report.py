#!/usr/bin/env python3
"""Writes docs/RESULTS.md and its figures from what the investigation's scripts have measured; runs them first where that is asked.

    python scripts/report.py                                      from the results that are there, in seconds
    python scripts/report.py --run                                all scripts first, hours; started again, they measure what is missing
    python scripts/report.py --run serving_methods onnx_methods   some of them first
    python scripts/report.py --quick                              all with --quick, some minutes, into docs/quick/: to see that everything works

A script that fails is told, and the others go on. Where nothing has been measured yet, a section says what command does it. Medians are
computed anew from the runs in docs/results/*.jsonl; of a trial that was measured more than once the last line counts. The last line
of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import combined_methods
import decoder_methods
import methods
import onnx_methods
import operating_point
import optimisation_methods
import plots
import serving_methods
from harness import QUICK_RUNS, RESAMPLES, RESULTS, ROOT, RUNS, WARMUPS, Row, interval, read
from one_daemon import LEAST, figure, name_of
from texts import PROMPT_TOKENS

from protocol import messages as m
from server.catalogue import DEMO, PUBLISHED, choose_engine

MOST_WORSE_PCT = 1.0
"""Perplexity on `demo`: what the recommended precision may cost."""
MARGINAL = 0.10
"""A difference of speed below it is called marginal."""
MOST_REPEATED = 0.05
"""The share of 4-grams that may repeat in a text still worth reading."""
MOST_SLOWER = 1.10
"""How many times the time of greedy decoding the recommended decoder may take."""
WORTH_LOSING = 0.95
"""How much of its speed a text that does not repeat itself must keep for guessing ahead to be recommended."""
LEAST_TOK_S = 20.0
"""Tokens/s that a person does not wait for: about four times as fast as people read (238 words a minute: Brysbaert 2019)."""
OLD_S = {"gpt2": (0.53, 0.42), "gpt2-medium": (1.30, 1.19), "gpt2-large": (2.55, 2.49)}
"""Seconds for 25 tokens before and after dynamic quantisation, means of 10 runs, as the earlier investigation gave them."""
BASELINE = "transformers-fp32"
ENGINE_ROW = re.compile(r"(native|onnx|torch|optimum)-(fp32|bf16|int8|int4)")
"""Methods that a daemon can be asked for."""
CONFIRMED, REFUTED, UNKNOWN, MISSING = "confirmed", "refuted", "not judgeable without real weights", "not measured yet"


# Rows


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last line of each trial, in the order in which the trials were first measured."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept[json.dumps(row.key, sort_keys=True)] = row
    return list(kept.values())


class Compared:
    """Rows of optimisation_methods.py or onnx_methods.py, with those that they are compared with."""

    def __init__(self, rows: Sequence[Row], script: Any, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self._rows = rows
        self._by = {(str(r.key["model"]), str(r.key["method"])): r for r in rows if not r.problem and r.samples.get("tok_s")}
        self.sizes = plots.sizes_of(self._by.values())
        self._against: dict[str, str] = {}
        for threads in {int(r.key["threads"]) for r in rows}:
            for size in plots.sizes_of(rows):
                found = script.methods_of(size, threads, (size,))
                self.baseline = found[0].name
                self._against |= {method.name: method.against or self.baseline for method in found}

    def row(self, size: str, method: str) -> Row | None:
        return self._by.get((size, method))

    def methods(self, size: str) -> list[str]:
        return [method for model, method in self._by if model == size]

    def against(self, row: Row) -> Row | None:
        """What lived at the same time, and was asked in the same turns."""
        name = self._against.get(str(row.key["method"]), self.baseline)
        same = [r for r in self._rows if (r.key["model"], r.key["group"], r.key["method"]) == (row.key["model"], row.key["group"], name)]
        return same[-1] if same and not same[-1].problem and same[-1] is not row else None

    def ratio(self, size: str, method: str, other: str, length: int = 25) -> list[float] | None:
        """How many times as fast a method is as another, of each run; by the baseline of each where they are of different groups."""
        one, two = self.row(size, method), self.row(size, other)
        if one is None or two is None:
            return None
        if one.key["group"] == two.key["group"]:
            return methods.speedups(one, two, length) or None
        bases = self._base(one), self._base(two)
        if bases[0] is None or bases[1] is None:
            return None
        pairs = zip(self._times(one, bases[0], length), self._times(two, bases[1], length), strict=False)
        return [a / b for a, b in pairs] or None

    def _base(self, row: Row) -> Row | None:
        found = [
            r
            for r in self._rows
            if (r.key["model"], r.key["group"], r.key["method"]) == (row.key["model"], row.key["group"], self.baseline)
        ]
        return found[-1] if found and not found[-1].problem else None

    @staticmethod
    def _times(row: Row, base: Row, length: int) -> list[float]:
        return [1.0] * methods.runs_in(row) if row is base else methods.speedups(row, base, length)

    def tables(self, _: Sequence[Row]) -> str:
        """One for each size."""
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "method": lambda f: f"`{f['method']}`", "threads": partial(methods.one, name="threads"), "runs": partial(methods.one, name="runs"),
            **{f"{n} tokens, ms": partial(methods.ranged, name=f"whole_{n}_ms", assumed=f"derived_{n}") for n in self.lengths},
            "prefill, ms": partial(methods.ranged, name="prefill_ms"), "tokens/s": partial(methods.ranged, name="tok_s"), "times as fast": partial(methods.ranged, name="speedup"),
            "MB": partial(methods.one, name="rss_mb"), "load, s": partial(methods.one, name="load_s"), "perplexity, %": partial(methods.one, name="perplexity_change_pct", form="{:+.2f}"),
            "same top 1": partial(methods.one, name="top1_agreement", form="{:.1%}"),
        }  # fmt: skip
        text = []
        for size in plots.sizes_of(self._rows):
            found = [methods.figures(row, self.against(row), self.lengths) for (model, _), row in self._by.items() if model == size]
            cells = [[show(f) for show in columns.values()] for f in found]
            used = [i for i in range(len(columns)) if any(line[i] for line in cells)]
            text += [f"**{plots.weights_of(size, self._rows)}**", ""]
            for line in ([*columns], ["---"] * len(columns), *cells) if cells else ():
                text.append(f"| {' | '.join(line[i] for i in used)} |")
            text += ["", *(f"{name_of(r.key)}: not measured: {r.problem}" for r in self._rows if r.problem and r.key["model"] == size and self.row(size, str(r.key["method"])) is None), ""]  # fmt: skip
        return "\n".join(text)


@dataclass
class Measured:
    """All that there is to report on."""

    rows: dict[str, list[Row]]
    """Script -> its rows, newest last."""
    compared: Compared = field(init=False)
    onnx: Compared = field(init=False)

    def __post_init__(self) -> None:
        self.compared = Compared(self.rows["optimisation_methods"], optimisation_methods, methods.LENGTHS[1:])
        self.onnx = Compared(self.rows["onnx_methods"], onnx_methods, methods.LENGTHS[:1])

    @property
    def read_gb_s(self) -> float:
        """The best that the machine of the newest rows was seen to read: a busy one reads less."""
        everything = [row for rows in self.rows.values() for row in rows]
        if not everything:
            return 0.0
        cpu = max(everything, key=lambda row: row.date).machine["cpu"]
        return max(float(row.machine["read_gb_s"]) for row in everything if row.machine["cpu"] == cpu)


# Words


def ranged(values: Sequence[float], scale: float = 1.0) -> str:
    low, high = interval(values)
    return f"{figure(statistics.median(values) * scale)} [{figure(low * scale)}, {figure(high * scale)}]"


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "nothing"


def escaped(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|#~])", r"\\\1", text)


def origins(rows: Iterable[Row]) -> list[str]:
    """Machine, versions, command and date, a line for each that differs."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        mc = row.machine
        machine = f"{mc.get('cpu', '?')}, {mc.get('cores', '?')} cores, {mc.get('memory_gb', '?')} GB, {mc.get('system', '?')}"
        python = f"Python {mc.get('python', '?')}"
        versions = ", ".join([python, *(f"{name} {version}" for name, version in row.versions.items())])
        groups.setdefault((machine, versions, row.command), []).append(row)
    found = []
    for (machine, versions, command), same in groups.items():
        dates = sorted(row.date for row in same)
        first, last = (f"{date[:10]} {date[11:16]}" for date in (dates[0], dates[-1]))
        when = first if first == last else f"{first} to {last}"
        reads = sorted({float(row.machine.get("read_gb_s", 0)) for row in same})
        loads = sorted({float(row.machine.get("load", 0)) for row in same})
        told = f"reads {' to '.join(f'{v:.1f}' for v in {reads[0]: 0, reads[-1]: 0})} GB/s, load at the start {' to '.join(f'{v:.1f}' for v in {loads[0]: 0, loads[-1]: 0})}"
        found.append(f"{machine}, {told}; {versions}; {command}; {when} UTC")
    return found


def markdown(text: str, under: str) -> Iterator[str]:
    """Tables as they are, each with `under` below it; other lines as a list. A table without rows is left out."""
    table: list[str] = []
    others: list[str] = []

    def flush() -> Iterator[str]:
        if len(table) > 2:
            yield from (*table, "", under, "")
        table.clear()

    for line in text.splitlines():
        if line.startswith("|"):
            table.append(line)
        elif line.startswith("**"):
            yield from flush()
            yield from (line, "")
        else:
            yield from flush()
            if line:
                others.append(f"- {escaped(line)}")
    yield from flush()
    if others:
        yield from (*others, "")


def anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


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


def beyond(found: Compared, read_gb_s: float) -> str:
    """Which methods are faster than the limit says: the bandwidth was measured on a busy machine, then."""
    over: dict[str, list[str]] = {}
    for size in found.sizes:
        for method in filter(plots.is_plain, found.methods(size)):
            row, most = found.row(size, method), plots.limits(size, read_gb_s).get(plots.precision_of(method))
            if row and most and row.interval("tok_s")[0] > most:
                over.setdefault(method, []).append(size)
    names = listed([f"`{method}` ({', '.join(sizes)})" for method, sizes in over.items()])
    return f" Faster than their line are {names}: more can be read than was seen when the bandwidth was measured." if over else ""


SCRIPTS = ("optimisation_methods", "onnx_methods", "decoder_methods", "combined_methods", "operating_point", "serving_methods")


# The old findings


@dataclass(frozen=True)
class Finding:
    old: str
    verdict: str
    now: str


def faster(ratios: dict[str, list[float]]) -> str:
    """Confirmed where each size's interval lies above 1."""
    return MISSING if not ratios else CONFIRMED if all(interval(values)[0] > 1 for values in ratios.values()) else REFUTED


def told(ratios: dict[str, list[float]]) -> str:
    return f"{listed([f'{ranged(values)} ({size})' for size, values in ratios.items()])} times as fast"


def findings(found: Measured) -> Iterator[Finding]:
    ways = found.compared
    missing = "`python scripts/optimisation_methods.py` measures it."

    def ratios(method: str, other: str = BASELINE) -> dict[str, list[float]]:
        return {size: values for size in compared_sizes(ways) if (values := ways.ratio(size, method, other))}

    for size, (before, after) in OLD_S.items():
        old = f"Dynamic quantisation makes {size} faster: {before:.2f} s became {after:.2f} s, {before / after:.2f} times as fast."
        head, baseline = ways.ratio(size, "transformers-int8-head", BASELINE), ways.row(size, BASELINE)
        if head is None or baseline is None:
            yield Finding(old, MISSING, missing)
            continue
        every = ways.ratio(size, "transformers-int8", BASELINE)
        now = f"It is {ranged(head)} times as fast as {figure(statistics.median(methods.times(baseline, 25)) / 1000)} s for 25 tokens, where as then only the LM head is quantised"
        yield Finding(old, faster({size: head}), f"{now}{f'; with all matrices {ranged(every)} times' if every else ''}.")

    yield multithreading(found)

    for name, label, other in (("torch-fp32-compile", "torch.compile", "torch-fp32"), ("transformers-sdpa", "BetterTransformer", BASELINE)):
        by_size = ratios(name, other)
        marginal = all(abs(statistics.median(values) - 1) < MARGINAL for values in by_size.values())
        verdict = MISSING if not by_size else CONFIRMED if marginal else REFUTED
        what = "What became of it, torch's fused attention," if label == "BetterTransformer" else "It"
        now = f"{what} is {told(by_size)} as {'eager attention' if other == BASELINE else 'the same loop uncompiled'}; a difference below {100 * MARGINAL:.0f} % is called marginal."
        yield Finding(f"{label} changes hardly anything.", verdict, now if by_size else missing)

    yield from sampled(found)

    default = "-".join(choose_engine(None, None))
    rates = {size: row.samples["tok_s"] for size in ways.sizes if size in PUBLISHED and (row := ways.row(size, default))}
    if len(rates) > 1:
        speeds = [*rates.values()]
        verdict = CONFIRMED if all(interval(a)[0] > interval(b)[1] for a, b in itertools.pairwise(speeds)) else REFUTED
        now = f"`{default}` decodes {listed([f'{size} at {ranged(values)}' for size, values in rates.items()])} tokens/s."
    else:
        verdict, now = MISSING, missing
    yield Finding("Larger models are slower.", verdict, now)
    costs = [f"{size} costs {figure(statistics.median(rates['gpt2']) / statistics.median(v))} times as much" for size, v in rates.items() if size != "gpt2"] if "gpt2" in rates else []  # fmt: skip
    reason = "Their texts would have to be those of real weights, and judged by something other than the model that wrote them"
    yield Finding("Larger models write hardly better text.", UNKNOWN, f"{reason}.")
    yield Finding(
        "The medium model is the best balance.",
        UNKNOWN,
        f"{reason}; of the two sides of the balance the speed is known: {listed(costs)} as gpt2." if costs else f"{reason}.",
    )

    plain, hand = ratios("optimum-fp32"), ratios("onnx-int8")
    verdict = faster(plain | {f"{size} ": values for size, values in hand.items()})
    now = f"An export in ONNX Runtime at full precision is {told(plain)} as transformers; the graph made by hand, at int8, {told(hand)}."
    yield Finding("ONNX is promising.", verdict, now if plain and hand else f"an export: {told(plain)}" if plain else missing)


def compared_sizes(ways: Compared) -> list[str]:
    """Those of the earlier investigation; the embedded model where nothing else was measured."""
    return [size for size in ways.sizes if size in PUBLISHED] or ways.sizes


def multithreading(found: Measured) -> Finding:
    """Whether the fastest is quantised, and uses all threads."""
    ways, old = found.compared, "Quantisation together with multithreading is the fastest."
    verdicts, fastest, gains = [], [], {}
    for size in compared_sizes(ways):
        rates = {name: row.median("tok_s") for name in filter(plots.is_plain, ways.methods(size)) if (row := ways.row(size, name))}
        if BASELINE not in rates or len(rates) < 2:
            continue
        best, theirs = (
            max(some, key=lambda name: rates[name]) for some in (rates, [n for n in rates if n.startswith(("transformers", "torch"))])
        )
        fastest.append(f"`{best}` on {size} (of torch's `{theirs}`)")
        if single := ways.ratio(size, "native-int8", "native-int8-threads-1"):
            gains[size] = single
        verdicts.append(plots.precision_of(best) in {"int8", "int4"} and (single is None or interval(single)[0] > 1))
    if not fastest:
        return Finding(old, MISSING, "`python scripts/optimisation_methods.py` measures it.")
    threads = f" With all threads `native-int8` is {told(gains)} as with one." if gains else ""
    return Finding(old, CONFIRMED if all(verdicts) else REFUTED, f"The fastest is {listed(fastest)}.{threads}")


def longest_of(rows: Sequence[Row], size: str) -> dict[str, Row]:
    """Decoder -> its row at the largest length, where its text was judged."""
    judged = [row for row in plots.fine(rows, "perplexity", "repetition", "inference_ms") if row.key["model"] == size]
    length = max((int(row.key["new_tokens"]) for row in judged), default=0)
    return {str(row.key["decoder"]): row for row in judged if row.key["new_tokens"] == length}


def sampled(found: Measured) -> Iterator[Finding]:
    by = longest_of(found.rows["decoder_methods"], DEMO)
    less, more = "Sampling repeats itself less than greedy decoding.", "Sampling is more coherent than greedy decoding."
    greedy, drawn = by.get("greedy"), [row for name, row in by.items() if name in plots.DRAWN]
    if greedy is None or not drawn:
        yield Finding(less, MISSING, "`python scripts/decoder_methods.py` measures it.")
        yield Finding(more, UNKNOWN, "Coherence is read, not counted.")
        return
    least = greedy.interval("repetition")[0]
    verdict = CONFIRMED if all(row.interval("repetition")[1] < least for row in drawn) else REFUTED
    every = listed([f"{row.key['decoder']} {ranged(row.samples['repetition'], 100)} %" for row in drawn])
    yield Finding(less, verdict, f"On `{DEMO}`, which is trained, {ranged(greedy.samples['repetition'], 100)} % of greedy decoding's 4-grams in {greedy.key['new_tokens']} tokens stood there before; {every}.")  # fmt: skip
    perplexities = listed([f"{row.key['decoder']} {figure(row.median('perplexity'))}" for row in (greedy, *drawn)])
    yield Finding(more, UNKNOWN, f"Coherence is read, not counted, and `{DEMO}` is too small to have much of it. Perplexity of the texts under the model: {perplexities}; greedy decoding has a low one by its nature.")  # fmt: skip


# The operating point


@dataclass
class Point:
    """What is recommended; empty where nothing says it."""

    engine: str = ""
    precision: str = ""
    decoder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 0
    speculate: int | None = None
    size: str = ""
    usual_threads: int = 0
    """What it was measured with where nobody said how many."""

    @property
    def whole(self) -> bool:
        return bool(self.engine and self.decoder and self.threads and self.speculate is not None and self.size)

    def differs(self) -> list[str]:
        """How the defaults of daemon and client are different."""
        defaults, engine = m.Generate(prompt=""), choose_engine(None, None)
        found = []
        if self.engine and (self.engine, self.precision) != engine:
            found.append(f"the daemon takes {' at '.join(engine)}")
        found += [
            f"{name} is {getattr(defaults, name)!r} instead of {value!r}"
            for name, value in self.settings.items()
            if getattr(defaults, name) != value
        ]
        if self.threads != self.usual_threads:
            found.append(f"it has {self.usual_threads} threads on that machine")
        if self.speculate is not None and bool(self.speculate) != bool(defaults.speculate):
            found.append(f"speculate is {defaults.speculate}")
        return found


def settings_of(decoder: str) -> dict[str, Any]:
    """Of a decoder, with what it leaves at the default; without what belongs to other strategies."""
    asked = m.Generate(prompt="", **decoder_methods.DECODERS[decoder])
    return {name: getattr(asked, name) for name in ("strategy", "temperature", "top_k", "top_p", "min_p", "typical_p")}


def default_decoder() -> str:
    """The decoder of the investigation that has the default settings, if there is one."""
    defaults = m.Generate(prompt="")
    return next((name for name in decoder_methods.DECODERS if name in plots.DRAWN and all(getattr(defaults, n) == v for n, v in settings_of(name).items())), "")  # fmt: skip


def recommended(found: Measured, point: Point) -> list[str]:
    """The section; `point` is filled."""
    text = [
        *of_engine(found, point),
        *of_decoder(found, point),
        *of_threads(found, point),
        *of_speculation(found, point),
        *of_size(found, point),
    ]
    differs = point.differs()
    if not point.engine and not point.decoder:
        return [*text, "Nothing has been measured that an operating point could follow from.", ""]
    point_text = ", ".join(
        [
            *([f"{point.engine} at {point.precision}"] if point.engine else []),
            *([" ".join(f"{n}={v}" for n, v in point.settings.items())] if point.decoder else []),
            *([f"{point.threads} threads"] if point.threads else []), *([f"speculate={point.speculate}"] if point.speculate is not None else []),
            *([point.size] if point.size else []),
        ]
    )  # fmt: skip
    so_far = "" if point.whole else "As far as it is measured: "
    verdict = (
        "This is the default of daemon and client" if not differs else f"This is not the default of daemon and client: {listed(differs)}"
    )
    return [
        f"**{so_far}{point_text}.** {verdict}; the client asks for what `protocol.messages.Generate` says, and there is no default size.",
        "",
        *text,
    ]


def of_engine(found: Measured, point: Point) -> Iterator[str]:
    ways = found.compared
    lost = {name: float(row.facts["perplexity_change_pct"]) for name in ways.methods(DEMO) if (row := ways.row(DEMO, name)) and "perplexity_change_pct" in row.facts}  # fmt: skip
    admitted = [name for name, change in lost.items() if change <= MOST_WORSE_PCT and ENGINE_ROW.fullmatch(name)]
    best: dict[str, str] = {}
    for size in ways.sizes:
        if rates := {name: row.median("tok_s") for name in admitted if (row := ways.row(size, name))}:
            best[size] = max(rates, key=rates.__getitem__)
    if not best:
        yield from ("- **Engine and precision**: not measured yet; `python scripts/optimisation_methods.py` does it.", "")
        return
    chosen = best.get("gpt2") or next(iter(best.values()))
    point.engine, point.precision = chosen.split("-")
    out = [f"`{name}` {change:+.2f} %" for name, change in lost.items() if change > MOST_WORSE_PCT and ENGINE_ROW.fullmatch(name)]
    yield from (
        (
            f"- **Engine and precision**: the most tokens/s of what a daemon can be asked for, if perplexity on `{DEMO}` rises by {MOST_WORSE_PCT:g} % at the most: `{chosen}`"
            f" ({lost[chosen]:+.2f} %). {f'Left out for their perplexity: {listed(out)}.' if out else 'None had to be left out for its perplexity.'}"
        ),
        "",
        "| size | fastest that is admitted | 25 tokens, ms | tokens/s | times as fast as transformers | MB |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    for size, name in best.items():
        row, ratio = ways.row(size, name), ways.ratio(size, name, BASELINE)
        if row:
            yield f"| {size} | `{name}` | {ranged(methods.times(row, 25))} | {ranged(row.samples['tok_s'])} | {ranged(ratio) if ratio else '-'} | {figure(row.facts['rss_mb'])} |"  # fmt: skip
    yield from ("", *under(found.rows["optimisation_methods"]))


def of_decoder(found: Measured, point: Point) -> Iterator[str]:
    rows = found.rows["decoder_methods"]
    by = longest_of(rows, DEMO)
    drawn = {name: row for name, row in by.items() if name in plots.DRAWN and name != "mirostat"}
    greedy = by.get("greedy")
    if greedy is None or not drawn:
        yield from ("- **Decoder**: not measured yet; `python scripts/decoder_methods.py` does it.", "")
        return
    size, slower = slowness(rows, drawn)
    fit = {
        name: row for name, row in drawn.items() if row.interval("repetition")[1] <= MOST_REPEATED and slower.get(name, 1.0) <= MOST_SLOWER
    }
    usual = default_decoder()
    if fit:
        point.decoder = min(fit, key=lambda name: fit[name].median("perplexity"))
        if usual in fit and fit[usual].interval("perplexity")[0] <= fit[point.decoder].interval("perplexity")[1]:
            point.decoder = usual
    else:
        point.decoder = usual
    point.settings = settings_of(point.decoder) if point.decoder else {}
    settings = (
        f"`{point.decoder}` ({', '.join(f'{n}={v}' for n, v in point.settings.items())})"
        if point.decoder
        else "none of those that were measured"
    )
    rule = (
        f"of the ways to draw, those that repeat no more than {100 * MOST_REPEATED:.0f} % of their 4-grams (the whole interval) and take at most {MOST_SLOWER:g} times as long as greedy "
        f"decoding on {size}; of these the one with the lowest perplexity; the default where no difference to it shows"
    )
    yield from (f"- **Decoder**: sampling, {settings}. The rule: {rule}{'' if fit else '. None fits it, so that the default stays'}.", "")
    yield f"| {DEMO}, {greedy.key['new_tokens']} tokens | ms | time on {size}, greedy = 1 | repeated 4-grams, % | distinct-2 | perplexity |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, row in {"greedy": greedy, **drawn}.items():
        cells = [ranged(row.samples["inference_ms"]), figure(slower[name]) if name in slower else "-", ranged(row.samples["repetition"], 100), ranged(row.samples["distinct_2"]), ranged(row.samples["perplexity"])]  # fmt: skip
        mark = "**" if name == point.decoder else ""
        yield f"| {mark}{name}{mark}{' (the default)' if name == usual else ''} | {' | '.join(cells)} |"
    yield from ("", *under(row for row in rows if row.key["model"] in {DEMO, size}))


def slowness(rows: Sequence[Row], names: Iterable[str]) -> tuple[str, dict[str, float]]:
    """A size, and what decoders take there beside greedy decoding: gpt2 where it was measured, since drawing is much of a tiny model's time."""
    fine = plots.fine(rows, "inference_ms")
    size = "gpt2" if any(row.key["model"] == "gpt2" and row.key["decoder"] == "greedy" for row in fine) else DEMO
    longest = max((int(row.key["new_tokens"]) for row in fine if row.key["model"] == size), default=0)
    took = {str(r.key["decoder"]): r.median("inference_ms") for r in fine if (r.key["model"], r.key["new_tokens"]) == (size, longest)}
    return size, {name: took[name] / took["greedy"] for name in names if name in took and "greedy" in took}


def of_threads(found: Measured, point: Point) -> Iterator[str]:
    ways, chosen = found.compared, f"{point.engine}-{point.precision}"
    size = "gpt2" if "gpt2" in ways.sizes else next(iter(ways.sizes), "")
    by: dict[str, dict[int, Row]] = {}
    for name in ways.methods(size):
        method, _, count = name.partition("-threads-")
        if (row := ways.row(size, name)) and (count or ENGINE_ROW.fullmatch(method)):
            by.setdefault(method, {})[int(row.key["threads"])] = row
    several = [method for method, rows in by.items() if len(rows) > 1 and ENGINE_ROW.fullmatch(method)]
    if not several:
        yield from ("- **Threads**: not measured yet; `python scripts/optimisation_methods.py` does it.", "")
        return
    method = chosen if chosen in several else several[-1]
    rows = by[method]
    usual = ways.row(size, method)
    point.threads = max(rows, key=lambda count: rows[count].median("tok_s"))
    point.usual_threads = int(usual.key["threads"]) if usual else point.threads
    told = listed([f"{ranged(row.samples['tok_s'])} with {count}" for count, row in sorted(rows.items())])
    cores = rows[point.threads].machine.get("cores", "?")
    yield from (f"- **Threads**: {point.threads}, on a machine with {cores} cores. Tokens/s of `{method}` on {size}: {told}.", "")


def of_speculation(found: Measured, point: Point) -> Iterator[str]:
    ways = found.compared
    gains = {
        text: values for text in ("repeating", "plain") if (values := ways.ratio(DEMO, f"lookup-{text}-on", f"lookup-{text}-off", 100))
    }
    if len(gains) < 2:
        yield from ("- **Guessing ahead**: not measured yet; `python scripts/optimisation_methods.py` does it.", "")
        return
    on = statistics.median(gains["repeating"]) > 1 and statistics.median(gains["plain"]) >= WORTH_LOSING
    point.speculate = (m.Generate(prompt="").speculate or 8) if on else 0
    pairs = [(ways.row(DEMO, f"lookup-{text}-on"), ways.row(DEMO, f"lookup-{text}-off")) for text in gains]
    same = all(a and b and a.facts.get("texts") == b.facts.get("texts") for a, b in pairs)
    yield from (
        (f"- **Guessing ahead**: {'on' if on else 'off'}. A text that repeats itself is {ranged(gains['repeating'])} times as fast with it, one that does not {ranged(gains['plain'])} times "
        f"({WORTH_LOSING:g} is asked for); the texts are {'the same to the last token' if same else 'NOT THE SAME'}."),
        "",
    )  # fmt: skip


def of_size(found: Measured, point: Point) -> Iterator[str]:
    ways, method = found.compared, f"{point.engine}-{point.precision}"
    rates = {size: row.median("tok_s") for size in ways.sizes if size in PUBLISHED and (row := ways.row(size, method))}
    if not rates:
        yield from ("- **Size**: not measured yet; `python scripts/optimisation_methods.py` does it.", "")
        return
    told = listed([f"{size} {figure(rate)}" for size, rate in rates.items()])
    point.size = max((size for size, rate in rates.items() if rate >= LEAST_TOK_S), key=lambda size: PUBLISHED[size].parameters, default="")
    chosen = (
        f"the largest that writes {LEAST_TOK_S:g} tokens/s, about four times as fast as people read, is {point.size}"
        if point.size
        else f"none writes {LEAST_TOK_S:g} tokens/s"
    )
    yield from (f"- **Size**: {chosen}; tokens/s with `{method}`: {told}. The fastest is {max(rates, key=lambda s: rates[s])}. That a larger model writes better is what its authors published; with random weights it is not seen here.", "")  # fmt: skip


# The document


def under(rows: Iterable[Row]) -> list[str]:
    """The line under a figure or table."""
    return ["<sub>" + "<br>".join(line.replace("<", "&lt;") for line in origins(rows)) + "</sub>", ""]


def method_text(found: Measured) -> list[str]:
    runs = ", ".join(f"{count} on {size}" for size, count in RUNS.items())
    reads = f"here {found.read_gb_s:.1f} GB/s at best" if found.read_gb_s else "measured before each series"
    random = (
        sorted({str(r.key["model"]) for rows in found.rows.values() for r in rows if not r.key.get("trained")}, key=[*PUBLISHED].index)
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
    titles = ["The question", "How it was measured", *(part.title for part in parts), "The old findings", "The recommended operating point"]

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
        "Written by `python scripts/report.py` from the measurements in `docs/results`; do not edit it.", "",
        *(f"{i}. [{title}](#{anchor(title)})" for i, title in enumerate(titles, 1)), "",
        "## The question", "",
        ("What is the fastest possible autoregressive decoding of GPT-2 on a CPU, with text still worth reading? An earlier investigation compared "
        "optimisations of a model in torch, with means of 10 runs of 25 tokens. This one asks the same again, of every size, with runtimes and kernels that are made for it."), "",
        "## How it was measured", "", *method_text(found), *body,
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


def compare_old(found: Measured, told: list[Finding]) -> list[str]:
    """The section; `told` is filled."""
    told += findings(found)
    return [
        f"Old figures are seconds for 25 tokens, means of 10 runs. Faster means that the 95 % interval of the ratio lies above 1. Now: {counted(told)}.", "",
        "| then | verdict | now |", "| --- | --- | --- |", *(f"| {f.old} | **{f.verdict}** | {f.now} |" for f in told), "",
        *under(r for name in ("optimisation_methods", "decoder_methods") for r in found.rows[name]),
    ]  # fmt: skip


def counted(told: Sequence[Finding]) -> str:
    counts = {verdict: sum(f.verdict == verdict for f in told) for verdict in (CONFIRMED, REFUTED, UNKNOWN, MISSING)}
    return listed([f"{count} {verdict}" for verdict, count in counts.items() if count])


def render(part: Section, found: Measured, images: Path) -> list[str]:
    rows = found.rows[part.script]
    text = [part.asked, ""]
    if not rows:
        return [
            *text,
            f"Nothing is measured yet: `python scripts/{part.script}.py` does it, or `python scripts/report.py --run {part.script}`.",
            "",
        ]
    line = under(rows)[0]
    for picture in part.pictures:
        made = picture.plot(rows)
        if made is None:
            text += [f"*{picture.caption}* Nothing of it is measured yet.", ""]
            continue
        plots.save(made, images / picture.file, "\n".join(origins(rows)))
        place = f"images/results/{picture.file}"
        alt = re.split(r"[.;:] |\.$", picture.caption)[0].replace("`", "")
        text += [f"[![{alt}]({place}.png)]({place}.svg)", "", picture.caption, "", line, ""]
    shown = list(markdown(part.tables(rows), line))
    if part.quoted:
        quotes = [s for s in shown if s.startswith("- ")]
        shown = [s for s in shown if not s.startswith("- ")]
        shown += ["<details><summary>" + part.quoted + "</summary>", "", *quotes, "", "</details>", ""] if quotes else []
    return [*text, *shown]


# Running


def run(names: Sequence[str], files: dict[str, Path], *, quick: bool) -> dict[str, dict[str, Any]]:
    """Each script in a process; how it ended, and what it took."""
    took: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    for i, name in enumerate(names, 1):
        command = [sys.executable, f"scripts/{name}.py"]
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
        end = f"FAILED with exit code {code} after {minutes:.1f} min; the others go on" if code else f"done in {minutes:.1f} min"
        print(f"{i}/{len(names)} {name}: {end}", file=sys.stderr, flush=True)
    print(f"all: {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr, flush=True)
    return took


def load(results: Path, *, quick: bool) -> Measured:
    files = {name: results / f"{name}{'.quick' if quick else ''}.jsonl" for name in SCRIPTS}
    rows = {name: [r for r in newest(read(file)) if r.script == name] if file.exists() else [] for name, file in files.items()}
    return Measured(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", nargs="*", choices=SCRIPTS, metavar="NAME", help=f"run these first (no name: all of them): {', '.join(SCRIPTS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run them with --quick first, and write into OUT/quick: to see that everything works"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs", metavar="DIR", help="where RESULTS.md and images/results go (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help=f"where the scripts' results are (default: {RESULTS}; with --quick OUT/quick/results)"
    )
    args = parser.parse_args()
    out = args.out / "quick" if args.quick else args.out
    results = (args.results or (out / "results" if args.quick else RESULTS)).resolve()
    wanted = [name for name in SCRIPTS if not args.run or name in args.run] if args.quick or args.run is not None else []
    took = run(wanted, {name: results / f"{name}.jsonl" for name in wanted}, quick=args.quick) if wanted else {}
    told = write(load(results, quick=args.quick), out)
    print(json.dumps(told | {"ran": took, "minutes": round(sum(t["minutes"] for t in took.values()), 1)}, ensure_ascii=False))
    if any(t["exit"] for t in took.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
