"""How fast a result was written, all of its continuations together: each has a ledger of its own."""

from __future__ import annotations

from protocol import messages as m


def tokens_per_second(result: m.Generated) -> float:
    """Return the rate from the first token to the last of all; of one continuation it is that of its ledger."""
    if not result.others:
        return result.ledger.tokens_per_second
    ledgers = [result.ledger, *(other.ledger for other in result.others)]
    took = max(x.first_token_ms + x.decode_ms for x in ledgers) - min(x.first_token_ms for x in ledgers)
    steps = sum(max(0, x.new_tokens - 1) for x in ledgers)
    return steps / took * 1000 if took > 0 else 0.0
