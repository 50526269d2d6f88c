"""A generation as JSON, or as a Python script that repeats it through the protocol module."""

from __future__ import annotations

import json
import re
from pprint import pformat
from typing import Any

import msgspec

from client import replicas
from client.window.results import Entry

SCRIPT = '''\
"""Repeats a generation of {what}. The server must have the model under that name; the digest of its weights was
{digest}.
"""

import sys

from protocol import Client

PROMPT = {prompt}
SETTINGS = {settings}

with Client(sys.argv[1] if len(sys.argv) > 1 else {endpoint!r}) as client:
    client.load({model!r}, engine={engine!r}, precision={precision!r})
    which = {{"model": {model!r}, "engine": {engine!r}, "precision": {precision!r}}}
    result = client.generate(PROMPT, **which, truncate="left", **SETTINGS)
    print(result.text)
    print(f"{{result.ledger.inference_ms:.1f}} ms, {{result.ledger.tokens_per_second:.0f}} tokens/s", file=sys.stderr)
'''


def settings_of(entry: Entry) -> dict[str, Any]:
    """Return the settings in force that shape the text, without those that only describe it."""
    return {
        name: value
        for name, value in entry.result.settings.items()
        if name not in {"truncate", "logprobs", "logprobs_of"}
    }


def as_python(entry: Entry) -> str:
    result = entry.result
    names = {"model": result.model, "engine": result.engine, "precision": result.precision}
    # What goes into the docstring came from a server, and must not end it.
    what, digest = (re.sub(r"[^\w./-]", "?", text) for text in (replicas.name(result), result.digest))
    return SCRIPT.format(
        prompt=pformat(entry.prompt, width=110),
        settings=pformat(settings_of(entry), width=110, sort_dicts=False),
        endpoint=entry.endpoint,
        what=what,
        digest=digest,
        **names,
    )


def as_json(entry: Entry) -> str:
    return json.dumps(
        {"prompt": entry.prompt, "unix_time": entry.at, "result": msgspec.to_builtins(entry.result)},
        indent=2,
        default=str,
    )
