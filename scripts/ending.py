"""How our commands end: with an exit code and at most a sentence, never with a traceback. Standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command to its end: also where Ctrl-C comes, its reader is gone, or what it prints finds a full disk."""
    try:
        try:
            code = main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as e:
        if e.filename is not None or sys.stdout is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter would try again at its end
        if isinstance(e, BrokenPipeError):
            sys.exit(141)
        sys.exit(f"{sys.argv[0]}: stdout cannot be written to: {e.strerror}")
    sys.exit(code)
