"""What ends a request -> an error for its client; of an unforeseen exception, the details in the log."""

from __future__ import annotations

import secrets
import sys
import traceback

from protocol.errors import Internal, RequestError


def for_client(what: str, error: Exception) -> RequestError:
    """Return the error itself if it is made for clients; else log it, and return one that names its place there."""
    if isinstance(error, RequestError):
        return error
    number = secrets.token_hex(4)
    print(f"{what} failed, incident {number}:", file=sys.stderr)
    traceback.print_exception(error)
    return Internal(f"a fault of the server ({type(error).__name__}); its log has the details under {number}")
