"""Part of update.apply for the comparison and the history."""

from __future__ import annotations

import difflib
import re
from typing import assert_never

from client.window import events as e
from client.window.export import as_json, as_python
from client.window.state import AppState, Column
from client.window.update.files import show_files
from client.window.update.page import GENERATE_S, note
from protocol import messages as m
from protocol.client import is_last
from protocol.connection import Event as Reply
from protocol.errors import Gpt2dError

LOAD_S = 3600.0
MIN_COLUMNS, MAX_COLUMNS = 2, 4
MAX_COMPARED_WORDS = 300
"""Words of each text that are compared. It happens in the thread that draws, and texts that repeat themselves take 0.08
s for 300 words, 3 s for 1,000.
"""
MAX_TEXT = 200_000
"""Characters of a column that are kept."""


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
            for column in compare.columns:
                column.text = column.error = ""
                column.result, column.parts = None, []
            compare.running = 0
            return _begin(state)
        case "stop compare":
            compare.stopping = compare.stopping or compare.running is not None
            compare.running = None
            return [e.Cancel("compare"), e.Cancel("compare load")]
        case "add column":
            if compare.running is None and len(compare.columns) < MAX_COLUMNS:
                compare.columns.append(Column())
        case "remove column":
            if compare.running is None and len(compare.columns) > MIN_COLUMNS:
                compare.columns.pop()
        case _:
            assert_never(what)
    return []


def replied(state: AppState, event: Reply) -> list[e.Effect]:
    """Take what came of the load or the generation that is under way."""
    compare = state.compare
    if compare.running is None:
        compare.stopping = compare.stopping and not is_last(event)
        return []
    column = compare.columns[compare.running]
    if isinstance(event, m.Tokens):
        column.text = (column.text + event.text)[:MAX_TEXT]
    elif isinstance(event, m.Loaded):
        settings = {
            **(state.fitting(column.settings) if column.preset else state.settings),
            "seed": compare.seed,
            "max_new_tokens": compare.max_new_tokens,
            "n": 1,
        }
        settings |= {"model": event.model, "engine": event.engine, "precision": event.precision, "truncate": "left"}
        try:
            return [e.Send("compare", m.Generate(prompt=compare.prompt, stream=True, **settings), GENERATE_S)]
        except (TypeError, ValueError) as error:
            return _next(state, str(error))
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


def differences(text: str, other: str) -> list[tuple[str, bool]]:
    """Return the text cut into (part, differs from the other), word by word."""
    words, others = (re.findall(r"\s*\S+|\s+$", t)[:MAX_COMPARED_WORDS] for t in (text, other))
    matcher = difflib.SequenceMatcher(None, others, words, autojunk=False)
    parts = [("".join(words[b0:b1]), tag != "equal") for tag, _, _, b0, b1 in matcher.get_opcodes() if b1 > b0]
    rest = text[sum(len(part) for part, _ in parts) :]
    return [*parts, *([(rest, False)] if rest else [])]


def _begin(state: AppState) -> list[e.Effect]:
    """Load what the column whose turn it is needs; for a model that is loaded already the answer comes at once."""
    column = state.compare.columns[state.compare.running or 0]
    models = state.models
    model = column.model or models.model
    if not model:
        return _next(state, "choose a model")
    engine, precision = (column.engine, column.precision) if column.model else (models.engine, models.precision)
    return [e.Send("compare load", m.Load(model=model, engine=engine or None, precision=precision or None), LOAD_S)]


def _next(state: AppState, error: str) -> list[e.Effect]:
    """One column is done: they take turns, so that the times are honest."""
    compare = state.compare
    if compare.running is None:
        return []
    compare.columns[compare.running].error = error
    column, first = compare.columns[compare.running], compare.columns[0]
    column.parts = differences(column.text, first.text) if compare.running else [(column.text, False)]
    compare.running += 1
    if compare.running < len(compare.columns):
        return _begin(state)
    compare.running = None
    return []
