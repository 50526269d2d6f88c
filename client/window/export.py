"""A generation as JSON, or as a Python script that does it again through the protocol module."""

from __future__ import annotations

import json
import re
from pprint import pformat
from typing import Any

import msgspec

from client.window.state import Entry

SCRIPT = '''\
"""Repeats a generation of {what}. The model must be there under that name; its weights' digest was
{digest}.
"""

import sys

from protocol import Client

PROMPT = {prompt}
SETTINGS = {settings}

with Client(sys.argv[1] if len(sys.argv) > 1 else {endpoint!r}) as client:
    client.load({model!r}, engine={engine!r}, precision={precision!r})
    result = client.generate(PROMPT, model={model!r}, engine={engine!r}, precision={precision!r}, truncate="left", **SETTINGS)
    print(result.text)
    print(f"{{result.ledger.inference_ms:.1f}} ms, {{result.ledger.tokens_per_second:.0f}} tokens/s", file=sys.stderr)
'''


def settings_of(entry: Entry) -> dict[str, Any]:
    """The settings in force that shape the text, without those that only tell about it."""
    return {
        name: value
        for name, value in entry.result.settings.items()
        if name not in {"truncate", "logprobs", "logprobs_of"}
    }


def as_python(entry: Entry) -> str:
    result = entry.result
    names = {"model": result.model, "engine": result.engine, "precision": result.precision}
    # What stands in the docstring came from a server, and must not end it.
    what, digest = (re.sub(r"[^\w./-]", "?", text) for text in ("/".join(names.values()), result.digest))
    return SCRIPT.format(prompt=pformat(entry.prompt, width=110), settings=pformat(settings_of(entry), width=110, sort_dicts=False),
                         endpoint=entry.endpoint, what=what, digest=digest, **names)  # fmt: skip


def as_json(entry: Entry) -> str:
    return json.dumps(
        {"prompt": entry.prompt, "unix_time": entry.at, "result": msgspec.to_builtins(entry.result)},
        indent=2,
        default=str,
    )
