"""Part of update.apply for writing as one act: what is to be written waits here until the chosen model is loaded.

The model is loaded by the act itself, and what has to be downloaded for it is asked for. Nothing else than what is
chosen ever answers: every request names its model, engine and precision.
"""

from __future__ import annotations

from client import replicas
from client.window import events as e
from client.window.state import AppState, Question
from client.window.update import models, notices, page
from client.window.writing import Generating, Wanted
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import Gpt2dError


def want(state: AppState, action: e.WriteAction) -> list[e.Effect]:
    """Write something, at once or as soon as its model is there."""
    if state.page.busy:
        return []
    notices.drop(state, "page")
    state.page.wanted = Wanted(action)
    if state.link.status == "ready" and not state.models.listed:
        return [e.Send("models", m.Models(), models.CONTROL_S)]  # again, where they could not be listed
    return go(state)


def go(state: AppState) -> list[e.Effect]:
    """Begin what is wanted, or what it needs first; called whenever something has come that it may have waited for."""
    wanted, link = state.page.wanted, state.link
    if wanted is None or link.status == "connecting" or state.models.loading:
        return []
    if link.status != "ready":
        return _cannot(state, link.trouble or "there is no connection to a server", e.Connect(), "Connect")
    if not state.models.listed:
        return []
    if not state.models.model:
        return _cannot(state, "this server has no model that can be loaded")
    if state.loaded and not wanted.missing:
        return _begin(state, wanted)
    if not state.may_load:  # somebody else may be loading it; if not, the server is the one to say what is missing
        waits = any(holder.state == "loading" for holder in state.holders)
        return [] if waits else _begin(state, wanted)
    state.page.wanted = None if _asks(state, wanted.action) else wanted
    return models.load(state) if state.page.wanted else []


def load(state: AppState) -> list[e.Effect]:
    """Load the chosen model."""
    if state.link.status == "ready" and not state.may_load:
        notices.warn(state, "load", "this key may not load models")
        return []
    return [] if _asks(state, e.LoadModel()) else models.load(state)


def loaded(state: AppState, event: Reply) -> list[e.Effect]:
    """Take the end of a load, for which something may have waited."""
    wanted = state.page.wanted
    if wanted and isinstance(event, m.Loaded) and state.models.way == replicas.way(event):
        return _begin(state, wanted)
    if wanted and isinstance(event, Gpt2dError):
        state.page.wanted = None  # what the load ended with is said
    return go(state)


def unlisted(state: AppState) -> list[e.Effect]:
    """Take it that the models could not be listed, which is said."""
    state.page.wanted = None
    return []


def stop(state: AppState) -> list[e.Effect]:
    """End what is being written, or what it is waiting for."""
    wanted, state.page.wanted = state.page.wanted, None
    state.asking = None
    if wanted:
        return [e.Cancel("load")] if state.models.loading else []
    return page.do(state, "stop")


def _begin(state: AppState, wanted: Wanted) -> list[e.Effect]:
    state.page.wanted = None
    match wanted.action:
        case e.Do(what="generate" | "continue" | "regenerate" | "branches" as what):
            effects = page.do(state, what)
        case e.TakeToken():
            effects = page.apply(state, wanted.action)
        case _:
            raise AssertionError(f"{wanted.action} writes nothing")
    if state.page.generating:
        state.page.generating.wanted = wanted
    state.focus_page = max(1, state.focus_page)  # one goes on writing there
    return effects


def missing(state: AppState, going: Generating) -> list[e.Effect]:
    """Take it that the server does not hold the model that was to write: it is loaded first, by whoever may."""
    if going.wanted is None or going.wanted.missing or going.stopping or going.end > going.start:
        return []
    notices.drop(state, "page")
    if state.may_load:
        state.page.wanted = Wanted(going.wanted.action, missing=True)
        return go(state)
    others = [replicas.way(w) for w in state.link.workers if w.state == "ready"]
    other = next((way for way in others if way != state.models.way), None)
    use, label = (e.Choose(*other), f"Use {replicas.name(other)}") if other else (None, "")
    notices.warn(
        state, "page", f"{replicas.name(state.models.way)} is not loaded, and this key may not load it", use, label
    )
    return []


def _cannot(state: AppState, why: str, action: e.Action | None = None, label: str = "") -> list[e.Effect]:
    """Give up, and say why."""
    state.page.wanted = None
    notices.warn(state, "link" if state.link.status != "ready" else "page", why, action, label)
    return []


def _asks(state: AppState, then: e.Action) -> bool:
    """Ask whether the chosen model may be downloaded, where it has to be and nobody has agreed."""
    info = state.models.chosen()
    if info is None or not state.to_download(info) or state.models.loading:
        return False
    state.asking = Question([info], then)
    return True
