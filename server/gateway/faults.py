"""Errors for clients: an exception that nobody foresaw -> what may be said about it, with the rest in the log."""

from __future__ import annotations

import logging
import secrets

from protocol.errors import Internal, RequestError

log = logging.getLogger("gpt2d")


def for_client(error: Exception) -> RequestError:
    """Return the error itself if it is made for clients; else `internal`, with an id that the log has too."""
    if isinstance(error, RequestError):
        return error
    incident = secrets.token_hex(4)
    log.error("internal error %s", incident, exc_info=error)
    return Internal(f"a fault of the server; its log has the details under {incident}")
