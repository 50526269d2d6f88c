"""What is different between transformers' answer and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from scripts.checkpoints import judge, ours
from scripts.checkpoints.kind import Kind

CLOSE = {"fp32": 5e-6, "int8": 0.15, "int4": 0.4}
"""Largest difference of a log-probability by precision: |ours - theirs| / max(1, |theirs|).

Those of 8 and 4 bits bound what rounding does to such small models: they find a product that is wrong or left out, and
attention that is not scaled, not an activation in place of a similar one. That is compared at full precision.
"""


EXACT: tuple[Literal["ids", "plain", "spans"], ...] = ("ids", "plain", "spans")


@dataclass
class Compared:
    """What was found of one kind on one engine and precision."""

    differences: list[str] = field(default_factory=list)
    largest: float = 0.0
    """Largest relative difference of a log-probability."""


def compare(kind: Kind, theirs: judge.Answer, mine: ours.Answer, precision: str) -> Compared:
    """Compare all that is comparable: text of a quantised model may be another."""
    found = Compared()
    for text, expected, got in zip(kind.texts, theirs["texts"], mine["texts"], strict=True):
        found.differences += [f"{text!r}: {what}" for what in _text(text, expected, got)]
        if expected["ids"] == got["ids"]:
            found.largest = max(found.largest, _distance(expected["logprobs"], got["logprobs"]))
    if found.largest > CLOSE[precision]:
        found.differences.append(f"log-probabilities differ by {found.largest:.2g}")
    if precision == "fp32":
        for prompt, going, went in zip(kind.prompts, theirs["prompts"], mine["prompts"], strict=True):
            found.differences += [f"after {prompt!r}: {what}" for what in _continuation(going, went)]
    if kind.notice and not any(re.search(kind.notice, notice) for notice in mine["notices"]):
        found.differences.append(f"no notice says {kind.notice!r}: {mine['notices']}")
    for (text, says), said in zip(kind.refused_texts, mine["refusals"], strict=True):
        if not re.search(says, said):
            found.differences.append(f"{text!r} should be refused with {says!r}, got {said!r}")
    return found


def alike(one: judge.Answer, other: judge.Answer) -> bool:
    """Return whether two of transformers' answers are the same, up to rounding."""
    pairs = list(zip(one["texts"], other["texts"], strict=True))
    return (
        one["prompts"] == other["prompts"]
        and all(a[key] == b[key] for a, b in pairs for key in EXACT)
        and all(_distance(a["logprobs"], b["logprobs"]) <= CLOSE["fp32"] for a, b in pairs)
    )


def _distance(theirs: list[float | None], mine: list[float | None]) -> float:
    """Where one of them did not score it (it is longer than the context), there is nothing to compare."""
    pairs = ((a, b) for a, b in zip(theirs, mine, strict=False) if a is not None and b is not None)
    return max((abs(a - b) / max(1.0, abs(a)) for a, b in pairs), default=0.0)


def _text(text: str, theirs: judge.Told, mine: ours.Told) -> Iterator[str]:
    if theirs["plain"] != mine["plain"]:
        yield f"tokens without special ones {mine['plain']}, transformers has {theirs['plain']}"
    if theirs["ids"] != mine["ids"]:
        yield f"tokens {mine['ids']}, transformers has {theirs['ids']}"
    else:
        yield from _offsets(text, theirs, mine)


def _offsets(text: str, theirs: judge.Told, mine: ours.Told) -> Iterator[str]:
    """Compare what each token covers.

    Ours leave no gaps: what no token of transformers covers, as a space or an accent that is taken off, is part of the
    next one here, at the end of the last. Of a character that several tokens share, transformers gives each the whole,
    we its part.
    """
    told, offsets = mine["text"].encode(), mine["offsets"]
    spans = theirs["spans"]
    if len(offsets) != len(spans) + 1 or sorted(offsets) != offsets or offsets[-1] > len(told):
        yield f"offsets {offsets} of {len(told)} bytes for {len(spans)} tokens"
        return
    if mine["text"] != text:
        yield f"the text told is {mine['text']!r}"
    covered = {place for first, last in spans for place in range(first, last)}
    gaps = "".join(character for place, character in enumerate(text) if place not in covered)
    for i, (first, last) in enumerate(spans):
        shared = any(a < last and first < b for a, b in (*spans[max(0, i - 1) : i], *spans[i + 1 : i + 2]))
        own = told[offsets[i] : offsets[i + 1]].decode("utf-8", "replace")
        surplus = _surplus(own.strip(), text[first:last].strip(), ends=i == len(spans) - 1)
        if not shared and (surplus is None or surplus.strip() not in gaps):
            yield f"token {i} covers {own!r}, transformers says {text[first:last]!r}"


def _surplus(own: str, expected: str, *, ends: bool) -> str | None:
    """Return what a token covers more than expected; None where it does not cover that. `ends`: it is the last."""
    if own.endswith(expected):
        return own.removesuffix(expected)
    return own.removeprefix(expected) if ends and own.startswith(expected) else None


def _continuation(theirs: judge.Continued, mine: ours.Continued) -> Iterator[str]:
    if theirs["ids"] != mine["ids"]:
        yield f"goes on with {mine['ids']}, transformers with {theirs['ids']}"
    elif theirs["text"] != mine["text"]:
        yield f"text {mine['text']!r}, transformers has {theirs['text']!r}"
    elif theirs["ended"] != mine["ended"]:
        yield f"ended: {mine['ended']}, transformers: {theirs['ended']}"
    if mine["streamed"] != mine["text"]:
        yield f"the stream is {mine['streamed']!r}, the result {mine['text']!r}"
