"""Part of update.apply for the page: edits, undo, takes, stopping, and counting its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from client.window import events as e
from client.window.state import AppState
from client.window.textfile import MAX_FILE_BYTES
from client.window.update import branches, files, generation, notices
from client.window.update.generation import COUNT_S, COUNTED_BYTES
from client.window.writing import STOP_S
from protocol import messages as m
from protocol.connection import Event as Reply

COUNT_AFTER_S = 0.4
"""Tokens are counted when the page has not changed for this long."""
BRANCHES = 4
"""Number of continuations that are written together where several are asked for."""


def apply(state: AppState, message: e.PageAction) -> list[e.Effect]:
    page = state.page
    match message:
        case e.Edit():
            return _edit(state, message)
        case e.Select(anchor, cursor):
            _select(state, cursor, anchor)
        case e.ReplaceAll(edits):
            if not page.generating:
                _replace_all(state, edits)
        case e.TakeToken(start, index, token):
            return generation.take_token(state, start, index, token)
        case e.Restore(number):
            branches.restore(state, number)
        case _:
            assert_never(message)
    return []


def _select(state: AppState, cursor: int, anchor: int) -> None:
    page = state.page
    if cursor != page.document.cursor:
        page.changed_at = state.now
        page.uncount()
    page.document.select(cursor, anchor)


def _replace_all(state: AppState, edits: Sequence[tuple[int, int, str]]) -> None:
    """Make edits at once."""
    page = state.page
    if _is_too_much(state, edits):
        return
    page.document.edit_all(edits, "replaced", state.now)
    page.changed_at, page.exact = state.now, False


def _is_too_much(state: AppState, edits: Sequence[tuple[int, int, str]]) -> bool:
    """Return True, and say why, if edits would make a text that could be saved and not be opened again."""
    page, text = state.page, state.page.document.text
    size, lines = len(text.encode()), text.count("\n")
    before = page.file.most_bytes(size, lines)
    for start, end, put in edits:
        size += len(put.encode()) - len(text[start:end].encode())
        lines += put.count("\n") - text.count("\n", start, end)
    too_much = page.file.most_bytes(size, lines) > max(before, MAX_FILE_BYTES)
    if too_much:
        why = f"nothing was put in: the text would be too large, a page holds at most {MAX_FILE_BYTES >> 20} MB"
        notices.warn(state, "page", why)
    return too_much


def _edit(state: AppState, edit: e.Edit) -> list[e.Effect]:
    """Take over an edit. One in what is being written stops the writing; one elsewhere does not."""
    page, document = state.page, state.page.document
    length = len(document.text)
    start, end = max(0, min(edit.start, length)), max(0, min(edit.end, length))
    if edit.kind == "pasted" and _is_too_much(state, [(start, max(start, end), edit.text)]):  # takes long for a letter
        return []
    going = page.generating
    stops = going is not None and start <= max(going.end, going.until) and end >= going.start
    document.sticky |= {"begun": going.start, "written": going.end, "until": going.until} if going else {}
    document.select(document.edit(start, max(start, end), edit.text, edit.kind, state.now))
    if going:
        branches.shifted(going, document.sticky)
    page.changed_at, page.exact = state.now, False
    return do(state, "stop") if stops else []


def do(state: AppState, what: e.PageWord) -> list[e.Effect]:
    page = state.page
    match what:
        case "generate":
            return generation.generate(state, page.document.cursor)
        case "continue":
            mark = page.document.mark_at(page.document.cursor)
            return generation.generate(state, mark.end if mark else page.document.cursor)
        case "regenerate":
            return generation.regenerate(state)
        case "branches":
            if state.setting("strategy") == "greedy" or state.setting("temperature") == 0:
                why = "greedily all branches are the same: choose the strategy `sample` and a temperature above 0"
                notices.warn(state, "page", why)
                return []
            return generation.generate(state, page.document.cursor, count=BRANCHES)
        case "stop":
            page.branch = None
            if page.generating and not page.generating.stopping:
                page.generating.stopping, page.generating.stopped_at = True, state.now
                return [e.Cancel("page")]
            if not page.generating:
                page.batch = []  # Esc, once they are written
        case "undo" | "redo":
            if not page.generating:
                step = page.document.undo if what == "undo" else page.document.redo
                step()
                page.move_cursor, page.changed_at = True, state.now
                page.uncount()
        case "earlier" | "later":
            branches.flip(state, -1 if what == "earlier" else 1)
        case "close branches":
            page.batch = []
        case _:
            assert_never(what)
    return []


def tick(state: AppState, unix: float) -> list[e.Effect]:
    """Count tokens and autosave when the page has not changed for a moment. `unix`: the time that the history shows."""
    page, effects = state.page, list[e.Effect]()
    state.unix = unix
    going = page.generating
    if going and going.stopping and state.now >= going.stopped_at + STOP_S:
        page.leave(going)
        branches.ended(state, "")
    at_rest = not page.generating and state.now > page.changed_at + COUNT_AFTER_S
    can_count = state.link.status == "ready" and state.loaded
    if at_rest and can_count and page.counted != page.document.version and not page.counting:
        page.counting, page.counted = True, page.document.version
        text = page.document.before(page.document.cursor, COUNTED_BYTES)
        effects.append(e.Send("count", m.Tokenize(text=text, **generation.model_of(state)), COUNT_S))
    return [*effects, *files.keep(state)]


def replied(state: AppState, tag: e.PageTag, event: Reply, took_ms: float, of: int = 0) -> list[e.Effect]:
    page = state.page
    if tag == "page" and of and (page.generating is None or page.generating.number != of):
        return generation.late(state, event, took_ms, of)
    match tag:
        case "page":
            return generation.written(state, event, took_ms)
        case "count":
            page.counting = False
            if page.counted != page.document.version:
                page.counted = -1  # the text or the cursor was another one
            elif isinstance(event, m.Tokenized):
                _counted(state, event)
            else:
                page.known = False  # after an error there is just no count
        case "branch ids" | "branch text":
            return generation.go_on_from_token(state, tag, event)
        case _:
            assert_never(tag)
    return []


def lost(state: AppState) -> None:
    """The server is gone, and what it was writing with it."""
    state.page.counting = False
    state.page.uncount()
    state.page.branch = state.page.wanted = None
    state.page.late.clear()
    if state.page.generating:
        branches.ended(state, "")


def _counted(state: AppState, counted: m.Tokenized) -> None:
    """Take over how many tokens there are before the cursor, and where the model's sight begins."""
    page, number = state.page, len(counted.ids)
    before, part = page.document.text[: page.document.cursor], counted.text.encode()
    whole, page.known = len(before.encode()), True
    page.exact = whole <= COUNTED_BYTES
    page.tokens = number if page.exact else round(number * whole / max(1, len(part)))
    seen = max(1, state.models.context - state.setting("max_new_tokens"))
    hides = number > seen and len(counted.offsets) > seen
    seen_text = part[counted.offsets[-seen - 1] :].decode("utf-8", "ignore") if hides else before
    page.sight = max(0, len(before) - len(seen_text))
