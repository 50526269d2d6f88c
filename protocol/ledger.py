"""The timing ledger of one generation: one definition for the daemon, the clients and the benchmarks."""

from __future__ import annotations

import msgspec


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one generation, measured by the server with a monotonic clock, in milliseconds.

    The first new token comes out of the prefill, so `decode_ms` covers `new_tokens - 1` steps.
    """

    queue_ms: float
    """From the worker's receipt of the request to the start of its prefill, without `tokenise_ms`."""
    tokenise_ms: float
    prefill_ms: float
    """From the start of the prefill to the first token."""
    decode_ms: float
    """From the first token to the last."""
    first_token_ms: float
    """queue + tokenise + prefill."""
    inference_ms: float
    """prefill + decode: the figure that a client shows as the inference time."""
    tokens_per_second: float
    """Decode rate, (new_tokens - 1) / decode; 0 if there was no decode step."""
    prompt_tokens: int
    new_tokens: int
    reused_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""
    mean_batch: float
    """Mean number of sequences in the decode steps that this one took part in; 0 if there was none."""
    guessed_tokens: int = 0
    """Tokens that were guessed ahead, and verified several in a step."""
    accepted_tokens: int = 0
    """Guessed tokens that were right."""


def ledger(
    *,
    queue_ms: float = 0.0,
    tokenise_ms: float = 0.0,
    prefill_ms: float = 0.0,
    decode_ms: float = 0.0,
    prompt_tokens: int = 0,
    new_tokens: int = 0,
    reused_tokens: int = 0,
    mean_batch: float = 0.0,
    guessed_tokens: int = 0,
    accepted_tokens: int = 0,
) -> Ledger:
    """Make a Ledger from what was measured; everything derived is derived here."""
    steps = max(0, new_tokens - 1)
    return Ledger(
        queue_ms=queue_ms,
        tokenise_ms=tokenise_ms,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        first_token_ms=queue_ms + tokenise_ms + prefill_ms,
        inference_ms=prefill_ms + decode_ms,
        tokens_per_second=steps / decode_ms * 1000 if decode_ms > 0 else 0.0,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        reused_tokens=reused_tokens,
        mean_batch=mean_batch,
        guessed_tokens=guessed_tokens,
        accepted_tokens=accepted_tokens,
    )
