"""Part of update.apply for notices: what is said near the page, for as long as it is true.

Each has a key, by which whoever makes it untrue takes it away; another one of the same key takes its place.
"""

from __future__ import annotations

import math

from client.window import events as e
from client.window.state import AppState, Notice

NOTICE_S = 8.0
MAX_NOTICES = 5


def inform(
    state: AppState, key: str, text: str, action: e.Action | None = None, label: str = "", until: float | None = None
) -> None:
    """Say something for a few seconds; `action` is what one may want to do then, and `label` its button."""
    _put(state, Notice(key, text, "info", action, label, state.now + NOTICE_S if until is None else until))


def warn(state: AppState, key: str, text: str, action: e.Action | None = None, label: str = "") -> None:
    """Say what failed, until it is no longer true; `action` is the way out, and `label` its button."""
    _put(state, Notice(key, text, "failed", action, label, math.inf))


def drop(state: AppState, *keys: str) -> None:
    """Take away what is no longer true."""
    state.notices = [notice for notice in state.notices if notice.key not in keys]


def expire(state: AppState) -> None:
    """Take away those whose time is over."""
    if any(notice.until <= state.now for notice in state.notices):
        state.notices = [notice for notice in state.notices if notice.until > state.now]


def _put(state: AppState, notice: Notice) -> None:
    others = [other for other in state.notices if other.key != notice.key]
    state.notices = [*others, notice][-MAX_NOTICES:]
