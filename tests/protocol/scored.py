"""A made-up score of texts, whose values can be seen in them."""

from __future__ import annotations

from protocol import messages as m


def scored(request: m.Score, *, size: int = 1) -> list[m.ScoredText | m.Scored]:
    """Score each text, a token for each `size` bytes with as many nats as the first one says, the last text first."""
    texts: list[m.ScoredText | m.Scored] = []
    for index, passage in reversed([*enumerate(request.texts or [])]):
        data = (passage.text or "").encode()
        offsets = [*range(0, len(data), size), len(data)]
        data = data[::size]
        values: list[float | None] = [-float(byte) for byte in data]
        if not passage.context and request.bos == "never":
            values[0] = None
        words = m.Words(
            texts=[passage.text or ""], starts=[0], ends=[len(passage.text or "")], tokens=[0], logprobs=[-1]
        )
        texts.append(
            m.ScoredText(
                id=None, seq=0, index=index, ids=list(data), offsets=offsets, logprobs=values,
                ranks=list(data), entropies=values, greedy=list(data), sum=-float(sum(data)), mean=-1, perplexity=1,
                bits_per_byte=1, words=words if request.unit == "word" else None,
            )
        )  # fmt: skip
    return [*texts, m.Scored(id=None, ids=[], logprobs=[], perplexity=1, bits_per_byte=1, elapsed_ms=1)]
