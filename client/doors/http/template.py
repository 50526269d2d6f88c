"""Conversation -> prompt, by the template that the model's folder has.

A template is a program that came with a model, so it is run in Jinja's sandbox, and in a process of its own, which is
ended where it takes too long or too much. It finds what transformers' apply_chat_template gives it, but for lists of
special tokens.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from client.doors.http.errors import SERVER, Refused
from client.doors.http.template_process import WRONG

RENDER_S = 10.0


async def render(template: str, messages: list[dict[str, str]], tokens: Mapping[str, str]) -> str:
    """Return the prompt of a conversation; `tokens` are special tokens by their names. Raises: Refused."""
    given = json.dumps({"template": template, "given": {**tokens, "messages": messages}}).encode()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client.doors.http.template_process", stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(RENDER_S):
            told, error = await process.communicate(given)
    except TimeoutError:
        raise Refused(500, f"the model's chat template took longer than {RENDER_S:.0f} s", SERVER) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == WRONG:
        raise Refused(400, f"the model's chat template: {error.decode(errors='replace').strip()}", param="messages")
    if process.returncode:
        raise Refused(500, "the model's chat template ended its process; it may have taken too much memory", SERVER)
    return told.decode()
