"""Part of update.apply for the comparison, and for what is exported of the history."""

from __future__ import annotations

import re
from typing import assert_never

from client import replicas
from client.window import events as e
from client.window.export import as_json, as_python
from client.window.results import Column
from client.window.state import AppState, Question
from client.window.update.files import show_files
from client.window.update.generation import GENERATE_S, note, spared
from client.window.update.models import LOAD_S, learn
from client.window.writing import STOP_S
from protocol import messages as m
from protocol.client import is_last
from protocol.connection import Event as Reply
from protocol.errors import Gpt2dError

MIN_COLUMNS, MAX_COLUMNS = 2, 4
MAX_TEXT = 200_000
"""Characters of a column that are kept."""
PROMPT_BYTES = 12_000
"""Most bytes of the page that are taken as the prompt: more than a context of 1,024 tokens holds."""


def apply(state: AppState, message: e.CompareAction) -> list[e.Effect]:
    match message:
        case e.ChooseColumn(index, values):
            if index < len(state.compare.columns):
                for name, value in values.items():
                    setattr(state.compare.columns[index], name, value)
        case e.ExportEntry(number, form):
            return _export(state, number, form)
        case _:
            assert_never(message)
    return []


def _export(state: AppState, number: int, form: e.Form) -> list[e.Effect]:
    entry = state.history.entry(number)
    if entry is None:
        return []
    match form:
        case "json":
            return show_files(state, "export", "generation.json", as_json(entry))
        case "python":
            return show_files(state, "export", "generation.py", as_python(entry))
        case _:
            assert_never(form)


def do(state: AppState, what: e.CompareWord) -> list[e.Effect]:
    compare = state.compare
    match what:
        case "compare":
            if compare.running is not None or compare.stopping or state.link.status != "ready" or not compare.prompt:
                return []
            needed = {info.name: info for column in compare.columns for info in _to_download(state, column)}
            if needed:
                state.asking = Question([*needed.values()], e.Do("compare"))
                return []
            for column in compare.columns:
                column.text = column.error = ""
                column.result, column.parts = None, []
            compare.running = 0
            return _begin(state)
        case "stop compare":
            if compare.running is not None:
                compare.stopping, compare.stopped_at = True, state.now
            compare.running = None
            return [e.Cancel("compare"), e.Cancel("compare load")]
        case "take page":
            if compare.running is None:
                document = state.page.document
                compare.prompt = document.before(document.cursor, PROMPT_BYTES) or compare.prompt
        case "add column":
            if compare.running is None and len(compare.columns) < MAX_COLUMNS:
                compare.columns.append(Column())
                offer(state)
        case "remove column":
            if compare.running is None and len(compare.columns) > MIN_COLUMNS:
                compare.columns.pop()
        case _:
            assert_never(what)
    return []


def tick(state: AppState) -> None:
    """Wait no longer for the last words of what was stopped."""
    compare = state.compare
    if compare.stopping and state.now >= compare.stopped_at + STOP_S:
        compare.stopping = False


def offer(state: AppState) -> None:
    """Begin columns in which nothing was chosen, or what this server has not, with precisions that differ."""
    chosen, columns = state.models.chosen(), state.compare.columns
    if chosen is None or state.compare.running is not None:
        return
    known = {(info.name, p.engine, p.precision) for info in state.models.known for p in info.precisions}
    engine, precision = state.models.engine, state.models.precision
    ways = [(chosen.name, p.engine, p.precision) for p in chosen.precisions]
    # The chosen one, then its engine's others, then other engines at its precision.
    ways.sort(key=lambda way: (way != state.models.way, way[1] != engine, way[2] != precision))
    taken = {column.way for column in columns if column.way in known}
    for column in columns:
        if column.way not in known and not column.as_chosen:
            column.way = next((way for way in ways if way not in taken), ("", "", ""))
            taken.add(column.way)


def _way(state: AppState, column: Column) -> tuple[str, str, str]:
    return column.way if column.model else state.models.way


def _to_download(state: AppState, column: Column) -> list[m.ModelInfo]:
    """Return the column's model, if it has to be downloaded and nobody has agreed to that."""
    name = _way(state, column)[0]
    return [info for info in state.models.known if info.name == name and state.to_download(info)]


def replied(state: AppState, tag: e.CompareTag, event: Reply) -> list[e.Effect]:
    """Take what came of the load or the generation that is under way."""
    compare = state.compare
    if compare.running is None:
        compare.stopping = compare.stopping and not is_last(event)
        return []
    if tag != compare.awaited:
        return []
    column = compare.columns[compare.running]
    if isinstance(event, m.Tokens):
        column.text = (column.text + event.text)[:MAX_TEXT]
    elif isinstance(event, m.Loaded):
        learn(state, event)
        return _generate(state, column, replicas.way(event))
    elif isinstance(event, m.Generated):
        column.result, column.text = event, event.text[:MAX_TEXT]
        note(state, compare.prompt, event)
        return _next(state, "")
    elif isinstance(event, Gpt2dError):
        return _next(state, str(event))
    return []


def lost(state: AppState, why: str) -> None:
    state.compare.stopping = False
    if state.compare.running is not None:
        state.compare.columns[state.compare.running].error = why
        state.compare.running = None


def differences(text: str, *others: str) -> list[tuple[str, bool]]:
    """Return the text cut into (part, whether it is the word with which one of the others parts from it first).

    What follows that word is another text, of which no difference says anything.
    """
    words = re.findall(r"\s*\S+|\s+$", text)
    firsts = [_first(words, re.findall(r"\s*\S+|\s+$", other)) for other in others]
    first = min(firsts, default=len(words))
    parts = ["".join(words[:first]), "".join(words[first : first + 1]), "".join(words[first + 1 :])]
    return [(part, index == 1) for index, part in enumerate(parts) if part]


def _first(words: list[str], others: list[str]) -> int:
    """Return the number of words that are the same from the beginning."""
    same = zip(words, others, strict=False)
    return next((i for i, (word, other) in enumerate(same) if word != other), min(len(words), len(others)))


def _begin(state: AppState) -> list[e.Effect]:
    """Load what the column whose turn it is needs; for a model that is loaded already the answer comes at once."""
    column = state.compare.columns[state.compare.running or 0]
    way = _way(state, column)
    if not way[0]:
        return _next(state, "choose a model")
    if not state.may_load:  # the server says what is not loaded
        return _generate(state, column, way)
    state.compare.awaited = "compare load"
    return [e.Send("compare load", m.Load(model=way[0], engine=way[1] or None, precision=way[2] or None), LOAD_S)]


def _generate(state: AppState, column: Column, way: tuple[str, str, str]) -> list[e.Effect]:
    compare = state.compare
    settings = {
        **(state.fitting(column.settings) if column.preset else state.settings),
        "seed": compare.seed,
        "max_new_tokens": compare.max_new_tokens,
        "n": 1,
        "stream_interval_ms": state.interval_ms,
        "truncate": "left",
        **dict(zip(("model", "engine", "precision"), way, strict=True)),
    }
    prompt, _ = spared(state, compare.prompt, way[0])
    compare.awaited = "compare"
    try:
        return [e.Send("compare", m.Generate(prompt=prompt, stream=True, **settings), GENERATE_S)]
    except (TypeError, ValueError) as error:
        return _next(state, str(error))


def _next(state: AppState, error: str) -> list[e.Effect]:
    """One column is done: they take turns, so that the times are honest."""
    compare = state.compare
    if compare.running is None:
        return []
    compare.columns[compare.running].error = error
    done = compare.columns[: compare.running + 1]
    first, *others = [column.text for column in done]
    done[0].parts = differences(first, *others)
    done[-1].parts = differences(done[-1].text, first)
    compare.running += 1
    if compare.running < len(compare.columns):
        return _begin(state)
    compare.running = None
    state.link.next_look = state.now  # more may be loaded now
    return []
