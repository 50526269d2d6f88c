"""Rows of the investigation that are made up: with the keys of the scripts' own plans and plausible figures."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from scripts.investigation import (
    combined_methods,
    decoder_methods,
    methods,
    onnx_methods,
    operating_point,
    optimisation_methods,
    serving_methods,
)
from scripts.investigation.harness import Row
from scripts.report.measured import SCRIPTS
from scripts.report.rows import precision_of
from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import DEMO, DEMO_FOLDER, Model

SIZES = (DEMO, "gpt2", "gpt2-medium", "gpt2-large")
MACHINE: dict[str, Any] = {
    "cpu": "Some Processor",
    "cores": 2,
    "memory_gb": 25.3,
    "system": "Linux",
    "python": "3.11.7",
    "read_gb_s": 33.0,
    "load": 0.2,
}
VERSIONS = {"gpt2d": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.32.0"}
NOBODY: Any = None
"""Daemon of plans that nobody runs."""


def scale_of(model: Model) -> float:
    """Return how many times as large as gpt2 a model is."""
    return model.architecture.parameters / 124e6 if model.architecture else 1.0


class Rows:
    """Rows of every script, with seeded noise."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def around(self, value: float, count: int = 10, wide: float = 0.04) -> list[float]:
        return [float(v) for v in value * np.exp(self.random.normal(0, wide, count))]

    def row(
        self,
        name: str,
        key: dict[str, str | int | float | bool],
        samples: dict[str, list[float]],
        facts: dict[str, Any],
    ) -> Row:
        return Row(
            name,
            key,
            samples,
            facts,
            "2026-11-26T03:00:00Z",
            f"python -m scripts.investigation.{name}",
            MACHINE,
            VERSIONS,
        )

    def everything(self) -> dict[str, list[Row]]:
        return {name: [row for size in SIZES for row in getattr(self, name)(size, model_of(size))] for name in SCRIPTS}

    def optimisation_methods(self, size: str, model: Model) -> Iterator[Row]:
        yield from self.methods(size, model, "optimisation_methods", (25, 100))

    def onnx_methods(self, size: str, model: Model) -> Iterator[Row]:
        yield from self.methods(size, model, "onnx_methods", (8,))

    def methods(self, size: str, model: Model, name: str, lengths: tuple[int, ...]) -> Iterator[Row]:
        script: ModuleType = {"optimisation_methods": optimisation_methods, "onnx_methods": onnx_methods}[name]
        scale, architecture = scale_of(model), model.architecture or PUBLISHED[size]
        setup = methods.Setup(size, model, 2, Path(), quick=False)
        losses = {"fp32": (0.0, 1.0), "bf16": (0.05, 0.98), "int8": (0.2, 0.98), "int4": (0.5, 0.9)}
        for i, method in enumerate(script.methods_of(size, 2, SIZES)):
            key = methods.key(method, setup, 1 + i % 2 if i and not method.against else 1)
            row = self.row(name, key, {}, {})
            if reason := method.skip(architecture):
                yield replace(row, problem=f"Skipped: {reason}")
                continue
            rates = self.around(min(method.tok_s / scale, 3000.0))
            prefill = self.around(50 * scale * 23 / method.tok_s)
            samples: dict[str, list[float]] = {"tok_s": rates}
            if method.make is methods.MethodTrial or "two-texts" not in method.name:
                samples["prefill_ms"] = prefill
                for length in lengths:
                    whole = [p + 1000 * (length - 1) / r for p, r in zip(prefill, rates, strict=True)]
                    samples[f"whole_{length}_ms"] = whole if statistics_fit(whole) else whole[:1]
            facts: dict[str, Any] = {"load_s": 1.0, "rss_mb": round(method.bytes(architecture) / 1e6)}
            if size == DEMO and method.judged:
                facts |= dict(
                    zip(
                        ("perplexity_change_pct", "top1_agreement"),
                        losses[precision_of(method.name)],
                        strict=True,
                    )
                )
            if name == "onnx_methods" and not method.option:
                facts["profile"] = {
                    "Gemm": 0.55,
                    "MatMulNBits": 0.2,
                    "Concat": 0.1,
                    "GroupQueryAttention": 0.05,
                    "Reshape": 0.04,
                }
            if "lookup" in method.name or "page" in method.name:
                facts |= {
                    "texts": "abc",
                    "reused_tokens": 0,
                    "prompt_tokens": 1,
                    "guessed_tokens": 0,
                    "accepted_tokens": 0,
                }
            if method.name == "lookup-repeating-on":
                samples |= {name: [v / 2 for v in values] for name, values in samples.items() if "whole" in name}
            yield replace(row, samples=samples, facts=facts)
        if name == "optimisation_methods":  # the second group has the baseline, too
            key = methods.key(script.methods_of(size, 2, SIZES)[0], setup, 2)
            rates = self.around(min(23 / scale, 3000.0))
            wholes = [24000 / rate for rate in rates]
            samples = {"tok_s": rates, "prefill_ms": self.around(50 * scale), "whole_25_ms": wholes}
            yield self.row(name, key, samples, {"rss_mb": 900, "load_s": 2.0, "perplexity_change_pct": 0.0})

    def decoder_methods(self, size: str, model: Model) -> Iterator[Row]:
        args = Namespace(only=list(decoder_methods.DECODERS), new_tokens=[25, 100], threads=2, quick=False, seconds=4.0)
        slow = {
            "beam": 3.5,
            "beam sampling": 3.8,
            "diverse beam": 3.7,
            "contrastive": 6.0,
            "prompt lookup": 0.7,
            "sampling": 1.03,
            "mirostat": 1.05,
        }
        repeated = {
            "greedy": 0.42,
            "prompt lookup": 0.42,
            "beam": 0.55,
            "diverse beam": 0.5,
            "beam sampling": 0.2,
            "contrastive": 0.05,
        }
        perplexity = {
            "greedy": 4.0,
            "prompt lookup": 4.0,
            "beam": 3.2,
            "diverse beam": 3.4,
            "beam sampling": 6.0,
            "contrastive": 11.0,
            "sampling": 60.0,
            "top-p": 45.0,
            "typical": 43.0,
            "mirostat": 30.0,
            "min-p": 14.0,
        }
        for plan in decoder_methods.plans(args, NOBODY, size, model):
            name, count = str(plan.key["decoder"]), int(plan.key["new_tokens"])
            ms = count * 3.0 * slow.get(name, 1.0) * scale_of(model)
            samples = {
                "inference_ms": self.around(ms),
                "whole_ms": self.around(ms * 1.1),
                "tok_s": self.around(count / ms * 1000),
            }
            if plan.key["trained"]:
                share = repeated.get(name, 0.01)
                samples |= {
                    "repetition": self.around(share, wide=0.2),
                    "perplexity": self.around(perplexity.get(name, 22.0), wide=0.15),
                }
                samples |= {f"distinct_{n}": self.around(1 - share / n) for n in (1, 2, 3)}
            texts = [{"prompt": "To *be*, or", "text": " not\n`to` be | that"}] if plan.key["trained"] else []
            yield self.row(
                "decoder_methods",
                plan.key,
                samples,
                {"texts": texts, "settings": {}, "rss_mb": 100.0, "model": model.name},
            )

    def combined_methods(self, size: str, model: Model) -> Iterator[Row]:
        args, scale = Namespace(outputs=None, threads=2, quick=False, seconds=4.0), scale_of(model)
        fast = {"transformers": 22, "torch": 90, "optimum": 54, "onnx": 200, "native": 300}
        for plan in combined_methods.plans(args, NOBODY, NOBODY, size, model, list(combined_methods.VARIANTS)):
            engine, outputs = str(plan.key["engine"]), int(plan.key["outputs"])
            rate = (
                fast[engine]
                / scale
                * (0.3 if plan.key["precision"] == "fp32" else 1)
                * (outputs**0.6 if engine in {"onnx", "native", "transformers"} else 1)
            )
            samples = {"tok_s": self.around(rate), "whole_ms": self.around(25000 * outputs / rate)}
            yield self.row("combined_methods", plan.key, samples, {"loaded_mb": 100.0, "rss_mb": 200.0, "load_s": 1.0})

    def operating_point(self, size: str, model: Model) -> Iterator[Row]:
        args = Namespace(
            new_tokens=[25, 100],
            engine="native",
            precision="int8",
            prompt=operating_point.PROMPT,
            settings={},
            reuse=False,
            trials=200,
            threads=2,
        )
        for plan in operating_point.plans(args, NOBODY, size, model):
            ms = int(plan.key["new_tokens"]) * 3.0 * scale_of(model)
            values = [ms * (1 + v) for v in self.random.gamma(2, 0.04, 200)]
            samples = {
                "inference_ms": values,
                "first_token_ms": self.around(9, 200),
                "whole_ms": [v + 1 for v in values],
                "tok_s": [25000 / v for v in values],
            }
            facts = {
                "texts": ["One text"] * 4,
                "different_texts": 200,
                "pairwise_distinct": 0.98,
                "repetition": 0.01,
                "distinct_1": 0.8,
                "distinct_2": 0.95,
            }
            yield self.row("operating_point", plan.key, samples, facts)

    def serving_methods(self, size: str, model: Model) -> Iterator[Row]:
        server: Any = SimpleNamespace(model=model, engine="native", precision="int8")
        args = Namespace(rows=16, threads=2, quick=False, seconds=3.0)
        series = serving_methods.Series(args, NOBODY, server, size)
        step = 3.0 * scale_of(model)

        def many(sweep: str, together: float, late: float, **asked: Any) -> Row:
            key = series.plan(sweep, serving_methods.Closed, 1, **asked).key
            rate = 1000 / step * min(together, 12) ** 0.6
            samples = {
                "tok_s": self.around(rate),
                "requests_per_s": self.around(rate / 25),
                "token_p50_ms": self.around(step),
            }
            samples |= {
                "first_token_p50_ms": self.around(late),
                "first_token_p95_ms": self.around(late * 2),
                "first_token_p99_ms": self.around(late * 3),
            }
            return self.row("serving_methods", key, samples, {"rss_mb": 100.0})

        for count in (1, 2, 4, 8, 16, 32):
            yield many("clients", count, 4 * step * count, clients=count)
        for i, rate in enumerate((8.0, 16.0, 32.0, 64.0)):
            yield many("rate", i + 1, 4 * step * (1 + math.exp(i)), rate=rate, clients=64)
        shapes = [
            ("prompt", "prompt_tokens", serving_methods.PROMPTS),
            ("new", "new_tokens", serving_methods.NEW),
            ("batch", "outputs", serving_methods.BATCH),
        ]
        for sweep, name, values in shapes:
            for value in values:
                key = series.plan(sweep, serving_methods.One, **{name: value}).key
                whole = step * (value if sweep == "new" else 25)
                samples = {
                    "whole_ms": self.around(whole),
                    "prefill_ms": self.around(step * value / 8),
                    "token_ms": self.around(step),
                    "tok_s": self.around(1000 / step * value**0.5),
                }
                yield self.row("serving_methods", key, samples, {"rss_mb": 100.0})


def statistics_fit(whole: list[float]) -> bool:
    return whole[0] < 1000


def model_of(size: str) -> Model:
    if size == DEMO:
        return Model(DEMO, DEMO_FOLDER, read_architecture(DEMO_FOLDER))
    return Model(f"random-{size}", None, PUBLISHED[size])


def keep(folder: Path, rows: dict[str, list[Row]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in own))
