"""Rows of the investigation: their sizes and kinds, and how fast the memory lets a method be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from scripts.bench.machine import Step, allowed, amount
from scripts.investigation.harness import Row
from scripts.investigation.methods import shape_of
from scripts.investigation.texts import PROMPT_TOKENS
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO
from server.catalogue.engines import TRAITS

ENGINES = ("transformers", "torch", "optimum", "exported", "onnx", "ours", "native")
"""Words with which the names of plain methods begin; `exported` and `ours` are ONNX graphs."""
PRECISIONS = ("fp32", "bf16", "int8", "int4")
# Decoders that draw at random, and those that search among several texts.
DRAWN = ("sampling", "top-k", "top-p", "min-p", "typical", "mirostat")
SEARCHED = ("beam", "beam sampling", "diverse beam", "contrastive")


def sizes_of(rows: Iterable[Row]) -> list[str]:
    """Return the sizes of the rows, smallest first; unpublished ones come last."""
    known = [DEMO, *sorted(PUBLISHED, key=lambda size: PUBLISHED[size].parameters)]
    there = dict.fromkeys(str(row.key["model"]) for row in rows)
    return sorted(there, key=lambda size: known.index(size) if size in known else len(known))


def weights_of(size: str, rows: Iterable[Row]) -> str:
    trained = any(row.key["model"] == size and row.key["trained"] for row in rows)
    return f"{size} ({'trained' if trained else 'random'} weights)"


def fine(rows: Iterable[Row], *names: str) -> list[Row]:
    """Return the rows that were measured and have these samples."""
    return [row for row in rows if not row.problem and all(row.samples.get(name) for name in names)]


def precision_of(method: str) -> str:
    found = re.search("|".join(PRECISIONS), method)
    return found[0] if found else "fp32"


def is_plain(method: str) -> bool:
    """Return whether a method writes one text, with the threads of all others."""
    return method.split("-", maxsplit=1)[0] in ENGINES and "-threads-" not in method


def bytes_a_token(size: str, precision: str) -> float:
    """Return the bytes of weights that a decode step reads at least.

    That is each matrix once, with a scale of two bytes for 32 weights; at int4 the LM head has 8 bits.
    """
    arch = shape_of(size)
    blocks = arch.layers * (4 * arch.width**2 + 2 * arch.width * arch.inner)
    head = arch.vocabulary * arch.width
    each = {"fp32": (4, 4), "bf16": (2, 2), "int8": (1 + 2 / 32, 1 + 2 / 32), "int4": (0.5 + 2 / 32, 1 + 2 / 32)}[
        precision
    ]
    return each[0] * blocks + each[1] * head


def limits(size: str, read_gb_s: float) -> dict[str, float]:
    """Return, for each precision, the tokens/s at which the weights are read as fast as the memory allows.

    There are none for `demo`, which the processor's caches hold.
    """
    if size not in PUBLISHED or not read_gb_s:
        return {}
    return {precision: 1e9 * read_gb_s / bytes_a_token(size, precision) for precision in PRECISIONS}


def beside_limits(row: Row) -> dict[str, float]:
    """Return the GB/s of weights that a method's steps read, GMAC/s that its prefill multiplies, and its speed over L.

    Nothing of `demo`, which caches hold, nor of methods that are not one text by one process, nor where the machine was
    not measured in the same turns.
    """
    size, method = str(row.key["model"]), str(row.key["method"])
    if size not in PUBLISHED or not is_plain(method) or not row.samples.get("tok_s") or "read_gb_s" not in row.facts:
        return {}
    arch, precision = PUBLISHED[size], precision_of(method)
    found = {"gb_s": row.median("tok_s") * bytes_a_token(size, precision) / 1e9}
    if row.samples.get("prefill_ms"):
        work = amount(arch, "int8", Step(1, 0, PROMPT_TOKENS)).macs
        found["gmac_s"] = work / row.median("prefill_ms") / 1e6
    if precision in TRAITS["native"].precisions:
        found["of_limit"] = row.median("tok_s") / allowed(arch, precision, Step(1, 2 * PROMPT_TOKENS), row.facts)
    return found


def of_one_machine(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of the processor of the newest, and those of the one before it."""
    ordered = sorted(rows, key=lambda row: row.date)
    there = list(dict.fromkeys(str(row.machine["cpu"]) for row in reversed(ordered)))
    first, second = ([row for row in rows if row.machine["cpu"] == cpu] for cpu in (*there, "", "")[:2])
    return first, second


def newest(rows: Iterable[Row]) -> list[Row]:
    """Return the last line of each trial, in the order in which the trials were first measured."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept[json.dumps(row.key, sort_keys=True)] = row
    return list(kept.values())


def longest_of(rows: Sequence[Row], size: str) -> dict[str, Row]:
    """Return, for each decoder, its row at the largest length at which its text was judged."""
    judged = [row for row in fine(rows, "perplexity", "repetition", "inference_ms") if row.key["model"] == size]
    length = max((int(row.key["new_tokens"]) for row in judged), default=0)
    return {str(row.key["decoder"]): row for row in judged if row.key["new_tokens"] == length}
