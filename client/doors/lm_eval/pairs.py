"""Contexts and continuations as lm-eval's `hf` makes them: which tokens are judged, after which.

The rules are those of lm_eval.api.model.TemplateLM and lm_eval.models.huggingface.HFLM in lm-eval 0.4.13.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from protocol.errors import BadRequest


@dataclass(frozen=True)
class Pair:
    """Tokens to judge, and those before them."""

    context: list[int]
    continuation: list[int]


def texts(context: str, continuation: str) -> tuple[str, str]:
    """Return the texts whose tokens decide which tokens a continuation has: that before it, and the whole."""
    return context.rstrip(), context + continuation


def of_texts(context: str, continuation: str, encoded: Mapping[str, list[int]], prefix: int, before: int) -> Pair:
    """Return the tokens of a continuation, as they are in the whole text, and those of its context.

    `encoded` has the tokens of both texts, with the `before` ones that the tokenizer puts before each; `prefix` is the
    token that stands before a continuation without a context.
    """
    head, whole = texts(context, continuation)
    if head:
        return Pair(encoded[head], encoded[whole][len(encoded[head]) :])
    ids = encoded[whole][before:]
    return Pair(ids[:1], ids[1:]) if ids[:1] == [prefix] else Pair([prefix], ids)


def windows(ids: list[int], prefix: int, longest: int) -> Iterator[Pair]:
    """Yield the parts of a text of any length, each of whose tokens is judged once.

    The first is judged after `prefix`, every further one with at least one token before it, the last with as many as
    there is room for.
    """
    if ids:
        yield Pair([prefix], ids[:longest])
    for begin in range(longest, len(ids), longest):
        end = min(begin + longest, len(ids))
        yield Pair(ids[max(0, end - longest - 1) : begin], ids[begin:end])


def cut(pair: Pair, longest: int) -> Pair:
    """Cut the context's beginning so that a model that reads `longest` tokens judges the continuation.

    Raises: BadRequest for a continuation that is empty or too long by itself.
    """
    count = len(pair.continuation)
    if not 0 < count <= longest:
        raise BadRequest(f"a continuation must have 1 to {longest} tokens, got {count}")
    return Pair(pair.context[-(longest + 1 - count) :], pair.continuation)
