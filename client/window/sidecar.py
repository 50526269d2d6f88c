"""The branches of a page in a file beside it, NAME.gpt2d.json: the text file itself stays plain.

It names the text that it belongs to by a digest. Whoever writes such a file may have written anything into it, so that
all of it is checked before a tree is made of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from client.window.document import Document, clean
from client.window.marks import Mark, Passage, Span, Written
from client.window.tree import MAX_NODES, Node, Place, Tree

ENDING = ".gpt2d.json"
VERSION = 1
MAX_BYTES = 96 << 20


@dataclass(frozen=True)
class Branches:
    """A tree and what the page shows of it, as a file has them."""

    digest: str
    """Of the text that they belong to."""
    nodes: list[Node] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    bare: Passage = Passage("")  # noqa: RUF009 - it cannot be changed
    marks: list[Mark] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    version: int = VERSION

    def belong_to(self, text: str) -> bool:
        ends = [mark.end for mark in self.marks[-1:]] + [end for _, end, _ in self.spans[-1:]]
        return self.digest == digest(text) and max(ends, default=0) <= len(text)

    def written(self) -> Written:
        return Written(tuple(self.marks), tuple(Span(*span) for span in self.spans))


def beside(path: Path) -> Path:
    return path.with_name(path.name + ENDING)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def snapshot(document: Document, tree: Tree) -> Branches | None:
    """Return the branches as they are now; None where there are none. The tree is settled before."""
    if not tree.nodes:
        return None
    return Branches(
        digest(document.text),
        [replace(node, entry=None) for node in tree.nodes.values()],  # the history has other numbers then
        [replace(place, nodes=list(place.nodes)) for place in tree.places.values()],
        tree.bare,
        list(document.marks),
        [(span.start, span.end, span.node) for span in document.spans],
    )


def packed(branches: Branches) -> bytes:
    return msgspec.json.encode(branches)


def unpacked(data: bytes) -> Branches:
    """Return the branches that a file has. Raises: ValueError."""
    try:
        branches = msgspec.json.decode(data, type=Branches)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise ValueError(f"it is not a file of branches ({e})") from None
    check(branches)
    return branches


def check(branches: Branches) -> None:
    """Check that a tree can be made of them. Raises: ValueError."""
    nodes, places = {node.id: node for node in branches.nodes}, {place.id: place for place in branches.places}
    texts = [branches.bare, *(place.lead for place in branches.places)]
    texts += [text for node in branches.nodes for text in (node.passage, node.after)]
    children = dict[int, list[Place]]()
    for place in branches.places:
        children.setdefault(place.parent, []).append(place)
    reached, waiting = set[int](), [0]
    while waiting:
        for place in children.pop(waiting.pop(), []):
            reached.add(place.id)
            waiting += place.nodes
    held = [node for place in branches.places for node in place.nodes]
    sound = (
        branches.version == VERSION
        and len(branches.nodes) <= 2 * MAX_NODES
        and len(nodes) == len(branches.nodes)
        and len(places) == len(branches.places)
        and min([*nodes, *places], default=1) > 0
        and sorted(held) == sorted(nodes)
        and all(place.nodes and all(nodes[node].place == place.id for node in place.nodes) for place in places.values())
        and reached == set(places)
        and all(clean(passage.text) == passage.text and _in_order(passage.ink, len(passage.text)) for passage in texts)
        and _in_order([(mark.start, mark.end) for mark in branches.marks])
        and _in_order([(start, end) for start, end, _ in branches.spans])
    )
    if not sound:
        raise ValueError("its branches do not fit together")


def _in_order(pieces: list[tuple[int, int]] | tuple[tuple[int, int], ...], most: int = 1 << 40) -> bool:
    """Return True for pieces of a text that neither overlap nor are empty."""
    at = 0
    for start, end in pieces:
        if not at <= start < end <= most:
            return False
        at = end
    return True
