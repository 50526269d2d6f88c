"""Which replica a generation goes to: to the one that knows most of its prompt, unless that is much busier than the least busy one.

A worker's prefix cache is known to the worker alone. What the gateway remembers is what it sent to each: its prompts and the
texts that followed, in blocks whose digests stand for all up to there, as vLLM's prefix caching names its blocks
(https://docs.vllm.ai/en/latest/design/prefix_caching.html). So it may err: what a worker has forgotten is computed again there.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from protocol import messages as m

BLOCK_BYTES, BLOCK_TOKENS = 64, 16
MAX_BLOCKS = 128
"""Of one text; they are longer than a context."""
MAX_KNOWN = 8192
"""Of one replica, about 130,000 tokens; the least recently used leave first."""
SLACK = 4
"""A replica is much busier than another if it has more than twice as many open requests, and so many more."""


class Known:
    """What a replica is likely to have in its prefix cache."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def learn(self, blocks: Sequence[bytes]) -> None:
        for block in reversed(blocks):  # a text's end leaves before its beginning, without which it is worth nothing
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > MAX_KNOWN:
            self._blocks.popitem(last=False)

    def shared(self, blocks: Sequence[bytes]) -> int:
        """How many blocks from the beginning it knows."""
        return next((i for i, block in enumerate(blocks) if block not in self._blocks), len(blocks))


class Candidate(Protocol):
    """What of a worker matters here."""

    known: Known
    used: float


R = TypeVar("R", bound=Candidate)


def choose(replicas: Sequence[R], request: m.OfModel, open_requests: Callable[[R], int]) -> R:
    """The replica that knows most of the prompt; the least busy one where none knows any, or that one is much busier."""
    if len(replicas) == 1:
        return replicas[0]
    load = {id(replica): open_requests(replica) for replica in replicas}
    idlest = min(replicas, key=lambda r: (load[id(r)], r.used))
    blocks = blocks_of(request)
    shared = {id(replica): replica.known.shared(blocks) for replica in replicas}
    best = max(replicas, key=lambda r: (shared[id(r)], -load[id(r)]))
    if not shared[id(best)] or load[id(best)] > 2 * load[id(idlest)] + SLACK:
        best = idlest
    best.known.learn(blocks)
    return best


def blocks_of(request: m.AnyRequest, result: m.Generated | None = None) -> list[bytes]:
    """The blocks of a generation's prompt, with the text that followed, as the next page of it begins. Other requests leave nothing behind."""
    if not isinstance(request, m.Generate):
        return []
    if request.prompt_ids is not None:
        tokens = array("I", [*request.prompt_ids[: MAX_BLOCKS * BLOCK_TOKENS], *(result.ids if result else ())])
        return list(_chain(tokens.tobytes(), b"ids", BLOCK_TOKENS * tokens.itemsize))
    text = (request.prompt or "")[: MAX_BLOCKS * BLOCK_BYTES] + (result.text if result else "")
    return list(_chain(text.encode(errors="surrogatepass"), b"text", BLOCK_BYTES))


def _chain(data: bytes, digest: bytes, size: int) -> Iterator[bytes]:
    """Whole blocks only: of an unfinished one nobody knows how it goes on."""
    for start in range(0, min(len(data) - size + 1, MAX_BLOCKS * size), size):
        digest = blake2b(digest + data[start : start + size], digest_size=8).digest()
        yield digest
