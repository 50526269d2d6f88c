"""What an earlier investigation found, each sentence confirmed, refuted, or not judgeable, from what is measured now."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.investigation import methods
from scripts.investigation.harness import interval
from scripts.investigation.one_daemon import figure, ranged
from scripts.report.measured import BASELINE, Compared, Measured, listed, under
from scripts.report.rows import DRAWN, is_plain, longest_of, precision_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO
from server.catalogue.engines import choose_engine

MARGINAL = 0.10
"""A difference of speed below it is called marginal."""
OLD_S = {"gpt2": (0.53, 0.42), "gpt2-medium": (1.30, 1.19), "gpt2-large": (2.55, 2.49)}
"""Seconds for 25 tokens before and after dynamic quantisation, means of 10 runs, as the earlier investigation gave them."""
CONFIRMED, REFUTED, UNKNOWN, MISSING = "confirmed", "refuted", "not judgeable without real weights", "not measured yet"


@dataclass(frozen=True)
class Finding:
    old: str
    verdict: str
    now: str


def findings(found: Measured) -> Iterator[Finding]:
    ways = found.compared
    missing = "`python -m scripts.investigation.optimisation_methods` measures it."

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
        yield Finding(
            old, faster({size: head}), f"{now}{f'; with all matrices {ranged(every)} times' if every else ''}."
        )

    yield multithreading(found)

    for name, label, other in (
        ("torch-fp32-compile", "torch.compile", "torch-fp32"),
        ("transformers-sdpa", "BetterTransformer", BASELINE),
    ):
        by_size = ratios(name, other)
        marginal = all(abs(statistics.median(values) - 1) < MARGINAL for values in by_size.values())
        verdict = MISSING if not by_size else CONFIRMED if marginal else REFUTED
        what = "What became of it, torch's fused attention," if label == "BetterTransformer" else "It"
        now = f"{what} is {told(by_size)} as {'eager attention' if other == BASELINE else 'the same loop uncompiled'}; a difference below {100 * MARGINAL:.0f} % is called marginal."
        yield Finding(f"{label} changes hardly anything.", verdict, now if by_size else missing)

    yield from sampled(found)

    default = "-".join(choose_engine(None, None))
    rates = {
        size: row.samples["tok_s"] for size in ways.sizes if size in PUBLISHED and (row := ways.row(size, default))
    }
    if len(rates) > 1:
        speeds = [*rates.values()]
        verdict = CONFIRMED if all(interval(a)[0] > interval(b)[1] for a, b in itertools.pairwise(speeds)) else REFUTED
        now = (
            f"`{default}` decodes {listed([f'{size} at {ranged(values)}' for size, values in rates.items()])} tokens/s."
        )
    else:
        verdict, now = MISSING, missing
    yield Finding("Larger models are slower.", verdict, now)
    costs = [f"{size} costs {figure(statistics.median(rates['gpt2']) / statistics.median(v))} times as much" for size, v in rates.items() if size != "gpt2"] if "gpt2" in rates else []  # fmt: skip
    reason = "Their texts would have to be those of real weights, and judged by something other than the model that wrote them"
    yield Finding("Larger models write hardly better text.", UNKNOWN, f"{reason}.")
    yield Finding(
        "The medium model is the best balance.",
        UNKNOWN,
        f"{reason}; of the two sides of the balance the speed is known: {listed(costs)} as gpt2."
        if costs
        else f"{reason}.",
    )

    plain, hand = ratios("optimum-fp32"), ratios("onnx-int8")
    verdict = faster(plain | {f"{size} ": values for size, values in hand.items()})
    now = f"An export in ONNX Runtime at full precision is {told(plain)} as transformers; the graph made by hand, at int8, {told(hand)}."
    yield Finding(
        "ONNX is promising.", verdict, now if plain and hand else f"an export: {told(plain)}" if plain else missing
    )


def faster(ratios: dict[str, list[float]]) -> str:
    """Confirmed where each size's interval lies above 1."""
    return (
        MISSING if not ratios else CONFIRMED if all(interval(values)[0] > 1 for values in ratios.values()) else REFUTED
    )


def told(ratios: dict[str, list[float]]) -> str:
    return f"{listed([f'{ranged(values)} ({size})' for size, values in ratios.items()])} times as fast"


def compared_sizes(ways: Compared) -> list[str]:
    """Those of the earlier investigation; the embedded model where nothing else was measured."""
    return [size for size in ways.sizes if size in PUBLISHED] or ways.sizes


def multithreading(found: Measured) -> Finding:
    """Whether the fastest is quantised, and uses all threads."""
    ways, old = found.compared, "Quantisation together with multithreading is the fastest."
    verdicts, fastest, gains = [], [], {}
    for size in compared_sizes(ways):
        rates = {
            name: row.median("tok_s") for name in filter(is_plain, ways.methods(size)) if (row := ways.row(size, name))
        }
        if BASELINE not in rates or len(rates) < 2:
            continue
        best, theirs = (
            max(some, key=lambda name: rates[name])
            for some in (rates, [n for n in rates if n.startswith(("transformers", "torch"))])
        )
        fastest.append(f"`{best}` on {size} (of torch's `{theirs}`)")
        if single := ways.ratio(size, "native-int8", "native-int8-threads-1"):
            gains[size] = single
        verdicts.append(precision_of(best) in {"int8", "int4"} and (single is None or interval(single)[0] > 1))
    if not fastest:
        return Finding(old, MISSING, "`python -m scripts.investigation.optimisation_methods` measures it.")
    threads = f" With all threads `native-int8` is {told(gains)} as with one." if gains else ""
    return Finding(old, CONFIRMED if all(verdicts) else REFUTED, f"The fastest is {listed(fastest)}.{threads}")


def sampled(found: Measured) -> Iterator[Finding]:
    by = longest_of(found.rows["decoder_methods"], DEMO)
    less, more = "Sampling repeats itself less than greedy decoding.", "Sampling is more coherent than greedy decoding."
    greedy, drawn = by.get("greedy"), [row for name, row in by.items() if name in DRAWN]
    if greedy is None or not drawn:
        yield Finding(less, MISSING, "`python -m scripts.investigation.decoder_methods` measures it.")
        yield Finding(more, UNKNOWN, "Coherence is read, not counted.")
        return
    least = greedy.interval("repetition")[0]
    verdict = CONFIRMED if all(row.interval("repetition")[1] < least for row in drawn) else REFUTED
    every = listed([f"{row.key['decoder']} {ranged(row.samples['repetition'], 100)} %" for row in drawn])
    yield Finding(less, verdict, f"On `{DEMO}`, which is trained, {ranged(greedy.samples['repetition'], 100)} % of greedy decoding's 4-grams in {greedy.key['new_tokens']} tokens stood there before; {every}.")  # fmt: skip
    perplexities = listed([f"{row.key['decoder']} {figure(row.median('perplexity'))}" for row in (greedy, *drawn)])
    yield Finding(more, UNKNOWN, f"Coherence is read, not counted, and `{DEMO}` is too small to have much of it. Perplexity of the texts under the model: {perplexities}; greedy decoding has a low one by its nature.")  # fmt: skip


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
