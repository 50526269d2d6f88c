"""The pieces in which a text streams in: those that have come together are taken as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from msgspec import structs

from client.window.events import Event, Replied, Tag
from protocol.messages import Tokens


def joined(events: Iterable[Event]) -> list[Event]:
    """Return events with the pieces of a text, where nothing but pieces came between them, as one: each by itself would
    be an edit of the page.
    """
    groups = list[tuple[Event, list[Tokens]]]()
    begun = dict[tuple[Tag, int, int], list[Tokens]]()
    for event in events:
        match event:
            case Replied(tag=tag, event=Tokens() as piece, of=of):
                key = tag, of, piece.index
                if key not in begun:
                    begun[key] = []
                    groups.append((event, begun[key]))
                begun[key].append(piece)
            case _:
                begun.clear()
                groups.append((event, []))
    return [_one(event, pieces) for event, pieces in groups]


def _one(event: Event, pieces: Sequence[Tokens]) -> Event:
    """Return an event, with all of the pieces where it brings the first of several."""
    if len(pieces) < 2 or not isinstance(event, Replied):
        return event
    whole = structs.replace(
        pieces[0],
        text="".join(piece.text for piece in pieces),
        ids=[*chain.from_iterable(piece.ids for piece in pieces)],
        logprobs=[*chain.from_iterable(piece.logprobs for piece in pieces)],
    )
    return replace(event, event=whole)
