"""Where the windows begin and end in which a text is scored, and how much work they are.

A text longer than the context is cut into overlapping windows. Each scores only the tokens that the window before did
not, so that all but those of the first window have at least context - stride tokens before them
(https://huggingface.co/docs/transformers/perplexity). Unlike there, windows that are a whole context apart overlap by
one token: the first of each would have none before it, and no score. The last token of a window is not computed, so a
text with something before it that fits the context but for that one is one window, as in lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from protocol import messages as m
from protocol.errors import BadRequest


class Windows:
    """Cuts of one text: where each begins and ends, and from which token on it scores."""

    def __init__(self, lead: int, tokens: int, stride: int, context: int, *, after: bool) -> None:
        """`after`: whether what follows the last token is wanted, which is then computed too: in a window of its own
        where the only one has no room for it, so that no token's score depends on it.
        """
        self.first = max(lead, 1)  # nothing comes before the first token
        self.end = lead + tokens
        self._after = int(after)
        self._stride, self._context = stride, context
        most = context + (1 if lead else 0)
        self.begin = max(0, lead + min(tokens, stride) - most)
        self._one = self.end - self.begin <= most
        self._apart = after and self._one and self.end - self.begin > context
        """Whether what follows the last token has a window of its own."""

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield begin, end of what is computed, and the first token that is scored."""
        begin, scored = self.begin, self.first
        if self._apart:
            yield begin, self.end - 1, scored
            yield begin + self._stride, self.end, self.end
            return
        while True:
            end = self.end if self._one else min(self.end, begin + self._context)
            last = end == self.end
            yield begin, end - 1 + (self._after if last else 0), scored
            if last:
                return
            scored, begin = end, begin + self._stride

    @property
    def count(self) -> int:
        if self._one:
            return 2 if self._apart else 1
        return 1 + math.ceil((self.end - self.begin - self._context) / self._stride)

    @property
    def computed(self) -> int:
        """Number of tokens that all of them compute, at most."""
        return self.count * min(self._context, self.end - self.begin)


def stride_of(request: m.Score, context: int) -> int:
    """Return how far apart two windows are."""
    return min(request.stride or min(m.STRIDE, context // 2), context - 1)


def check_cost(windows: Windows, stride: int, context: int) -> None:
    """Check that a text is not too much work. Raises: BadRequest, which says what would do."""
    if windows.computed <= m.MAX_COMPUTED:
        return
    tokens = windows.end - windows.begin
    enough = math.ceil((tokens + stride - context) / (m.MAX_COMPUTED // context - 1))
    raise BadRequest(
        f"{tokens} tokens at a stride of {stride} are {windows.count} windows of {context} tokens, "
        f"{windows.computed:,} tokens to compute, and the limit is {m.MAX_COMPUTED:,}; a stride of {enough} keeps to "
        "it, and so does the text in parts"
    )
