"""Part of update.apply for generations: asked for, streamed into the page, noted when they are complete; and going on
from another token.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from client import replicas
from client.window import events as e
from client.window.alternatives import Written
from client.window.results import KEPT_LOGPROBS, MAX_LOGPROBS, MAX_POINTS, Entry
from client.window.speed import tokens_per_second
from client.window.state import AppState
from client.window.update import branches, notices
from client.window.update.branches import SENT_BYTES
from client.window.writing import Branch, Generating
from protocol import messages as m
from protocol.client import is_last
from protocol.connection import Event as Reply
from protocol.errors import ConnectionFailed, Gpt2dError, NotGpt2d, NotLoaded

GENERATE_S = 600.0
COUNT_S = 10.0
BEAT_S = 0.5
"""Seconds after which a server knows what a worker does."""
COUNTED_BYTES = 12_000
"""Most bytes before the cursor whose tokens are counted; of more text the number is estimated. A context of 1,024
tokens is about 5,000 bytes.
"""
ALTERNATIVES = 10
CHARACTERS = 12
"""Characters that are tokenised for each token of the context, where a prompt is needed as tokens."""
MAX_TOKEN_BYTES = 1024
"""Most bytes of a token's text; a server that sends more is disbelieved."""


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
    request = {**state.settings, **model_of(state), "stream": True, "truncate": "left"}
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


def model_of(state: AppState) -> dict[str, Any]:
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


def written(state: AppState, event: Reply, took_ms: float) -> list[e.Effect]:
    """Take a piece of what is being written, or its end."""
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
        going.stopping |= going.unloads and isinstance(event, NotLoaded)
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


def late(state: AppState, event: Reply, took_ms: float, number: int) -> list[e.Effect]:
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
    number = (entries[-1].number if entries else state.history.kept) + 1  # of a cleared history none comes again
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


def regenerate(state: AppState) -> list[e.Effect]:
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


def take_token(state: AppState, start: int, index: int, token: int) -> list[e.Effect]:
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
    which = model_of(state)
    return [
        e.Send("branch ids", m.Tokenize(text=prompt, **which), COUNT_S),
        e.Send("branch text", m.Tokenize(ids=page.branch.ids, **which), COUNT_S),
    ]


def go_on_from_token(state: AppState, tag: e.PageTag, event: Reply) -> list[e.Effect]:
    """Take one of the two answers that a chosen token waits for; with both, go on from it."""
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
