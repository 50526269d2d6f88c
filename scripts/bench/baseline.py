"""Baseline: GPT-2 as transformers has it, for every script that compares with it.

One way to load the model and one to call `generate`, so that all comparisons have the same settings: the given number
of threads, and texts of exactly the wanted length, since the end of text is ignored.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel


def load(folder: str | Path, threads: int, precision: str = "fp32", attention: str | None = None) -> Any:
    """Load a model for evaluation.

    `precision` is fp32, bf16, int8 (all matrices), or int8-head: what quantize_dynamic makes of GPT-2 unchanged, which
    is the LM head alone. `attention` is eager or sdpa, by default what transformers chooses (sdpa).
    """
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    more = {"attn_implementation": attention} if attention else {}
    model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype, **more).eval()
    if precision == "int8-head":
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)  # type: ignore[no-untyped-call]  # torch leaves it so
    if precision == "int8":
        from server.engines.torch import quantised

        return quantised(model)[0]
    return model


def generate(model: Any, prompts: list[list[int]], new_tokens: int, **settings: Any) -> float:
    """Continue prompts of one length together, greedily unless `settings` say otherwise; return the seconds it took."""
    ids = torch.tensor(prompts)  # [prompts, tokens]
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            eos_token_id=None,
            **({"do_sample": False} | settings),
        )
    return time.perf_counter() - began
