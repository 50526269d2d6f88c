"""Part of update.apply for the continuations of the page: how they are written into it, kept, and shown again."""

from __future__ import annotations

from client.window.document import Mark, Take, clean
from client.window.state import AppState, Entry
from client.window.update import notices

SENT_BYTES = 100_000
"""Most bytes before the cursor that are sent: far more than any context holds, and far less than a request may have."""


def begin(state: AppState, start: int) -> None:
    """A continuation is to be written after the first `start` characters."""
    place = state.page.document.place(start)
    place.takes.append(Take(""))
    # No take is forgotten before this one has some text: `instead_of` is an index of them.
    place.shown = len(place.takes) - 1


def insert(state: AppState, text: str) -> None:
    """Put new text where the generation is."""
    page, going = state.page, state.page.generating
    if going is None:
        return
    document = page.document
    follows = going.start <= document.cursor <= going.end
    going.end = document.edit(going.end, going.end, text, f"generated {going.began}")
    document.mark(going.start, going.end)
    if follows:
        document.select(going.end)
    page.move_cursor = True
    place = document.known_place(going.start)
    if place and place.takes:
        place.takes[place.shown].text += clean(text)


def finished(state: AppState, entry: Entry) -> None:
    """The generation is complete, and is this entry of the history."""
    page, going = state.page, state.page.generating
    place = page.document.known_place(going.start) if going else None
    if going and place and place.takes:
        place.takes[place.shown].entry = entry.number


def ended(state: AppState, error: str) -> None:
    """Nothing more is written; a continuation that nothing came of is none, and what it was to replace comes back."""
    page, going = state.page, state.page.generating
    if going:
        place = page.document.known_place(going.start)
        if place and place.takes and not place.takes[place.shown].text:
            del place.takes[place.shown]  # nothing was written
            place.shown = max(0, len(place.takes) - 1)
            if going.instead_of is not None:
                page.document.undo()
                place.shown, page.move_cursor = going.instead_of, True
        elif place:
            place.show_last()
    page.generating = None
    if error:
        notices.warn(state, "page", error)
    page.changed_at, page.counted = state.now, -1


def clear(state: AppState, mark: Mark | None, start: int) -> int | None:
    """Remove the continuation that begins at `start`, for another in its place; return which take it was."""
    if not mark or mark.start != start:
        return None
    document = state.page.document
    document.edit(mark.start, mark.end, "", f"generated {state.now}")
    document.select(mark.start)
    state.page.move_cursor = True
    return document.place(start).shown


def flip(state: AppState, step: int) -> None:
    """Show another take of the place at the cursor."""
    page = state.page
    mark = page.document.mark_at(page.document.cursor)
    place = page.document.known_place(mark.start) if mark else None
    if page.generating or mark is None or place is None or len(place.takes) < 2:
        return
    place.shown = (place.shown + step) % len(place.takes)
    take = place.takes[place.shown]
    end = page.document.edit(mark.start, mark.end, take.text, "flipped")
    page.document.mark(mark.start, end)
    page.document.select(end)
    page.move_cursor, page.changed_at = True, state.now
    page.last = mark.start


def restore(state: AppState, number: int) -> None:
    """Put a generation of the history back: its prompt, if it is not there already, and its text."""
    entry, page = state.history.entry(number), state.page
    if entry is None or page.generating:
        return
    document, prompt = page.document, clean(entry.prompt)
    text, start = clean(entry.result.text), len(prompt)
    document.edit(0, len(document.text), prompt + text, "restored")
    document.mark(start, len(document.text))
    document.select(len(document.text))
    place = document.place(start)
    place.takes.append(Take(text, number))
    place.show_last()
    page.move_cursor, page.changed_at = True, state.now
    page.last = start
