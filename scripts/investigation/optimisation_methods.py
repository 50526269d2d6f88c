#!/usr/bin/env python3
"""Measure which optimisation makes GPT-2 decoding fast on a CPU: each beside transformers' `generate`, in turns.

    python -m scripts.investigation.optimisation_methods             all sizes; it says first how long that takes
    python -m scripts.investigation.optimisation_methods --quick     the embedded model, a minute or two
    python -m scripts.investigation.optimisation_methods --sizes gpt2 --only native-int8 onnx-int8

A row is a method: the time of 25 and of 100 new tokens after a prompt of 32 random ones (greedy, end of text ignored),
of which `prefill` is the time to the first, tokens/s of the decode steps, how many times as fast the 25 tokens are as
the first row's in the same turns, resident memory, the time to load (libraries included; what is built of a model once
is built before), and for `demo` the change of perplexity and how often the likeliest token is that of full precision.
Other sizes have random weights where the real ones are not on the disk: their speed and memory are right, their text is
noise.

Slow methods write 8 tokens in most runs: ~ marks a time that follows from prefill and decode rate.

  transformers-fp32        `generate`, eager attention: what the application did that came before this one
  transformers-sdpa        torch's scaled_dot_product_attention, which is what became of BetterTransformer: optimum put
                           this operator into a model; transformers has it itself (GPT-2 since pull request 31172 of
                           2024) and takes it where nothing is asked for, optimum 2 has no BetterTransformer any more,
                           and transformers took its method out (41367)
  transformers-bf16        weights and arithmetic in bfloat16 (with SDPA, as all below)
  transformers-int8-head   torch.ao.quantization.quantize_dynamic unchanged: it knows Linear, GPT-2's blocks are Conv1D,
                           so that only the LM head changes
  transformers-int8        Conv1D made Linear first: all matrices
  torch-fp32               the same model without `generate`: forward passes one after the other
  torch-fp32-compile       torch.compile, a static cache
  optimum-*                exported to ONNX, ONNX Runtime; int8 is its dynamic quantisation
  onnx-*                   this daemon's hand-made ONNX graph
  native-*                 this daemon's own kernels
  *-coarse-head            the LM head in two passes: 4 bits of all of it, 8 of what can be the likeliest
  *-fp16-cache             keys and values at 16 bits instead of bytes
  *-busy                   beside another program that keeps one core busy
  score-*                  log-probabilities of a text of 512 tokens; tokens/s are those of the text
  two-texts-*-1x2, -2x1    two texts: one process with all threads writes one after the other, or two with half of them
                           one each; tokens/s is that of both together, prefill included
  page-anew, page-reused   a page of 512 tokens goes on: 32 more, then 25 new ones, through a daemon; computed again, or
                           what the prefix cache has of it used again
  lookup-*-off, -on        prompt lookup (the setting `speculate`) through a daemon, on a text that repeats itself and
                           on one that does not; the seeds are fixed, and the texts have to be the same to the last
                           token

Threads: 1, 2 and 4 of what the machine has, and once, for one size, twice as many. Methods that are compared live at
the same time, so that not all fit into the memory together: large sizes are measured in groups, and each group has the
first row again. Results are kept (--json) and not measured again. The last line is one JSON object.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.investigation.method_child import Loaded, Order, Write
from scripts.investigation.methods import LENGTHS, Method, above, investigate
from scripts.investigation.trials import Beside, Lookup, Page, Scored, ScoredByDaemon, TwoTexts
from server.catalogue.architecture import Architecture
from server.catalogue.catalogue import DEMO
from server.catalogue.engines import ENGINES
from server.engines.base import Engine

COMPILE_S, COMPILE_LAYER_S = 45.0, 2.5
"""Time that torch.compile may take, and what it takes for a layer, about. It is ended after LIMIT_S in any case."""
LIMIT_S = 240.0
MOST = 500e6
"""Parameters of a model that has all rows."""


# Loaders, which run in the child


def transformers(order: Order) -> Loaded:
    """Load the baseline, which writes with `generate`; `option` is its attention."""
    from scripts.bench import baseline

    model = baseline.load(order.folder, order.threads, order.precision, order.option)
    return Loaded(by_generate(model), lambda: as_engine(model, order), score=partial(log_probabilities, model))


def log_probabilities(model: Any, text: list[int]) -> Any:
    """Return those of a text's tokens from the second on."""
    import torch

    ids = torch.tensor([text])  # [1, tokens]
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1]  # [tokens - 1, vocabulary]
        return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])


def by_generate(model: Any) -> Write:
    """Return what writes with `generate`, and looks at the time after each token."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    from scripts.bench import baseline

    class Clock(StoppingCriteria):  # type: ignore[misc]  # it is Any
        """Criterion that never stops, and looks at the time after each token."""

        def __init__(self) -> None:
            self.began = time.perf_counter()
            self.stamps: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: ARG002 - as it is called
            self.stamps.append(time.perf_counter() - self.began)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def write(prompt: list[int], count: int) -> list[float]:
        clock = Clock()
        baseline.generate(model, [prompt], count, stopping_criteria=StoppingCriteriaList([clock]))
        return clock.stamps

    return write


def as_engine(model: Any, order: Order) -> Engine:
    """Return the daemon's torch engine, with this model in it."""
    from server.checkpoint.tensors import Weights
    from server.engines.torch import TorchEngine

    folder, arch = Path(order.folder), order.architecture
    engine = TorchEngine(arch, Weights(folder, arch), "fp32", order.threads)
    engine._model = model
    engine._prefill = engine._decode = model.transformer.forward
    return engine


# Methods


def too_long(arch: Architecture) -> str:
    """Return why a model is not compiled; empty: it is."""
    expected = COMPILE_LAYER_S * arch.layers
    if expected <= COMPILE_S:
        return ""
    return f"torch.compile would take some {expected:.0f} s for {arch.layers} layers; {COMPILE_S:.0f} s are allowed"


def methods_of(size: str, threads: int, sizes: Sequence[str]) -> list[Method]:
    """Return the rows of a size; the first is what the others are compared with."""
    loader = "optimisation_methods.transformers"
    baseline = Method("transformers-fp32", loader, option="eager")
    native8 = Method("native-int8", precision="int8", option="native", tok_s=350, weight_bytes=1.2, torch=False)
    native4 = Method("native-int4", precision="int4", option="native", tok_s=500, weight_bytes=0.9, torch=False)
    ours = (native8, native4)
    found = [
        baseline,
        Method(
            "optimum-int8",
            precision="int8",
            option="as-it-is",
            loader="onnx_methods.exported",
            tok_s=54,
            weight_bytes=2,
        ),
        Method("optimum-fp32", option="as-it-is", loader="onnx_methods.exported", tok_s=28, weight_bytes=7.5),
        Method("transformers-sdpa", loader, option="sdpa"),
        Method("transformers-bf16", loader, "bf16", "sdpa", tok_s=35, weight_bytes=2),
        Method("transformers-int8-head", loader, "int8-head", "sdpa", tok_s=30),
        Method("transformers-int8", loader, "int8", "sdpa", tok_s=90, weight_bytes=2.5),
        Method("torch-fp32", option="torch", skip=above(MOST), tok_s=25),
        Method("torch-fp32-compile", option="torch+compile", limit_s=LIMIT_S, skip=too_long, tok_s=30, weight_bytes=5),
        Method("onnx-fp32", option="onnx", tok_s=43, weight_bytes=5, torch=False),
        Method("onnx-int8", precision="int8", option="onnx", tok_s=250, weight_bytes=1.6, torch=False),
        Method("onnx-int4", precision="int4", option="onnx", tok_s=300, weight_bytes=1.3, torch=False),
        Method("native-fp32", option="native", tok_s=60, torch=False),
        native8,
        native4,
        *(replace(method, name=f"{method.name}-coarse-head", option="native+head", judged=False) for method in ours),
        *(replace(method, name=f"{method.name}-fp16-cache", option="native+fp16") for method in ours),
        *(
            replace(method, name=f"{method.name}-busy", make=Beside, judged=False, tok_s=method.tok_s / 2)
            for method in (replace(baseline, skip=above(MOST)), native8)
        ),
    ]
    twice = size == ("gpt2" if "gpt2" in sizes else sizes[0])
    for count in sorted({n for n in (1, 2, 4) if n < threads} | ({2 * threads} if twice else set())):
        slower = count / threads if count < threads else 0.7
        found += [
            replace(
                method, name=f"{method.name}-threads-{count}", threads=count, judged=False, tok_s=method.tok_s * slower
            )
            for method in (replace(baseline, skip=above(MOST)), native8)
        ]
    if threads > 1:
        half = threads // 2
        for name, method, run_s in (
            ("transformers", replace(baseline, skip=above(MOST)), 0.85),
            ("native", native8, 0.1),
        ):
            one, two = f"two-texts-{name}-1x{threads}", f"two-texts-{name}-2x{half}"
            made = replace(method, name=one, against=one, make=TwoTexts, run_s=run_s)
            found += [made, replace(made, name=two, threads=half, processes=2, weight_bytes=2 * method.weight_bytes)]
    page = Method(
        "page-anew",
        precision="int8",
        option="computed",
        against="page-anew",
        make=Page,
        run_s=0.4,
        weight_bytes=1.2,
        torch=False,
    )
    found += [page, replace(page, name="page-reused", option="reused", run_s=0.5)]
    scored = replace(baseline, name="score-transformers", against="score-transformers", make=Scored, run_s=0.7)
    found += [scored, replace(page, name="score-native-int8", against=scored.name, make=ScoredByDaemon, run_s=0.2)]
    if size == DEMO:
        for text in ("repeating", "plain"):
            off = replace(
                page,
                name=f"lookup-{text}-off",
                option=f"{text} off",
                against=f"lookup-{text}-off",
                make=Lookup,
                run_s=2.0,
            )
            found += [off, replace(off, name=f"lookup-{text}-on", option=f"{text} on")]
    return [method for method in found if "native" in ENGINES or "native" not in method.name]


def compare_texts(found: list[dict[str, Any]]) -> None:
    """Compare texts that must not depend on what a daemon reused or guessed; set `same_text`."""
    texts = {(f["model"], f["method"]): f["texts"] for f in found if "texts" in f}
    for f in found:
        if "texts" in f and (f["model"], f.get("against")) in texts:
            f["same_text"] = f["texts"] == texts[f["model"], f["against"]]
            print(
                f"{f['model']} {f['method']}: {f['reused_tokens']} of {f['prompt_tokens']} prompt tokens reused, "
                f"{f['accepted_tokens']} of {f['guessed_tokens']} guesses right, "
                f"the text {'is the same' if f['same_text'] else 'IS DIFFERENT'}"
            )


def main() -> None:
    found = investigate(__doc__, "optimisation_methods", methods_of, LENGTHS[1:], compare_texts)
    if not all(f.get("same_text", True) for f in found):
        sys.exit("a text is different from the one that it must be")


if __name__ == "__main__":
    main()
