"""Rows of a table -> continuations of their texts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from client.corpus.journal import Done
from client.corpus.model import Model
from client.corpus.tables import Table
from protocol import Client, messages as m
from protocol.client import expect
from protocol.errors import BadRequest, TooLong
from protocol.many import GENERATIONS, MANY_S, generations

DEFAULTS: dict[str, Any] = {"truncate": "left", "seed": 0}
"""Where they differ from the server's: a prompt that is too long ends nothing, and a text can be had again."""


def columns(table: Table, settings: dict[str, Any]) -> dict[str, type | None]:
    """Return our columns and their types."""
    ours = table.source | {
        "text_number": int, "continuation": int, "generated": str, "finish_reason": str, "new_tokens": int,
        "prompt_truncated": int, "seed": int,
    }  # fmt: skip
    if settings.get("strategy") in m.SEARCHES:
        ours["score"] = float
    if settings.get("logprobs") is not None:
        ours["logprobs"] = None
    return ours


def continued(client: Client, table: Table, model: Model, settings: dict[str, Any], done: int) -> Iterator[Done]:
    """Yield the rows of each text's continuations, from text number `done` on; one without values where the server
    refuses the text. Raises: what concerns no single text, as a setting that is out of this model's range.
    """
    rows, ahead = itertools.tee(itertools.islice(table.rows(), done, None))
    given = DEFAULTS | settings | model.which
    given["seed"] += done * given.get("n", 1)
    ours = list(columns(table, settings))[len(table.source) + 1 :]
    fit = False
    requests = generations((row.text for row in ahead), given)
    with contextlib.closing(client.in_order(requests, MANY_S, GENERATIONS)) as answers:
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True), done + 1):
            beside = [*row.cells, *table.source_of(row), number]
            if isinstance(answer, BadRequest | TooLong):
                fit = fit or _fit(client, given)
                why = f"{row.file}, line {row.line}: {answer}"
                yield Done([[*beside, *map({"finish_reason": "refused"}.get, ours)]], len(row.text), 0, refused=why)
                continue
            result = expect(answer, m.Generated)
            parts: list[m.Generated | m.Continuation] = [result, *result.others]
            cells = [[*beside, place, *_cells(result, one, given)] for place, one in enumerate(parts, 1)]
            yield Done(cells, len(row.text), sum(len(one.ids) for one in parts))


def _fit(client: Client, settings: dict[str, Any]) -> bool:
    """Return True: the server takes these settings with a text that cannot be wrong. Raises: what it says otherwise."""
    with client.stream(prompt_ids=[0], **settings) as pieces:
        next(iter(pieces), None)
    return True


def _cells(result: m.Generated, one: m.Generated | m.Continuation, given: dict[str, Any]) -> list[Any]:
    seed = result.settings.get("seed") if isinstance(one, m.Generated) else one.seed
    cells = [one.text, one.finish_reason, len(one.ids), result.prompt_truncated, seed]
    if given.get("strategy") in m.SEARCHES:
        cells.append(one.score)
    if given.get("logprobs") is not None:
        cells.append([token.to_dict() for token in one.logprobs])
    return cells
