"""The comparison's and the history's part of update.apply."""

from __future__ import annotations

import difflib
import re

from client.window import events as e
from client.window.export import as_json, as_python
from client.window.state import AppState, Column
from client.window.update.files import show_files
from client.window.update.page import GENERATE_S, note
from protocol import messages as m
from protocol.errors import Gpt2dError

LOAD_S = 3600.0
MIN_COLUMNS, MAX_COLUMNS = 2, 4
MAX_COMPARED_WORDS = 300
"""Of each text. They are compared in the thread that draws, and texts that repeat themselves take 0.08 s for 300 words, 3 s for 1,000."""
MAX_TEXT = 200_000
"""Characters that are kept of a column."""


def apply(state: AppState, message: e.Message) -> list[e.Effect]:
    if isinstance(message, e.ChooseColumn) and message.index < len(state.compare.columns):
        for name, value in message.values.items():
            setattr(state.compare.columns[message.index], name, value)
    if isinstance(message, e.ExportEntry):
        entry = state.history.entry(message.number)
        if entry:
            name, content = (
                ("generation.json", as_json(entry)) if message.form == "json" else ("generation.py", as_python(entry))
            )
            return show_files(state, "export", name, content)
    return []


def do(state: AppState, what: str) -> list[e.Effect]:
    compare = state.compare
    match what:
        case "compare":
            if compare.running is not None or compare.stopping or state.link.status != "ready" or not compare.prompt:
                return []
            for column in compare.columns:
                column.text, column.result, column.error, column.parts = "", None, "", []
            compare.running = 0
            return _begin(state)
        case "stop compare":
            compare.stopping = compare.stopping or compare.running is not None
            compare.running = None
            return [e.Cancel("compare"), e.Cancel("compare load")]
        case "add column" if compare.running is None and len(compare.columns) < MAX_COLUMNS:
            compare.columns.append(Column())
        case "remove column" if compare.running is None and len(compare.columns) > MIN_COLUMNS:
            compare.columns.pop()
    return []


def replied(state: AppState, tag: str, event: object) -> list[e.Effect]:
    compare = state.compare
    if tag not in {"compare", "compare load"}:
        return []
    if compare.running is None:
        compare.stopping = compare.stopping and isinstance(event, m.Tokens | m.Progress)
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
    """The text cut into (part, differs from the other), word by word."""
    words, others = (re.findall(r"\s*\S+|\s+$", t)[:MAX_COMPARED_WORDS] for t in (text, other))
    matcher = difflib.SequenceMatcher(None, others, words, autojunk=False)
    parts = [("".join(words[b0:b1]), tag != "equal") for tag, _, _, b0, b1 in matcher.get_opcodes() if b1 > b0]
    rest = text[sum(len(part) for part, _ in parts) :]
    return [*parts, *([(rest, False)] if rest else [])]


def _begin(state: AppState) -> list[e.Effect]:
    """Load what the column whose turn it is needs; a model that is loaded already answers at once."""
    column = state.compare.columns[state.compare.running or 0]
    models = state.models
    model = column.model or models.model
    if not model:
        return _next(state, "choose a model")
    engine, precision = (column.engine, column.precision) if column.model else (models.engine, models.precision)
    return [e.Send("compare load", m.Load(model=model, engine=engine or None, precision=precision or None), LOAD_S)]


def _next(state: AppState, error: str) -> list[e.Effect]:
    """One column is done: one after the other, so that the times are honest."""
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
