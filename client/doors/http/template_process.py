"""The process in which a chat template runs: `python -m client.doors.http.template_process`.

Reads JSON from stdin, writes the prompt to stdout. Each conversation starts one, so it imports what it needs alone.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

MAX_MEMORY_BYTES = 1 << 30
MAX_SENTENCE = 300
WRONG = 3
"""Exit code where the template is refused, or refuses the conversation."""


def main() -> None:
    """Render what stdin has."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what the model says, for training: {% generation %}...{% endgeneration %}."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja has it

        def parse(self, parser: Parser) -> Node:
            lineno = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)  # noqa: DTZ005 - local time, as transformers has it

    told = json.loads(sys.stdin.buffer.read())
    extensions = [loopcontrols, Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    try:
        template = environment.from_string(told["template"])
        prompt = template.render(**told["given"], tools=None, documents=None, add_generation_prompt=True)
    except MemoryError:
        raise
    except Exception as e:  # noqa: BLE001 - a template may raise whatever Python has
        print(f"{e}"[:MAX_SENTENCE], file=sys.stderr)
        sys.exit(WRONG)
    sys.stdout.buffer.write(prompt.encode())


if __name__ == "__main__":
    main()
