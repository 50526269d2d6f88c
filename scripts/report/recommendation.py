"""The operating point that the rule chooses from what is measured; the default of daemon and client beside it.

The rule is code, and so are the tables that show what it had to choose from. What is said of them is in
conclusions.toml.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol import messages as m
from scripts.investigation import decoder_methods, method_figures
from scripts.investigation.harness import Row
from scripts.investigation.one_daemon import figure, lines_of, ranged
from scripts.report.measured import BASELINE, Measured, under
from scripts.report.rows import DRAWN, fine, longest_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO
from server.catalogue.engines import choose_engine


@dataclass(frozen=True)
class Rule:
    """Limits of what may be recommended."""

    most_worse_pct: float = 1.0
    """Per cent by which the precision may raise perplexity on `demo`."""
    least_same: float = 0.95
    """Share of places on `demo` where the precision's likeliest token has to be that of full precision.

    Below it a greedy text is soon another one.
    """
    most_repeated: float = 0.05
    """Share of 4-grams that may repeat in a text still worth reading."""
    most_slower: float = 1.10
    """Times that a decoder may take as long as greedy decoding."""
    worth_losing: float = 0.95
    """Share of its speed that a text which does not repeat itself must keep with guessing ahead."""
    least_tok_s: float = 20.0
    """Tokens/s for which a person does not wait: about four times as fast as people read.

    They read 238 words a minute (Brysbaert 2019).
    """


RULE = Rule()
TITLE = "The recommended operating point"
ENGINE_ROW = re.compile(r"(native|onnx|torch|optimum)-(fp32|bf16|int8|int4)")
"""Methods that a daemon can be asked for."""


@dataclass
class Point:
    """Choices of the rule; empty where nothing that is measured leads to one."""

    engine: str = ""
    precision: str = ""
    decoder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 0
    speculate: int | None = None
    size: str = ""
    usual_threads: int = 0
    """Number of threads of the measurements where nobody asked for another."""

    @property
    def whole(self) -> bool:
        return bool(self.engine and self.decoder and self.threads and self.speculate is not None and self.size)

    @property
    def is_default(self) -> bool:
        return self.whole and not self.differs()

    def differs(self) -> list[str]:
        """Return the names of what the defaults of daemon and client have otherwise."""
        defaults, engine = m.Generate(prompt=""), choose_engine(None, None)
        found = []
        if self.engine and (self.engine, self.precision) != engine:
            found.append("engine")
        found += [name for name, value in self.settings.items() if getattr(defaults, name) != value]
        if self.threads != self.usual_threads:
            found.append("threads")
        if self.speculate is not None and bool(self.speculate) != bool(defaults.speculate):
            found.append("speculate")
        return found


def settings_of(decoder: str) -> dict[str, Any]:
    """Return the settings of a decoder, with those it leaves at their default; without those of other strategies."""
    asked = m.Generate(prompt="", **decoder_methods.DECODERS[decoder])
    return {name: getattr(asked, name) for name in ("strategy", "temperature", "top_k", "top_p", "min_p", "typical_p")}


def default_decoder() -> str:
    """Return the decoder of the investigation that has the default settings; empty: there is none."""
    defaults = m.Generate(prompt="")
    for name in decoder_methods.DECODERS:
        if name in DRAWN and all(getattr(defaults, n) == value for n, value in settings_of(name).items()):
            return name
    return ""


def choose(found: Measured, point: Point) -> dict[str, list[str]]:
    """Fill in what the rule chooses; return, for each part of it, tables of what there was to choose from.

    A part without tables has not been measured.
    """
    return {name: list(make(found, point)) for name, (_, make) in PARTS.items()}


def summary(found: Measured, point: Point) -> list[str]:
    """Return the table of the choices, with the defaults of daemon and client beside them."""
    defaults = m.Generate(prompt="")
    usual = _written({name: getattr(defaults, name) for name in point.settings})
    speculate = "" if point.speculate is None else str(point.speculate)
    engine = f"{point.engine} at {point.precision}" if point.engine else ""
    lines = [
        ("engine and precision", engine, " at ".join(choose_engine(None, None))),
        ("decoder", _written(point.settings), usual),
        ("threads", str(point.threads or ""), str(point.usual_threads or "")),
        ("guesses ahead (`speculate`)", speculate, str(defaults.speculate)),
        ("size", point.size, "none: the client names one"),
    ]
    cells = [[name, chosen or "not measured", default] for name, chosen, default in lines]
    rows = [row for name in ("optimisation_methods", "decoder_methods") for row in found.rows[name]]
    return [*lines_of(["", "chosen by the rule", "default of daemon and client"], cells), "", *under(rows)]


def _written(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def of_engine(found: Measured, point: Point) -> Iterator[str]:
    """Yield the tables of the precisions, by what they cost, and of the fastest one that is admitted for each size."""
    ways = found.compared
    lost = {
        name: (float(row.facts["perplexity_change_pct"]), float(row.facts["top1_agreement"]))
        for name in ways.methods(DEMO)
        if ENGINE_ROW.fullmatch(name) and (row := ways.row(DEMO, name)) and "perplexity_change_pct" in row.facts
    }
    good = [n for n, (worse, same) in lost.items() if worse <= RULE.most_worse_pct and same >= RULE.least_same]
    best: dict[str, str] = {}
    for size in ways.sizes:
        if rates := {name: row.median("tok_s") for name in good if (row := ways.row(size, name))}:
            best[size] = max(rates, key=rates.__getitem__)
    if not best:
        return
    chosen = best.get("gpt2") or next(iter(best.values()))
    point.engine, point.precision = chosen.split("-")
    head = ["on demo", "perplexity, %", "same likeliest token", "admitted"]
    cells = [
        [f"`{name}`", f"{worse:+.2f}", f"{same:.1%}", admitted(name, lost, good)]
        for name, (worse, same) in lost.items()
    ]
    line = under(found.rows["optimisation_methods"])
    yield from (*lines_of(head, cells), "", *line)
    head = ["size", "fastest that is admitted", "25 tokens, ms", "tokens/s", "times as fast as transformers", "MB"]
    cells = []
    for size, name in best.items():
        if row := ways.row(size, name):
            ratio = ways.ratio(size, name, BASELINE)
            times = ranged(method_figures.times(row, 25))
            faster = ranged(ratio) if ratio else "-"
            cells.append([size, f"`{name}`", times, ranged(row.samples["tok_s"]), faster, figure(row.facts["rss_mb"])])
    yield from (*lines_of(head, cells), "", *line)


def of_decoder(found: Measured, point: Point) -> Iterator[str]:
    """Yield the table of the ways to draw."""
    rows = found.rows["decoder_methods"]
    by = longest_of(rows, DEMO)
    drawn = {name: row for name, row in by.items() if name in DRAWN and name != "mirostat"}
    greedy = by.get("greedy")
    if greedy is None or not drawn:
        return
    size, slower = slowness(rows, drawn)
    fit = {
        name: row
        for name, row in drawn.items()
        if row.interval("repetition")[1] <= RULE.most_repeated and slower.get(name, 1.0) <= RULE.most_slower
    }
    usual = default_decoder()
    point.decoder = best_decoder(fit, usual)
    point.settings = settings_of(point.decoder) if point.decoder else {}
    head = [f"{DEMO}, {greedy.key['new_tokens']} tokens", "ms", f"time on {size}, greedy = 1"]
    head += ["repeated 4-grams, %", "distinct-2", "perplexity", "admitted"]
    cells = []
    for name, row in {"greedy": greedy, **drawn}.items():
        mark = "**" if name == point.decoder else ""
        cells.append(
            [
                f"{mark}{name}{mark}{' (the default)' if name == usual else ''}",
                ranged(row.samples["inference_ms"]),
                figure(slower[name]) if name in slower else "-",
                ranged(row.samples["repetition"], 100),
                ranged(row.samples["distinct_2"]),
                ranged(row.samples["perplexity"]),
                admitted(name, drawn, fit),
            ]
        )
    yield from (*lines_of(head, cells), "", *under(row for row in rows if row.key["model"] in {DEMO, size}))


def admitted(name: str, asked: Container[str], fit: Container[str]) -> str:
    if name not in asked:
        return "-"
    return "yes" if name in fit else "no"


def best_decoder(fit: dict[str, Row], usual: str) -> str:
    """Return the admitted decoder with the lowest perplexity; the default where none is seen to be better."""
    if not fit:
        return usual
    best = min(fit, key=lambda name: fit[name].median("perplexity"))
    as_good = usual in fit and fit[usual].interval("perplexity")[0] <= fit[best].interval("perplexity")[1]
    return usual if as_good else best


def slowness(rows: Sequence[Row], names: Iterable[str]) -> tuple[str, dict[str, float]]:
    """Return a size, and the times of decoders there, greedy decoding being 1.

    The size is gpt2 where it was measured: drawing is much of a tiny model's time.
    """
    timed = fine(rows, "inference_ms")
    size = "gpt2" if any(row.key["model"] == "gpt2" and row.key["decoder"] == "greedy" for row in timed) else DEMO
    longest = max((int(row.key["new_tokens"]) for row in timed if row.key["model"] == size), default=0)
    took = {
        str(r.key["decoder"]): r.median("inference_ms")
        for r in timed
        if (r.key["model"], r.key["new_tokens"]) == (size, longest)
    }
    return size, {name: took[name] / took["greedy"] for name in names if name in took and "greedy" in took}


def of_threads(found: Measured, point: Point) -> Iterator[str]:
    """Yield the table of the numbers of threads."""
    ways, chosen = found.compared, f"{point.engine}-{point.precision}"
    size = "gpt2" if "gpt2" in ways.sizes else next(iter(ways.sizes), "")
    by: dict[str, dict[int, Row]] = {}
    for name in ways.methods(size):
        method = name.split("-threads-")[0]
        if (row := ways.row(size, name)) and (method != name or ENGINE_ROW.fullmatch(method)):
            by.setdefault(method, {})[int(row.key["threads"])] = row
    several = [method for method, rows in by.items() if len(rows) > 1 and ENGINE_ROW.fullmatch(method)]
    if not several:
        return
    method = chosen if chosen in several else several[-1]
    rows = by[method]
    usual = ways.row(size, method)
    point.threads = max(rows, key=lambda count: rows[count].median("tok_s"))
    point.usual_threads = int(usual.key["threads"]) if usual else point.threads
    cores = rows[point.threads].machine.get("cores", "?")
    head = [f"threads, on {cores} cores", f"tokens/s of `{method}` on {size}"]
    cells = [[str(count), ranged(row.samples["tok_s"])] for count, row in sorted(rows.items())]
    yield from (*lines_of(head, cells), "", *under(rows.values()))


def of_speculation(found: Measured, point: Point) -> Iterator[str]:
    """Yield the table of texts with and without guessing ahead."""
    ways, texts = found.compared, {"repeating": "repeats itself", "plain": "does not repeat itself"}
    gains = {
        text: values for text in texts if (values := ways.ratio(DEMO, f"lookup-{text}-on", f"lookup-{text}-off", 100))
    }
    if len(gains) < len(texts):
        return
    pays = statistics.median(gains["repeating"]) > 1
    on = pays and statistics.median(gains["plain"]) >= RULE.worth_losing
    point.speculate = (m.Generate(prompt="").speculate or 8) if on else 0
    head = [f"{DEMO}, a text of 100 tokens that", "times as fast with guessing", "same text"]
    cells = []
    for text, values in gains.items():
        pair = [ways.row(DEMO, f"lookup-{text}-{state}") for state in ("on", "off")]
        same = len({str(row.facts.get("texts")) for row in pair if row}) == 1
        cells.append([texts[text], ranged(values), "yes" if same else "NO"])
    yield from (*lines_of(head, cells), "", *under(found.rows["optimisation_methods"]))


def of_size(found: Measured, point: Point) -> Iterator[str]:
    """Yield the table of the sizes."""
    ways, method = found.compared, f"{point.engine}-{point.precision}"
    rows = {size: row for size in ways.sizes if size in PUBLISHED and (row := ways.row(size, method))}
    if not rows:
        return
    fast = [size for size, row in rows.items() if row.median("tok_s") >= RULE.least_tok_s]
    point.size = max(fast, key=lambda size: PUBLISHED[size].parameters, default="")
    cells = [
        [size, ranged(row.samples["tok_s"]), f"{row.median('tok_s') / RULE.least_tok_s:.2g}"]
        for size, row in rows.items()
    ]
    head = ["size", f"tokens/s of `{method}`", f"times the {RULE.least_tok_s:g} tokens/s asked for"]
    yield from (*lines_of(head, cells), "", *under(rows.values()))


PARTS: dict[str, tuple[str, Callable[[Measured, Point], Iterator[str]]]] = {
    "engine": ("Engine and precision", of_engine),
    "decoder": ("Decoder", of_decoder),
    "threads": ("Threads", of_threads),
    "speculation": ("Guessing ahead", of_speculation),
    "size": ("Size", of_size),
}
"""Title of each part, and what chooses it; those that come later build on the choices before them."""
