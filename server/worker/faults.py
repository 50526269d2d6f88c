"""An unforeseen exception -> a sentence for its client, and the details in the log."""

from __future__ import annotations

import secrets
import sys
import traceback


def incident(what: str, error: Exception) -> str:
    """Log an exception; return the sentence for the client, which names the place in the log."""
    number = secrets.token_hex(4)
    print(f"{what} failed, incident {number}:", file=sys.stderr)
    traceback.print_exception(error)
    return f"a fault of the server ({type(error).__name__}); its log has the details under {number}"
