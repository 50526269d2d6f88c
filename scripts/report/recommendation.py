"""The operating point that follows from what is measured: engine, precision, decoder, threads, guessing ahead, size; and whether it is the default."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol import messages as m
from scripts.investigation import decoder_methods, methods
from scripts.investigation.harness import Row
from scripts.investigation.one_daemon import figure, ranged
from scripts.report.measured import BASELINE, Measured, listed, under
from scripts.report.rows import DRAWN, fine, longest_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO
from server.catalogue.engines import choose_engine

MOST_WORSE_PCT = 1.0
"""Perplexity on `demo`: what the recommended precision may cost."""
LEAST_SAME = 0.95
"""The share of places on `demo` where its likeliest token has to be that of full precision: below it a greedy text is soon another one."""
MOST_REPEATED = 0.05
"""The share of 4-grams that may repeat in a text still worth reading."""
MOST_SLOWER = 1.10
"""How many times the time of greedy decoding the recommended decoder may take."""
WORTH_LOSING = 0.95
"""How much of its speed a text that does not repeat itself must keep for guessing ahead to be recommended."""
LEAST_TOK_S = 20.0
"""Tokens/s that a person does not wait for: about four times as fast as people read (238 words a minute: Brysbaert 2019)."""
ENGINE_ROW = re.compile(r"(native|onnx|torch|optimum)-(fp32|bf16|int8|int4)")
"""Methods that a daemon can be asked for."""


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
    return next((name for name in decoder_methods.DECODERS if name in DRAWN and all(getattr(defaults, n) == v for n, v in settings_of(name).items())), "")  # fmt: skip


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
        "This is the default of daemon and client"
        if not differs
        else f"This is not the default of daemon and client: {listed(differs)}"
    )
    return [
        f"**{so_far}{point_text}.** {verdict}; the client asks for what `protocol.messages.Generate` says, and there is no default size.",
        "",
        *text,
    ]


def of_engine(found: Measured, point: Point) -> Iterator[str]:
    ways = found.compared
    asked_for = (name for name in ways.methods(DEMO) if ENGINE_ROW.fullmatch(name))
    lost = {
        name: (float(row.facts["perplexity_change_pct"]), float(row.facts["top1_agreement"]))
        for name in asked_for
        if (row := ways.row(DEMO, name)) and "perplexity_change_pct" in row.facts
    }
    admitted = [name for name, (change, same) in lost.items() if change <= MOST_WORSE_PCT and same >= LEAST_SAME]
    best: dict[str, str] = {}
    for size in ways.sizes:
        if rates := {name: row.median("tok_s") for name in admitted if (row := ways.row(size, name))}:
            best[size] = max(rates, key=rates.__getitem__)
    if not best:
        yield from (
            "- **Engine and precision**: not measured yet; `python -m scripts.investigation.optimisation_methods` does it.",
            "",
        )
        return
    chosen = best.get("gpt2") or next(iter(best.values()))
    point.engine, point.precision = chosen.split("-")
    out = [f"`{name}` ({change:+.2f} %, {same:.1%})" for name, (change, same) in lost.items() if name not in admitted]
    yield from (
        (
            f"- **Engine and precision**: the most tokens/s of what a daemon can be asked for, if on `{DEMO}` perplexity rises by {MOST_WORSE_PCT:g} % at the most, and the likeliest token is that of full precision "
            f"in {LEAST_SAME:.0%} of the places: `{chosen}` ({lost[chosen][0]:+.2f} %, {lost[chosen][1]:.1%}). {f'Left out: {listed(out)}.' if out else 'None had to be left out.'}"
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
    drawn = {name: row for name, row in by.items() if name in DRAWN and name != "mirostat"}
    greedy = by.get("greedy")
    if greedy is None or not drawn:
        yield from ("- **Decoder**: not measured yet; `python -m scripts.investigation.decoder_methods` does it.", "")
        return
    size, slower = slowness(rows, drawn)
    fit = {
        name: row
        for name, row in drawn.items()
        if row.interval("repetition")[1] <= MOST_REPEATED and slower.get(name, 1.0) <= MOST_SLOWER
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
    yield from (
        f"- **Decoder**: sampling, {settings}. The rule: {rule}{'' if fit else '. None fits it, so that the default stays'}.",
        "",
    )
    yield f"| {DEMO}, {greedy.key['new_tokens']} tokens | ms | time on {size}, greedy = 1 | repeated 4-grams, % | distinct-2 | perplexity |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, row in {"greedy": greedy, **drawn}.items():
        cells = [ranged(row.samples["inference_ms"]), figure(slower[name]) if name in slower else "-", ranged(row.samples["repetition"], 100), ranged(row.samples["distinct_2"]), ranged(row.samples["perplexity"])]  # fmt: skip
        mark = "**" if name == point.decoder else ""
        yield f"| {mark}{name}{mark}{' (the default)' if name == usual else ''} | {' | '.join(cells)} |"
    yield from ("", *under(row for row in rows if row.key["model"] in {DEMO, size}))


def slowness(rows: Sequence[Row], names: Iterable[str]) -> tuple[str, dict[str, float]]:
    """A size, and what decoders take there beside greedy decoding: gpt2 where it was measured, since drawing is much of a tiny model's time."""
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
    ways, chosen = found.compared, f"{point.engine}-{point.precision}"
    size = "gpt2" if "gpt2" in ways.sizes else next(iter(ways.sizes), "")
    by: dict[str, dict[int, Row]] = {}
    for name in ways.methods(size):
        method, _, count = name.partition("-threads-")
        if (row := ways.row(size, name)) and (count or ENGINE_ROW.fullmatch(method)):
            by.setdefault(method, {})[int(row.key["threads"])] = row
    several = [method for method, rows in by.items() if len(rows) > 1 and ENGINE_ROW.fullmatch(method)]
    if not several:
        yield from (
            "- **Threads**: not measured yet; `python -m scripts.investigation.optimisation_methods` does it.",
            "",
        )
        return
    method = chosen if chosen in several else several[-1]
    rows = by[method]
    usual = ways.row(size, method)
    point.threads = max(rows, key=lambda count: rows[count].median("tok_s"))
    point.usual_threads = int(usual.key["threads"]) if usual else point.threads
    told = listed([f"{ranged(row.samples['tok_s'])} with {count}" for count, row in sorted(rows.items())])
    cores = rows[point.threads].machine.get("cores", "?")
    yield from (
        f"- **Threads**: {point.threads}, on a machine with {cores} cores. Tokens/s of `{method}` on {size}: {told}.",
        "",
    )


def of_speculation(found: Measured, point: Point) -> Iterator[str]:
    ways = found.compared
    gains = {
        text: values
        for text in ("repeating", "plain")
        if (values := ways.ratio(DEMO, f"lookup-{text}-on", f"lookup-{text}-off", 100))
    }
    if len(gains) < 2:
        yield from (
            "- **Guessing ahead**: not measured yet; `python -m scripts.investigation.optimisation_methods` does it.",
            "",
        )
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
        yield from ("- **Size**: not measured yet; `python -m scripts.investigation.optimisation_methods` does it.", "")
        return
    told = listed([f"{size} {figure(rate)}" for size, rate in rates.items()])
    point.size = max(
        (size for size, rate in rates.items() if rate >= LEAST_TOK_S),
        key=lambda size: PUBLISHED[size].parameters,
        default="",
    )
    chosen = (
        f"the largest that writes {LEAST_TOK_S:g} tokens/s, about four times as fast as people read, is {point.size}"
        if point.size
        else f"none writes {LEAST_TOK_S:g} tokens/s"
    )
    yield from (f"- **Size**: {chosen}; tokens/s with `{method}`: {told}. The fastest is {max(rates, key=lambda s: rates[s])}. That a larger model writes better is what its authors published; with random weights it is not seen here.", "")  # fmt: skip
