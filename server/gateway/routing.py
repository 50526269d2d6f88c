"""Choice of the replica for a generation: the one that knows most of its prompt, unless it is much busier than another.

A worker's prefix cache is known to the worker alone. The gateway remembers what it sent to each: the prompts and the
texts that followed, in blocks. A block's digest covers all text up to its end, as in vLLM's prefix caching
(https://docs.vllm.ai/en/latest/design/prefix_caching.html). The gateway may be wrong: what a worker has forgotten is
computed again there.
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
"""Most blocks of one text: more than a context holds."""
MAX_KNOWN = 8192
"""Most blocks of one replica, about 130,000 tokens; the least recently used leave first."""
SLACK = 4
"""Number of open requests beyond twice as many that make a replica much busier than another."""


class Known:
    """Blocks that a replica is likely to have in its prefix cache."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def learn(self, blocks: Sequence[bytes]) -> None:
        for block in reversed(blocks):  # a text's end leaves before its beginning, without which it is useless
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > MAX_KNOWN:
            self._blocks.popitem(last=False)

    def shared(self, blocks: Sequence[bytes]) -> int:
        """Return how many blocks from the beginning it knows."""
        return next((i for i, block in enumerate(blocks) if block not in self._blocks), len(blocks))


class Candidate(Protocol):
    """Part of a worker that matters here."""

    known: Known
    used: float


R = TypeVar("R", bound=Candidate)


def choose(replicas: Sequence[R], request: m.OfModel, open_requests: Callable[[R], int], owner: int = 0) -> R:
    """Return the replica that knows most of the prompt, or the least busy one.

    The least busy one is chosen where none knows any of the prompt, and where the one that knows most is much busier.
    """
    if len(replicas) == 1:
        return replicas[0]
    load = {id(replica): open_requests(replica) for replica in replicas}
    idlest = min(replicas, key=lambda r: (load[id(r)], r.used))
    blocks = blocks_of(request, owner=owner)
    shared = {id(replica): replica.known.shared(blocks) for replica in replicas}
    best = max(replicas, key=lambda r: (shared[id(r)], -load[id(r)]))
    if not shared[id(best)] or load[id(best)] > 2 * load[id(idlest)] + SLACK:
        best = idlest
    best.known.learn(blocks)
    return best


def blocks_of(request: m.AnyRequest, result: m.Generated | None = None, owner: int = 0) -> list[bytes]:
    """Return the blocks of a generation's prompt and of the text that followed: a prompt that continues it begins so.

    Each owner has blocks of its own, as it has entries of its own in the workers' caches. Other requests have none.
    """
    if not isinstance(request, m.Generate):
        return []
    if request.prompt_ids is not None:
        tokens = array("I", [*request.prompt_ids[: MAX_BLOCKS * BLOCK_TOKENS], *(result.ids if result else ())])
        return list(_chain(tokens.tobytes(), b"ids %d" % owner, BLOCK_TOKENS * tokens.itemsize))
    text = (request.prompt or "")[: MAX_BLOCKS * BLOCK_BYTES] + (result.text if result else "")
    return list(_chain(text.encode(errors="surrogatepass"), b"text %d" % owner, BLOCK_BYTES))


def _chain(data: bytes, digest: bytes, size: int) -> Iterator[bytes]:
    """Yield the digests of whole blocks only: how an unfinished one goes on is unknown."""
    for start in range(0, min(len(data) - size + 1, MAX_BLOCKS * size), size):
        digest = blake2b(digest + data[start : start + size], digest_size=8).digest()
        yield digest
