"""The document's sections of what was measured: their questions, figures and tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from scripts.investigation import combined_methods, decoder_methods, operating_point, serving_methods
from scripts.investigation.harness import Row
from scripts.investigation.one_daemon import figure, lines_of
from scripts.report import method_plots, text_plots
from scripts.report.measured import BASELINE, Measured
from scripts.report.rows import sizes_of
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO


@dataclass(frozen=True)
class Picture:
    file: str
    caption: str
    plot: method_plots.Plot


@dataclass(frozen=True)
class Section:
    script: str
    title: str
    asked: str
    pictures: Sequence[Picture]
    tables: Callable[[list[Row]], str]
    quoted: str = ""
    """Title of the list under its tables; hidden until it is opened."""
    conclusions: str = ""
    """Name of the section in conclusions.toml; empty: the script's."""


def sections(found: Measured) -> list[Section]:
    """Return the sections in the order in which they are run, and read."""
    return [
        optimisations(found),
        onnx_graphs(found),
        Section(
            "decoder_methods",
            "Ways of decoding",
            "What does each way of choosing the next token cost, and what does it write? Perplexity is that of the "
            "text under the model at full precision: too low is dull, too high is noise. Only what trained weights "
            "write is judged.",
            (
                Picture("decoders", "Time against repetition and against perplexity.", text_plots.decoder_text),
                Picture("decoder_time", "Time of each decoder on each size.", text_plots.decoder_time),
            ),
            decoder_methods.tables,
            "The first text of each decoder, the same prompt for all",
        ),
        Section(
            "combined_methods",
            "Everything together",
            "How fast are engines, quantisation and sampling together, for one text and for many at once?",
            (
                Picture(
                    "together",
                    "Tokens/s of all texts together. Engines with one row write one text after the other.",
                    text_plots.together,
                ),
            ),
            combined_methods.tables,
        ),
        Section(
            "operating_point",
            "The operating point",
            "How does the latency of the daemon's default set-up spread over many seeds, and how much do its texts "
            "differ?",
            (
                Picture(
                    "latency",
                    "Inference time of single requests, prefill and decoding, as the server measures it.",
                    text_plots.latency,
                ),
            ),
            operating_point.tables,
            "The first texts",
        ),
        serving(),
    ]


def optimisations(found: Measured) -> Section:
    title = "Tokens/s by method"
    return Section(
        "optimisation_methods",
        "Optimisations",
        "Which optimisation makes decoding fast on a CPU, at what cost of memory and fidelity, beside `generate` of "
        "transformers in the same turns? `~` marks a time that follows from prefill and decode rate, since not every "
        "run was that long; the other names are explained in the script's `--help`.",
        (
            Picture(
                "speed",
                f"Tokens/s by method and size; bars are medians, thin lines their 95 % intervals. {limit(found)}",
                partial(method_plots.speed, read_gb_s=found.read_gb_s, title=title),
            ),
            Picture("memory", "Tokens/s against the memory that the process takes.", method_plots.memory),
            Picture("threads", "Tokens/s by threads.", method_plots.threads),
        ),
        found.compared.tables,
    )


def onnx_graphs(found: Measured) -> Section:
    title = "Tokens/s by graph"
    return Section(
        "onnx_methods",
        "ONNX graphs, exported and made by hand",
        "Why does a hand-made ONNX graph decode faster than an exported one: products, fused operators, the cache, "
        "I/O binding?",
        (
            Picture(
                "onnx_speed",
                f"Tokens/s by graph and size. {limit(found)}",
                partial(method_plots.speed, read_gb_s=found.read_gb_s, title=title),
            ),
            Picture(
                "onnx_operators",
                "Operators by their share of a decode step. A share is not a time: the step of the graph above may "
                "be many times as long.",
                method_plots.operators,
            ),
        ),
        found.onnx.tables,
    )


def serving() -> Section:
    return Section(
        "serving_methods",
        "Serving",
        "How does the daemon serve many clients at once, and how does the cost of a request grow with its prompt, its "
        "length and its texts?",
        (
            Picture(
                "clients",
                "Throughput and time to the first token against clients (a closed loop).",
                text_plots.clients,
            ),
            Picture(
                "rate",
                "The same against the rate of arrival (an open loop): where the lines rise, requests come faster than "
                "they are answered.",
                text_plots.rate,
            ),
            Picture(
                "cost",
                "One request: prefill by prompt, whole time by new tokens, tokens/s by texts.",
                text_plots.cost,
            ),
        ),
        serving_methods.tables,
    )


def limit(found: Measured) -> str:
    """Return what the dashed lines of the figures of speed are."""
    return (
        f"Dashed: what {found.read_gb_s:.1f} GB/s, the fastest reading that was measured here, divided by the bytes of "
        f"all matrices allows; `{DEMO}` is held by the processor's caches and has no such limit."
    )


SHORT = {
    "transformers-fp32": "transformers, `generate`",
    "transformers-int8": "torch, dynamic int8",
    "optimum-fp32": "optimum, ONNX Runtime",
    "optimum-int8": "optimum, dynamic int8",
    "onnx-int8": "our ONNX graph, int8",
    "native-fp32": "**our kernels, fp32**",
    "native-int8": "**our kernels, int8**",
    "native-int4": "**our kernels, int4**",
}
"""Names of methods for somebody who reads one table only."""


def in_short(found: Measured) -> Section:
    """Return the section that most people want to read."""

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

    plot = partial(method_plots.speed, read_gb_s=found.read_gb_s, title="Tokens/s of one text", columns=3)
    picture = Picture(
        "in_short",
        "Tokens/s of one text by method; thin lines are 95 % intervals, dashed ones what the memory's read bandwidth "
        "allows at each precision.",
        lambda rows: plot(few(rows)),
    )
    return Section(
        "optimisation_methods",
        "In short",
        "How fast is one text written, by well-known ways and by ours? Times as fast: 25 tokens with their prefill, in "
        "the same turns.",
        (picture,),
        tables,
        conclusions="in_short",
    )
