"""Part of update.apply for the page: edits, generations that stream into the text, takes, the token view, counting."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, assert_never

from client import replicas
from client.window import events as e
from client.window.alternatives import Written
from client.window.results import KEPT_LOGPROBS, MAX_LOGPROBS, MAX_POINTS, Entry
from client.window.speed import tokens_per_second
from client.window.state import AppState
from client.window.textfile import MAX_FILE_BYTES
from client.window.update import branches, files, notices
from client.window.update.branches import SENT_BYTES
from client.window.writing import STOP_S, Branch, Generating
from protocol import messages as m
from protocol.client import is_last
from protocol.connection import Event as Reply
from protocol.errors import ConnectionFailed, Gpt2dError, NotGpt2d

GENERATE_S = 600.0
COUNT_S = 10.0
BEAT_S = 0.5
"""Seconds after which a server knows what a worker does."""
COUNT_AFTER_S = 0.4
"""Tokens are counted when the page has not changed for this long."""
COUNTED_BYTES = 12_000
"""Most bytes before the cursor whose tokens are counted; of more text the number is estimated. A context of 1,024
tokens is about 5,000 bytes.
"""
BRANCHES = 4
"""Number of continuations that are written together where several are asked for."""
ALTERNATIVES = 10
CHARACTERS = 12
"""Characters that are tokenised for each token of the context, where a prompt is needed as tokens."""
MAX_TOKEN_BYTES = 1024
"""Most bytes of a token's text; a server that sends more is disbelieved."""


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
            return _branch(state, start, index, token)
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
    """Make edits at once, unless their text could be saved and not be opened again."""
    page, text = state.page, state.page.document.text
    size, lines = len(text.encode()), text.count("\n")
    for start, end, put in edits:
        size += len(put.encode()) - len(text[start:end].encode())
        lines += put.count("\n") - text.count("\n", start, end)
    if page.file.most_bytes(size, lines) > MAX_FILE_BYTES:
        why = f"nothing was replaced: the text would be too large, a page holds at most {MAX_FILE_BYTES >> 20} MB"
        notices.warn(state, "page", why)
        return
    page.document.edit_all(edits, "replaced", state.now)
    page.changed_at, page.exact = state.now, False


def _edit(state: AppState, edit: e.Edit) -> list[e.Effect]:
    """Take over an edit. One in what is being written stops the writing; one elsewhere does not."""
    page, document = state.page, state.page.document
    length = len(document.text)
    start, end = max(0, min(edit.start, length)), max(0, min(edit.end, length))
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
            return generate(state, page.document.cursor)
        case "continue":
            mark = page.document.mark_at(page.document.cursor)
            return generate(state, mark.end if mark else page.document.cursor)
        case "regenerate":
            return _regenerate(state)
        case "branches":
            if state.setting("strategy") == "greedy" or state.setting("temperature") == 0:
                why = "greedily all branches are the same: choose the strategy `sample` and a temperature above 0"
                notices.warn(state, "page", why)
                return []
            return generate(state, page.document.cursor, count=BRANCHES)
        case "stop":
            page.branch = None
            if page.generating and not page.generating.stopping:
                page.generating.stopping, page.generating.stopped_at = True, state.now
                return [e.Cancel("page")]
            if not page.generating:
                page.batch = []  # Esc, once they are written
        case "undo" | "redo":
            if not page.generating:
                page.document.undo() if what == "undo" else page.document.redo()
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
        effects.append(e.Send("count", m.Tokenize(text=text, **_which(state)), COUNT_S))
    return [*effects, *files.keep(state)]


def generate(
    state: AppState, start: int, *, until: int = 0, begins: Branch | None = None, count: int = 1
) -> list[e.Effect]:
    """Continue the page after `start`, instead of what is there up to `until`; what `begins` with other tokens goes on
    from these; in `count` ways at once.
    """
    page = state.page
    if page.generating:
        return []
    prompt, spaces = spared(state, page.document.before(start, SENT_BYTES), state.models.model)
    page.last, page.batch = start, []
    page.uncount()
    if not start <= page.document.cursor <= max(start, until):
        page.document.select(max(start, until))
    page.document.select(page.document.cursor)  # the caret goes with what is written
    page.move_cursor = True
    state.ledgers.last = None
    notices.drop(state, "page")
    asked = state.setting("max_new_tokens") * count
    page.generating = Generating(start, start, prompt, asked, state.now, until=until, way=state.models.way)
    page.asked += 1
    page.generating.begins, page.generating.number = begins, page.asked
    page.generating.spaces, page.generating.dropped = [spaces] * count, [0] * count
    if begins and begins.text:
        branches.insert(state, _without_spaces(page.generating, begins.text, 0))
    request = {**state.settings, **_which(state), "stream": True, "truncate": "left"}
    if request.get("strategy") not in m.SEARCHES:
        request.setdefault("logprobs", ALTERNATIVES)
    request |= {"n": count, "stream_interval_ms": state.interval_ms}
    if begins and begins.prompt_ids is not None:
        request["prompt_ids"] = begins.prompt_ids + begins.ids
    else:
        request["prompt"] = prompt
    try:
        return [e.Send("page", m.Generate(**request), GENERATE_S, page.asked)]
    except (TypeError, ValueError) as error:
        branches.ended(state, str(error))
        return []


def replied(state: AppState, tag: e.PageTag, event: Reply, took_ms: float, of: int = 0) -> list[e.Effect]:
    page = state.page
    if tag == "page" and of and (page.generating is None or page.generating.number != of):
        return _late(state, event, took_ms, of)
    match tag:
        case "page":
            return _written(state, event, took_ms)
        case "count":
            page.counting = False
            if page.counted != page.document.version:
                page.counted = -1  # the text or the cursor was another one
            elif isinstance(event, m.Tokenized):
                _counted(state, event)
            else:
                page.known = False  # after an error there is just no count
        case "branch ids" | "branch text":
            return _branched(state, tag, event)
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


def _which(state: AppState) -> dict[str, Any]:
    """Return what is chosen, in full: nothing else is to answer."""
    return dict(zip(("model", "engine", "precision"), (name or None for name in state.models.way), strict=True))


def spared(state: AppState, prompt: str, model: str) -> tuple[str, int]:
    """Return a prompt as it is sent to a model, and the number of spaces at its end that are not."""
    sent = prompt.rstrip(" ")
    return (sent, len(prompt) - len(sent)) if sent and state.spares_spaces(model) else (prompt, 0)


def _without_spaces(going: Generating, text: str, index: int) -> str:
    """Return new text of a continuation without those of its leading spaces that the page has already."""
    rest = text.lstrip(" ")
    dropped = min(going.spaces[index], len(text) - len(rest))
    going.spaces[index] = 0 if rest else going.spaces[index] - dropped
    going.dropped[index] += dropped
    return text[dropped:]


def _written(state: AppState, event: Reply, took_ms: float) -> list[e.Effect]:
    going = state.page.generating
    if going is None:
        return []
    if isinstance(event, m.Progress):
        going.place = event.done
    elif isinstance(event, m.Tokens):
        going.place = 0
        going.tokens += len(event.ids)
        going.first_at, going.latest_at = going.first_at or state.now, state.now
        if branches.length(state, event.index) + len(event.text) > going.asked * MAX_TOKEN_BYTES:
            branches.ended(state, "the server sent far more text than was asked for; it was cancelled")
            return [e.Cancel("page")]
        if 0 <= event.index < len(going.spaces):
            branches.insert(state, _without_spaces(going, event.text, event.index), event.index)
    elif isinstance(event, m.Generated):
        _finished(state, going, event, took_ms)
        branches.ended(state, "")
        state.link.next_look = state.now + BEAT_S  # its worker has less to do now
        return [e.Send("stats", m.GetStats(), COUNT_S)]
    elif isinstance(event, Gpt2dError):
        error = "" if going.stopping else str(event)
        of_link = isinstance(event, ConnectionFailed) and not isinstance(event, NotGpt2d)
        branches.ended(state, "" if of_link else error)
        if of_link and error:
            notices.warn(state, "link", error)  # until it is connected again
    return []


def _finished(state: AppState, going: Generating, result: m.Generated, took_ms: float) -> None:
    """Take over what a complete generation says of itself."""
    state.ledgers.last, state.ledgers.whole_ms = result, took_ms
    entry = note(state, going.prompt, result)
    for tokens in _tokens(going, result):
        state.alternatives.keep(tokens)
    branches.finished(state, going, entry)


def _late(state: AppState, event: Reply, took_ms: float, number: int) -> list[e.Effect]:
    """Take the end of a generation that was stopped, for which the page did not wait."""
    if is_last(event):
        going = state.page.late.pop(number, None)
        if going and isinstance(event, m.Generated):
            last = state.ledgers.last, state.ledgers.whole_ms
            _finished(state, going, event, took_ms)
            if state.page.generating:  # its figures are those of the present one
                state.ledgers.last, state.ledgers.whole_ms = last
    return []


def _tokens(going: Generating, result: m.Generated) -> list[Written]:
    """Return all tokens of each continuation, those among them that it went on from."""
    ids, tokens = (going.begins.ids, going.begins.tokens) if going.begins else ([], [])
    told = [(result.ids, result.logprobs), *((other.ids, other.logprobs) for other in result.others)]
    return [
        Written(ids + own, tokens + logprobs if len(logprobs) == len(own) else [], dropped)
        for (own, logprobs), dropped in zip(told, going.dropped, strict=False)
    ]


def note(state: AppState, prompt: str, result: m.Generated) -> Entry:
    """Add a result to the plots and the history, which is the one place that keeps results."""
    ledgers, ledger = state.ledgers, result.ledger
    ledgers.count += 1
    rate = tokens_per_second(result)
    if plausible(rate, ledger.first_token_ms):
        name = replicas.name(result)[:80]
        points = ledgers.series.setdefault(name, deque(maxlen=MAX_POINTS))
        points.append((float(ledgers.count), rate, ledger.first_token_ms))
    entries = state.history.entries
    number = entries[-1].number + 1 if entries else 1
    entry = Entry(number, state.unix, prompt, result, state.link.endpoint or state.link.server.strip())
    entries.append(entry)
    _forget_probabilities(entries)
    return entry


def _forget_probabilities(entries: deque[Entry]) -> None:
    """Take the probabilities of all of their texts from entries that are old, or too much together with newer ones."""
    told = entries[-1].told
    for place in range(2, len(entries) + 1):
        own = entries[-place].told
        told += own
        if own and (place > KEPT_LOGPROBS or told > MAX_LOGPROBS):
            entries[-place] = entries[-place].bare


def plausible(*figures: float) -> bool:
    """False for figures that no plot can show."""
    return all(0 <= value < 1e9 for value in figures)


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


def _regenerate(state: AppState) -> list[e.Effect]:
    """Write the continuation at the cursor, or the last one, once more."""
    page = state.page
    mark = page.document.mark_at(page.document.cursor)
    start = mark.start if mark else page.last
    if page.generating or start is None or start > len(page.document.text):
        return []
    return generate(state, start, until=_until(state, start))


def _until(state: AppState, start: int) -> int:
    """Return where the continuation ends that begins here."""
    mark = state.page.document.mark_at(start)
    return mark.end if mark and mark.start == start else start


def _branch(state: AppState, start: int, index: int, token: int) -> list[e.Effect]:
    """Another token was chosen: ask for the prompt's tokens and the new beginning's text, to go on from there."""
    page, tokens = state.page, state.tokens_at(start)
    if page.generating or state.link.status != "ready":
        return []
    if tokens is None or tokens.start != start or not 0 <= index < len(tokens.places) - 1:
        notices.warn(state, "page", "these tokens are not there any more; generate there again")
        return []
    written, own = tokens.written, tokens.written.tokens[index]
    chosen = next((a for a in own.top if a.id == token), m.Alternative(id=token, text="", logprob=float("-inf")))
    instead = m.TokenLogprobs(text=chosen.text, logprob=chosen.logprob, top=own.top)
    page.branch = Branch(start, [*written.ids[:index], token], [*written.tokens[:index], instead])
    notices.drop(state, "page")
    most = min(SENT_BYTES, max(COUNTED_BYTES, CHARACTERS * state.models.context))
    prompt = spared(state, page.document.before(start, most), state.models.model)[0]
    which = _which(state)
    return [
        e.Send("branch ids", m.Tokenize(text=prompt, **which), COUNT_S),
        e.Send("branch text", m.Tokenize(ids=page.branch.ids, **which), COUNT_S),
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
    return generate(state, branch.start, until=_until(state, branch.start), begins=branch)
