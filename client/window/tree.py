"""The continuations of a page as a tree. Nothing here knows a window, a server or a clock.

A node is a take: one continuation of its place. A place is where the page was continued: after which take, and what
the user wrote between that one and this. The page itself says, by its marks, which takes it shows; `settle` makes the
tree agree with it. So undo and redo, which restore marks, can disagree with no take. What a user changes inside a take
makes a take of its own; what is changed between takes is changed for all that follow, and these follow the page.

Rejected: a place for each text that stands before (a letter changed before it, and its takes were out of reach), and a
tree of all edits (a node for each letter).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from client.window.document import Document, Sheet
from client.window.marks import Mark, Passage, Span, Written

MAX_NODES, MAX_CHARACTERS = 2000, 16 << 20
"""Most takes, and most characters of what they and their places keep; the oldest that lead nowhere are forgotten."""
MAX_KEPT = 500
MAX_NAME = 80
NOTHING = Passage("")
Source: TypeAlias = Literal["generated", "token", "edited", "restored"]
"""Where a take came from: generated, as a whole or after a chosen token; edited; put back from the history."""


@dataclass
class Node:
    """A take."""

    id: int
    place: int
    passage: Passage = NOTHING
    source: Source = "generated"
    entry: int | None = None
    """Its number in the history; None until it is complete."""
    name: str = ""
    kept: bool = False
    """It is never forgotten, and cannot be pruned."""
    then: int = 0
    """The place that followed it when the page last showed it; 0: none."""
    after: Passage = NOTHING
    """What stood after it when no place followed."""

    @property
    def text(self) -> str:
        return self.passage.text


@dataclass
class Place:
    """Where a page was continued."""

    id: int
    parent: int
    """The take before it; 0: none."""
    lead: Passage
    """What the user wrote since."""
    nodes: list[int] = field(default_factory=list)
    shown: int = 0
    """The take that the page showed last."""


@dataclass(frozen=True)
class Pruned:
    """What was cut off."""

    nodes: list[Node]
    places: list[Place]
    at: int
    """Where the first of the nodes was in its place."""


class Tree:
    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.places: dict[int, Place] = {}
        self.bare = NOTHING
        """The page as it was last without any take."""
        self.version = 0
        """Changes with every change."""
        self._under: dict[int, list[int]] = {}
        """Take -> the places after it."""
        self._last = 0
        self._rows: tuple[int, list[tuple[int, Node]]] = -1, []

    # What there is

    def under(self, node: int) -> list[Place]:
        """Return the places after a take; of 0, those after none."""
        return [self.places[place] for place in self._under.get(node, [])]

    def siblings(self, node: int) -> list[Node]:
        """Return the takes of a take's place, itself among them."""
        return [self.nodes[other] for other in self.places[self.nodes[node].place].nodes]

    def path(self, node: int) -> list[Node]:
        """Return the takes from the page's beginning to this one."""
        found = list[Node]()
        while node:
            found.append(self.nodes[node])
            node = self.places[found[-1].place].parent
        return found[::-1]

    def rows(self) -> list[tuple[int, Node]]:
        """Return the takes with how deep they are, each followed by those that follow it. Of those that are alone in
        their place, one after the other, all are equally deep.
        """
        if self._rows[0] != self.version:
            found, waiting = list[tuple[int, Node]](), [((0, 0), True)]
            while waiting:
                (depth, parent), alone = waiting.pop()
                if parent:
                    found.append((depth, self.nodes[parent]))
                children = [node for place in self.under(parent) for node in place.nodes]
                one = len(children) == 1
                waiting += [((depth + (not (one and alone)), child), one) for child in reversed(children)]
            self._rows = self.version, found
        return self._rows[1]

    def standing(self, document: Document, position: int) -> tuple[int, int]:
        """Return which take of its place stands at a position of the page, from 1, and how many there are; (0, 0) where
        there is none. One that was edited since is counted.
        """
        span = document.mark_at(position)
        node = self.nodes.get(span.node) if span else None
        if span is None or node is None:
            return 0, 0
        siblings = self.siblings(node.id)
        at, body = siblings.index(node) + 1, document.text[span.start : span.end]
        if body == node.text or node.source == "edited":
            return at, len(siblings)
        same = next((i for i, other in enumerate(siblings, 1) if other.text == body), 0)
        return (same, len(siblings)) if same else (at + 1, len(siblings) + 1)

    def page(self, node: int) -> Sheet:
        """Return the page as it was last with this take, the cursor at its end."""
        if not node:
            return Sheet(self.bare.text, Written(tuple(_marks(self.bare, 0))), len(self.bare.text))
        chain = self.path(node)
        end, seen = 0, set[int]()
        while (place := self._then(chain[-1])) and place.id not in seen:
            seen.add(place.id)
            chain.append(self.nodes[place.shown if place.shown in place.nodes else place.nodes[-1]])
        pieces = list[str]()
        marks, spans = list[Mark](), list[Span]()
        at = 0
        for each in chain:
            for passage in (self.places[each.place].lead, each.passage):
                marks += _marks(passage, at)
                pieces.append(passage.text)
                at += len(passage.text)
            spans.append(Span(at - len(each.text), at, each.id))
            end = at if each.id == node else end
        marks += _marks(chain[-1].after, at)
        return Sheet("".join([*pieces, chain[-1].after.text]), Written(tuple(marks), tuple(spans)), end)

    def _then(self, node: Node) -> Place | None:
        place = self.places.get(node.then)
        return place if place and place.parent == node.id else None

    # What is written

    def settle(self, document: Document, new: tuple[int, int] = (0, 0)) -> None:
        """Make the tree say what the page says. `new`: characters of a take that is about to be added."""
        parent, at = 0, 0
        previous: Node | None = None
        for span in document.spans:
            node = self.nodes.get(span.node)
            if node is None:
                continue  # the model's, and no take: it leads to the next one
            if document.text[span.start : span.end] != node.text:
                node = self._edited(node, document.passage(span.start, span.end))
            place = self.places[node.place]
            if (place.parent, place.lead.text) != (parent, document.text[at : span.start]):
                node = self._moved(node, parent, document.passage(at, span.start))
            if node.id != span.node:
                document.written = document.written.labelled(span.node, node.id)
            self.places[node.place].shown = node.id
            if previous:
                previous.then = node.place
            parent, at = node.id, span.end
            previous = node
        rest = document.passage(max(at, new[1]), len(document.text))
        if at < new[0]:
            rest = _joined(document.passage(at, new[0]), rest)
        if previous:
            previous.then, previous.after = 0, self._shared(previous, rest)
        elif rest.text:
            self.bare = rest
        self._forget({span.node for span in document.spans})
        self.version += 1

    def add(self, document: Document, start: int, end: int, source: Source = "generated") -> Node:
        """Take characters of the page as a take of the place that they stand at, a new one unless they are put back
        from the history and there already. The page is settled before.
        """
        before = [span for span in document.spans if span.end <= start and span.node in self.nodes]
        parent, at = (before[-1].node, before[-1].end) if before else (0, 0)
        place = self._place(parent, document.passage(at, start))
        passage = Passage(document.text[start:end], ((0, end - start),))
        there = [self.nodes[other] for other in place.nodes if self.nodes[other].text == passage.text]
        node = there[0] if there and source == "restored" else self._new(place, passage, source)
        place.shown = node.id
        document.mark(start, end, node.id)
        return node

    def beside(self, node: int) -> Node:
        """Return a new, empty take of the same place."""
        return self._new(self.places[self.nodes[node].place], NOTHING, "generated")

    def grow(self, node: int, text: str) -> None:
        """Put new text at a take's end."""
        taken = self.nodes[node]
        taken.passage = Passage(taken.text + text, ((0, len(taken.text) + len(text)),))
        self.version += 1

    # What the user does with it

    def name(self, node: int, name: str) -> None:
        self.nodes[node].name = name.strip()[:MAX_NAME]
        self.version += 1

    def keep(self, node: int) -> bool:
        """Keep a take for ever, or no longer; return False if there are too many."""
        taken = self.nodes[node]
        if not taken.kept and sum(each.kept for each in self.nodes.values()) >= MAX_KEPT:
            return False
        taken.kept = not taken.kept
        self.version += 1
        return True

    def can_prune(self, node: int, document: Document) -> bool:
        """Return False for a take that the page shows, or that is kept or leads to one that is."""
        shown = {span.node for span in document.spans}
        return node in self.nodes and not any(each.kept or each.id in shown for each in self._below(node))

    def prune(self, node: int) -> Pruned:
        """Cut a take off, with all that follows it."""
        nodes = self._below(node)
        places = [place for each in nodes for place in self.under(each.id)]
        at = self.places[nodes[0].place].nodes.index(node)
        pruned = Pruned(nodes, places, at)
        for place in places:
            self._remove_place(place)
        self._drop(nodes[0])
        for each in nodes[1:]:
            del self.nodes[each.id]
        self.version += 1
        return pruned

    def graft(self, pruned: Pruned) -> bool:
        """Put back what was cut off; return False if the place that it was at is no longer there."""
        first = pruned.nodes[0]
        if first.place not in self.places:
            return False
        self.nodes |= {node.id: node for node in pruned.nodes}
        self.places[first.place].nodes.insert(pruned.at, first.id)
        for place in pruned.places:
            self._put_place(place)
        self.version += 1
        return True

    def remove(self, node: int) -> None:
        """Take back a take that nothing came of."""
        if node in self.nodes:
            self._drop(self.nodes[node])
            self.version += 1

    def restore(self, nodes: Iterable[Node], places: Iterable[Place], bare: Passage) -> None:
        """Take over what was kept of another session."""
        self.nodes = {node.id: node for node in nodes}
        for place in places:
            self._put_place(place)
        self.bare = bare
        self._last = max([*self.nodes, *self.places], default=0)
        self.version += 1

    def add_all(self, nodes: Iterable[Node], places: Iterable[Place]) -> None:
        """Add the takes of another tree, under other numbers."""
        by = self._last

        def new(number: int) -> int:
            return number + by if number else 0

        for node in nodes:
            self.nodes[new(node.id)] = replace(node, id=new(node.id), place=new(node.place), then=new(node.then))
        for place in places:
            shown, moved = new(place.shown), [new(node) for node in place.nodes]
            self._put_place(replace(place, id=new(place.id), parent=new(place.parent), nodes=moved, shown=shown))
        self._last = max([*self.nodes, *self.places], default=0)
        self.version += 1

    # Inside

    def _id(self) -> int:
        self._last += 1
        return self._last

    def _new(self, place: Place, passage: Passage, source: Source) -> Node:
        node = Node(self._id(), place.id, passage, source)
        self.nodes[node.id] = node
        place.nodes.append(node.id)
        self.version += 1
        return node

    def _place(self, parent: int, lead: Passage) -> Place:
        """Return the place after this take and these words, made where it is new."""
        found = next((place for place in self.under(parent) if place.lead.text == lead.text), None)
        if found is None:
            found = Place(self._id(), parent, lead)
            self._put_place(found)
        return found

    def _edited(self, node: Node, body: Passage) -> Node:
        """Return the take that a text is which was another until the user changed it."""
        same = next((other for other in self.siblings(node.id) if other.text == body.text), None)
        if same:
            return same
        if node.source == "edited":
            node.passage = body
            return node
        place = self.places[node.place]
        edited = self._new(place, body, "edited")
        place.nodes.remove(edited.id)
        place.nodes.insert(place.nodes.index(node.id) + 1, edited.id)
        return edited

    def _moved(self, node: Node, parent: int, lead: Passage) -> Node:
        """Move a take's place to where the page has it; return the take."""
        place = self.places[node.place]
        other = next((p for p in self.under(parent) if p.lead.text == lead.text), None)
        if any(each.place == place.id for each in self.path(parent)):  # the page has them the other way round
            copied = self._new(other or self._place(parent, lead), node.passage, node.source)
            copied.entry = node.entry
            return copied
        self._remove_place(place)
        if other is None:
            place.parent, place.lead = parent, lead
            self._put_place(place)
            return node
        for each in place.nodes:
            self.nodes[each].place = other.id
        other.nodes += place.nodes
        return node

    def _shared(self, node: Node, rest: Passage) -> Passage:
        """Return a passage, as the same object where a take of the same place has it."""
        return next((other.after for other in self.siblings(node.id) if other.after == rest), rest)

    def _below(self, node: int) -> list[Node]:
        """Return a take and all that follows it."""
        found = [self.nodes[node]]
        for each in found:  # which grows meanwhile
            found += [self.nodes[child] for place in self.under(each.id) for child in place.nodes]
        return found

    def _put_place(self, place: Place) -> None:
        self.places[place.id] = place
        self._under.setdefault(place.parent, []).append(place.id)

    def _remove_place(self, place: Place) -> None:
        del self.places[place.id]
        under = self._under[place.parent]
        under.remove(place.id)
        if not under:
            del self._under[place.parent]

    def _drop(self, node: Node) -> None:
        del self.nodes[node.id]
        place = self.places[node.place]
        place.nodes.remove(node.id)
        if not place.nodes:
            self._remove_place(place)

    def _forget(self, shown: set[int]) -> None:
        """Forget the oldest takes that lead nowhere, as long as there is too much."""
        passages = {id(p): len(p.text) for node in self.nodes.values() for p in (node.passage, node.after)}
        size = sum(passages.values()) + sum(len(place.lead.text) for place in self.places.values())
        for node in sorted(self.nodes.values(), key=lambda node: node.id):
            if len(self.nodes) <= MAX_NODES and size <= MAX_CHARACTERS:
                return
            if node.kept or node.id in shown or self._under.get(node.id):
                continue
            size -= len(node.text) + len(node.after.text)
            self._drop(node)


def _joined(one: Passage, other: Passage) -> Passage:
    by = len(one.text)
    return Passage(one.text + other.text, one.ink + tuple((start + by, end + by) for start, end in other.ink))


def _marks(passage: Passage, at: int) -> list[Mark]:
    return [Mark(at + start, at + end) for start, end in passage.ink]
