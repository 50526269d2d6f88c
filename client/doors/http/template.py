"""Conversation -> prompt, by the template that the model's folder has: `python -m client.doors.http.template`.

A template is a program that came with a model, so it is run in Jinja's sandbox, as transformers does, and in a process
of its own, which is ended where it takes too long or too much. Reads JSON from stdin, writes the prompt to stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from client.doors.http.errors import SERVER, Refused

RENDER_S = 10.0
MAX_MEMORY_BYTES = 1 << 30
MAX_SENTENCE = 300
WRONG = 3
"""Exit code where the template is refused, or refuses the conversation."""


async def render(template: str, messages: list[dict[str, str]], tokens: Mapping[str, str]) -> str:
    """Return the prompt of a conversation; `tokens` are the texts of bos_token and eos_token. Raises: Refused."""
    given = json.dumps({"template": template, "messages": messages, **tokens}).encode()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client.doors.http.template", stdin=pipe, stdout=pipe, stderr=pipe
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


def main() -> None:
    """Render what stdin has."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    given = json.loads(sys.stdin.buffer.read())
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        template = environment.from_string(given.pop("template"))
        prompt = template.render(**given, add_generation_prompt=True)
    except MemoryError:
        raise
    except Exception as e:  # noqa: BLE001 - a template may raise whatever Python has
        print(f"{e}"[:MAX_SENTENCE], file=sys.stderr)
        sys.exit(WRONG)
    sys.stdout.buffer.write(prompt.encode())


if __name__ == "__main__":
    main()
