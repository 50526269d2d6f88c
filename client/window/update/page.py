"""Part of update.apply for the page: edits, generations that stream into the text, takes, the token view, counting."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, assert_never

import msgspec

from client.window import events as e
from client.window.document import Mark, Take, clean
from client.window.state import KEPT_LOGPROBS, MAX_POINTS, AppState, Branch, Entry, Generating, Shown
from client.window.update import notices
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import Gpt2dError
from protocol.ledger import Ledger

GENERATE_S = 600.0
COUNT_S = 10.0
STOP_S = 0.25
"""The last words of a generation that is stopped are waited for this long; a worker that stands still has none."""
COUNT_AFTER_S = 0.4
"""Tokens are counted when the page has not changed for this long."""
COUNTED_BYTES = 12_000
"""Most bytes before the cursor whose tokens are counted; of more text the number is estimated. A context of 1,024
tokens is about 5,000 bytes.
"""
AUTOSAVE_S = 2.0
SENT_BYTES = 100_000
"""Most bytes before the cursor that are sent: far more than any context holds, and far less than a request may have."""
ALTERNATIVES = 10
MAX_TOKEN_BYTES = 1024
"""Most bytes of a token's text; a server that sends more is disbelieved."""


def apply(state: AppState, message: e.PageAction) -> list[e.Effect]:
    page = state.page
    match message:
        case e.Typed(text, cursor):
            if not page.generating:
                page.document.typed(text, cursor, state.now)
                page.changed_at = state.now
        case e.Moved(cursor):
            if cursor != page.document.cursor:
                page.document.cursor, page.changed_at = cursor, state.now
                page.counted = -1
        case e.TakeToken(index, token):
            return _branch(state, index, token)
        case e.Restore(number):
            _restore(state, number)
        case _:
            assert_never(message)
    return []


def do(state: AppState, what: e.PageWord) -> list[e.Effect]:
    page = state.page
    match what:
        case "generate":
            return generate(state, page.document.cursor)
        case "continue":
            mark = page.document.mark_at(page.document.cursor)
            return generate(state, mark.end if mark else page.document.cursor)
        case "regenerate":
            return _regenerate(state)
        case "stop":
            page.branch = None
            if page.generating and not page.generating.stopping:
                page.generating.stopping, page.generating.stopped_at = True, state.now
                return [e.Cancel("page")]
        case "undo" | "redo":
            if not page.generating:
                page.document.undo() if what == "undo" else page.document.redo()
                page.move_cursor, page.changed_at = True, state.now
        case "earlier" | "later":
            _flip(state, -1 if what == "earlier" else 1)
        case _:
            assert_never(what)
    return []


def tick(state: AppState, unix: float) -> list[e.Effect]:
    """Count tokens and autosave when the page has not changed for a moment. `unix`: the time that the history shows."""
    page, effects = state.page, list[e.Effect]()
    state.unix = unix
    going = page.generating
    if going and going.stopping and state.now >= going.stopped_at + STOP_S:
        _ended(state, "")
    at_rest = not page.generating and state.now > page.changed_at + COUNT_AFTER_S
    can_count = state.link.status == "ready" and state.loaded
    if at_rest and can_count and page.counted != page.document.version and not page.counting:
        page.counting, page.counted = True, page.document.version
        text = _tail(state, page.document.cursor, COUNTED_BYTES)
        effects.append(e.Send("count", m.Tokenize(text=text, **_which(state)), COUNT_S))
    if page.dirty and page.autosaved != page.document.version and state.now > page.changed_at + AUTOSAVE_S:
        page.autosaved = page.document.version
        effects.append(e.Autosave(page.document.data))
    return effects


def generate(
    state: AppState, start: int, *, instead_of: int | None = None, ids: list[int] | None = None, prefix: str = ""
) -> list[e.Effect]:
    """Continue the page after `start`; with `ids` from these tokens, whose end the page shows as `prefix`."""
    page = state.page
    if page.generating:
        return []
    prompt = _tail(state, start, SENT_BYTES)
    page.last, page.counted = start, -1
    state.ledgers.last = None
    if state.shown and state.shown.start == start:
        state.shown = None
    notices.drop(state, "page")
    asked = state.setting("max_new_tokens")
    page.generating = Generating(start, start, prompt, asked, state.now, instead_of=instead_of, way=state.models.way)
    place = page.document.place(start)
    place.takes.append(Take(""))
    # No take is forgotten before this one has some text: `instead_of` is an index of them.
    place.shown = len(place.takes) - 1
    if prefix:
        _insert(state, prefix)
    request = {**state.settings, **_which(state), "stream": True, "truncate": "left"}
    if request.get("strategy") not in m.SEARCHES:
        request.setdefault("logprobs", ALTERNATIVES)
    request["n"] = 1
    request |= {"prompt_ids": ids} if ids is not None else {"prompt": prompt}
    try:
        return [e.Send("page", m.Generate(**request), GENERATE_S)]
    except (TypeError, ValueError) as error:
        _ended(state, str(error))
        return []


def replied(state: AppState, tag: e.PageTag, event: Reply, took_ms: float) -> list[e.Effect]:
    page = state.page
    match tag:
        case "page":
            return _written(state, event, took_ms)
        case "count":
            page.counting = False
            if isinstance(event, m.Tokenized):  # after an error there is just no count
                _counted(state, event)
        case "branch ids" | "branch text":
            return _branched(state, tag, event)
        case _:
            assert_never(tag)
    return []


def lost(state: AppState) -> None:
    """The server is gone, and what it was writing with it."""
    state.page.counting, state.page.counted = False, -1
    state.page.branch = state.page.wanted = None
    if state.page.generating:
        _ended(state, "")


def _which(state: AppState) -> dict[str, Any]:
    """Return what is chosen, in full: nothing else is to answer."""
    return dict(zip(("model", "engine", "precision"), (name or None for name in state.models.way), strict=True))


def _tail(state: AppState, end: int, most: int) -> str:
    """Return the text before a byte, or the last part of it."""
    return state.page.document.data[max(0, end - most) : end].decode("utf-8", "ignore")


def _insert(state: AppState, text: str) -> None:
    """Put new text where the generation is."""
    page, going = state.page, state.page.generating
    if going is None:
        return
    going.end = page.document.replace(going.end, going.end, text, f"generated {going.began}")
    page.document.mark(going.start, going.end)
    page.move_cursor = True
    place = page.document.known_place(going.start)
    if place and place.takes:
        place.takes[place.shown].text += clean(text)


def _written(state: AppState, event: Reply, took_ms: float) -> list[e.Effect]:
    page, going = state.page, state.page.generating
    if going is None:
        return []
    if isinstance(event, m.Progress):
        going.place = event.done
    elif isinstance(event, m.Tokens):
        going.place = 0
        going.tokens += len(event.ids)
        going.first_at, going.latest_at = going.first_at or state.now, state.now
        if going.end - going.start + len(event.text) > going.asked * MAX_TOKEN_BYTES:
            _ended(state, "the server sent far more text than was asked for; it was cancelled")
            return [e.Cancel("page")]
        if event.text:
            _insert(state, event.text)
    elif isinstance(event, m.Generated):
        state.ledgers.last, state.ledgers.whole_ms = event, took_ms
        entry = note(state, going.prompt, event)
        place = page.document.known_place(going.start)
        if place and place.takes:
            place.takes[place.shown].entry = entry.number
        state.shown = Shown(going.start, going.prompt, event)
        _ended(state, "")
        return [e.Send("stats", m.GetStats(), COUNT_S)]
    elif isinstance(event, Gpt2dError):
        _ended(state, "" if going.stopping else str(event))
    return []


def _ended(state: AppState, error: str) -> None:
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


def note(state: AppState, prompt: str, result: m.Generated) -> Entry:
    """Add a result to the plots and the history, which is the one place that keeps results."""
    ledgers, ledger = state.ledgers, result.ledger
    ledgers.count += 1
    if plausible(ledger):
        name = f"{result.model}/{result.engine}/{result.precision}"[:80]
        points = ledgers.series.setdefault(name, deque(maxlen=MAX_POINTS))
        points.append((float(ledgers.count), ledger.tokens_per_second, ledger.first_token_ms))
    entries = state.history.entries
    number = entries[-1].number + 1 if entries else 1
    entry = Entry(number, state.unix, prompt, result, state.link.endpoint or state.link.server.strip())
    entries.append(entry)
    if len(entries) > KEPT_LOGPROBS:
        old = entries[-1 - KEPT_LOGPROBS]
        entries[-1 - KEPT_LOGPROBS] = replace(old, result=msgspec.structs.replace(old.result, logprobs=[]))
    return entry


def plausible(ledger: Ledger) -> bool:
    """False for a ledger that no plot can show."""
    return all(0 <= value < 1e9 for value in (ledger.tokens_per_second, ledger.first_token_ms))


def _counted(state: AppState, counted: m.Tokenized) -> None:
    """Take over how many tokens there are before the cursor, and where the model's sight begins."""
    page, number = state.page, len(counted.ids)
    whole, part = page.document.cursor, len(counted.text.encode())
    page.exact = whole <= COUNTED_BYTES
    page.tokens = number if page.exact else round(number * whole / max(1, part))
    seen = max(1, state.models.context - state.setting("max_new_tokens"))
    hides = number > seen and len(counted.offsets) > seen
    page.sight = whole - part + counted.offsets[-seen - 1] if hides else 0


def _regenerate(state: AppState) -> list[e.Effect]:
    """Write the continuation at the cursor, or the last one, once more."""
    page = state.page
    mark = page.document.mark_at(page.document.cursor)
    start = mark.start if mark else page.last
    if page.generating or start is None or start > len(page.document.data):
        return []
    mark = mark or page.document.mark_at(start)
    return generate(state, start, instead_of=_clear(state, mark, start))


def _clear(state: AppState, mark: Mark | None, start: int) -> int | None:
    """Remove the continuation that begins at `start`, for another in its place; return which take it was."""
    if not mark or mark.start != start:
        return None
    document = state.page.document
    document.replace(mark.start, mark.end, "", f"generated {state.now}")
    state.page.move_cursor = True
    return document.place(start).shown


def _flip(state: AppState, step: int) -> None:
    """Show another take of the place at the cursor."""
    page = state.page
    mark = page.document.mark_at(page.document.cursor)
    place = page.document.known_place(mark.start) if mark else None
    if page.generating or mark is None or place is None or len(place.takes) < 2:
        return
    place.shown = (place.shown + step) % len(place.takes)
    take = place.takes[place.shown]
    end = page.document.replace(mark.start, mark.end, take.text, "flipped")
    page.document.mark(mark.start, end)
    page.move_cursor, page.changed_at = True, state.now
    page.last = mark.start
    entry = state.history.entry(take.entry)
    state.shown = Shown(mark.start, _tail(state, mark.start, SENT_BYTES), entry.result) if entry else None


def _branch(state: AppState, index: int, token: int) -> list[e.Effect]:
    """Another token was chosen: ask for the prompt's tokens and the new beginning's text, to go on from there."""
    shown, page = state.shown, state.page
    if shown is None or page.generating or state.link.status != "ready" or not 0 <= index < len(shown.result.ids):
        return []
    if _tail(state, shown.start, SENT_BYTES) != shown.prompt:
        notices.warn(state, "page", "the text before these tokens has changed since; generate there again")
        return []
    ids = [*shown.result.ids[:index], token]
    page.branch = Branch(shown.start, shown.prompt, ids)
    notices.drop(state, "page")
    which = _which(state)
    return [
        e.Send("branch ids", m.Tokenize(text=shown.prompt[-COUNTED_BYTES:], **which), COUNT_S),
        e.Send("branch text", m.Tokenize(ids=ids, **which), COUNT_S),
    ]


def _branched(state: AppState, tag: e.PageTag, event: Reply) -> list[e.Effect]:
    page, branch = state.page, state.page.branch
    if branch is None:
        return []
    if not isinstance(event, m.Tokenized):
        page.branch = None
        notices.warn(state, "page", str(event))
        return []
    if tag == "branch ids":
        branch.prompt_ids = event.ids
    else:
        branch.text = event.text.rstrip("\ufffd")
    if branch.prompt_ids is None or branch.text is None:
        return []
    page.branch = None
    before = _clear(state, page.document.mark_at(branch.start), branch.start)
    return generate(state, branch.start, instead_of=before, ids=branch.prompt_ids + branch.ids, prefix=branch.text)


def _restore(state: AppState, number: int) -> None:
    """Put a generation of the history back: its prompt, if it is not there already, and its text."""
    entry, page = state.history.entry(number), state.page
    if entry is None or page.generating:
        return
    document, prompt = page.document, clean(entry.prompt)
    document.replace(0, len(document.data), prompt + clean(entry.result.text), "restored")
    start = len(prompt.encode())
    document.mark(start, len(document.data))
    place = document.place(start)
    place.takes.append(Take(clean(entry.result.text), number))
    place.show_last()
    state.shown = Shown(start, entry.prompt, entry.result)
    page.move_cursor, page.changed_at = True, state.now
    page.last = start
