"""All kinds of folders, in the order in which they are tried."""

from __future__ import annotations

from scripts.checkpoints import byte_pairs, configurations, low_rank, vocabularies, weights, wild
from scripts.checkpoints.kind import Kind

KINDS: tuple[Kind, ...] = (
    *weights.kinds(),
    *configurations.kinds(),
    *byte_pairs.kinds(),
    *vocabularies.kinds(),
    *wild.kinds(),
    *low_rank.kinds(),
)
