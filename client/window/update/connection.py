"""Part of update.apply for the connection: what the server says of itself, whether it lives, what is lost with it."""

from __future__ import annotations

from msgspec.structs import replace

from client.window import events as e, secret
from client.window.parameters import usable
from client.window.preferences import MAX_SERVERS
from client.window.state import GOES_ON, AppState, Status
from client.window.update import act, comparison, models, notices, page
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import (
    Busy,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    Gpt2dError,
    KeyRefused,
    NoServer,
    NotGpt2d,
    RequestError,
    ServerRestarted,
    ServerStuck,
    Unauthorised,
    VersionMismatch,
)

LOOK_S, RETRY_S = 3.0, 2.0
"""Seconds from a sign of life to the question for the next, and from trouble to the next try."""
LOOK_TIMEOUT_S = 10.0
STATUS: dict[type[Gpt2dError], Status] = {
    ConnectionFailed: "lost",
    NoServer: "absent",
    NotGpt2d: "other",
    KeyRefused: "refused",
    ServerStuck: "stuck",
    RequestError: "failed",
    DeadlineExceeded: "late",
    Busy: "busy",
    Draining: "stopping",
    Unauthorised: "refused",
    VersionMismatch: "version",
}
"""Status of the connection after an error of this class; for one that is not listed its base class counts."""


def enter(state: AppState, text: str) -> None:
    """Take over what is in the field for the address."""
    state.link.server, state.link.secret = secret.read(text, state.link.secret)


def connect(state: AppState) -> list[e.Effect]:
    """Begin a connection to the address."""
    link = state.link
    _lost(state, "")
    link.status, link.trouble = "connecting", ""
    link.since = link.next_look = state.now
    link.info, link.looking = None, False
    state.preferences.server = link.server.strip()
    line = f"{link.server.strip()}#{link.secret}" if link.secret else link.server.strip()
    return [e.OpenLink(line, link.server_key.strip(), link.key_file.strip())]


def kept(state: AppState, message: e.Kept) -> None:
    """The key of this server is kept: from now on its name is enough, also after a restart."""
    link, preferences = state.link, state.preferences
    link.kept = message.names
    link.endpoint = message.endpoint
    if message.trouble:
        notices.warn(state, "key", message.trouble)
    if message.name and message.name != link.server:
        recent = [message.name if name == link.server.strip() else name for name in preferences.recent]
        preferences.recent = list(dict.fromkeys(recent))
        link.server = preferences.server = message.name
        link.secret = link.server_key = link.key_file = ""
        link.replaced = True


def left(state: AppState, trouble: str) -> list[e.Effect]:
    """End the connection, with no new try until the user connects; `trouble`: why, if that was not the user's wish."""
    link = state.link
    link.status, link.trouble = "off", trouble
    link.looking = False
    _lost(state, trouble)
    return []


def look(state: AppState) -> list[e.Effect]:
    """Ask the server for a sign of life when it is time."""
    link = state.link
    if link.status == "off" or link.looking or state.now < link.next_look:
        return []
    link.looking = True
    return [e.Send("look", m.Ping() if link.status == "ready" else m.Hello(client="gpt2d window"), LOOK_TIMEOUT_S)]


def broken(state: AppState) -> list[e.Effect]:
    """Take it that a connection broke, and that another is being made."""
    if state.link.status != "ready":
        return []
    return _trouble(state, ConnectionLost("the connection broke; reconnecting"))


def looked(state: AppState, event: Reply, took_ms: float) -> list[e.Effect]:
    """Take the answer to what asked for a sign of life."""
    link = state.link
    link.looking = False
    if link.status == "off":
        return []
    if isinstance(event, m.ServerInfo):
        return _met(state, event)
    if isinstance(event, m.Pong):
        return _alive(state, event, took_ms)
    if isinstance(event, Gpt2dError):
        return _trouble(state, event)
    return []


def _alive(state: AppState, pong: m.Pong, took_ms: float) -> list[e.Effect]:
    """Take the answer to a ping."""
    link = state.link
    if link.status != "ready":  # it was asked before there was trouble
        link.next_look = state.now
        return []
    if link.info and pong.server_id != link.info.server_id:
        return _trouble(state, ServerRestarted("the server was restarted"))
    link.rtt_ms, link.workers = took_ms, pong.workers[: models.MAX_MODELS]
    state.models.byte_level = {worker.model for worker in link.workers if worker.byte_level}
    link.next_look = state.now + LOOK_S
    busy = any(worker.running for worker in link.workers)
    stats = [e.Send("stats", m.GetStats(), models.CONTROL_S)] if busy else []
    return [*stats, *act.go(state)]


def _met(state: AppState, info: m.ServerInfo) -> list[e.Effect]:
    """Take the answer to hello, in which the server describes itself."""
    link = state.link
    before = link.info
    if before is not None and before.server_id != info.server_id:
        notices.inform(state, "link", "the server was restarted")
    elif before is not None and link.status != "ready":
        notices.inform(state, "link", "connected again")
    link.status, link.trouble = "ready", ""
    if before is None:
        notices.drop(state, "link")
    link.since = link.next_look = state.now
    state.models.listed = False
    link.info = replace(info, parameters=[*{p.name: p for p in info.parameters if usable(p)}.values()])
    name = link.server.strip()
    state.preferences.recent = [name, *(r for r in state.preferences.recent if r != name)][:MAX_SERVERS]
    state.preferences.sampling = state.fitting(state.settings)  # the others belong to another version
    state.page.uncount()
    return [
        e.KeepServer(),
        e.Send("models", m.Models(), models.CONTROL_S),
        e.Send("stats", m.GetStats(), models.CONTROL_S),
    ]


def _trouble(state: AppState, error: Gpt2dError) -> list[e.Effect]:
    link = state.link
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if link.status != status:
        link.since = state.now
    was_ready = link.status == "ready"
    link.status, link.trouble = status, str(error)
    # After a broken connection the server is asked at once; one that is not there, every other second.
    link.next_look = state.now if was_ready and status == "lost" else state.now + RETRY_S
    if status not in GOES_ON:
        told = was_ready or _under_way(state) or state.said("link")  # what was said of it is still so, or is another
        _lost(state, str(error) if told else "")
    return act.go(state)


def _under_way(state: AppState) -> bool:
    models = state.models
    return state.page.busy or models.working or state.compare.running is not None


def _lost(state: AppState, why: str) -> None:
    """The server is gone: what was under way is over. `why`: empty where that was the user's wish."""
    if why:
        notices.warn(state, "link", why)
    else:
        notices.drop(state, "link")
    state.link.workers, state.link.worker_stats = [], []
    state.models.lost()
    page.lost(state)
    comparison.lost(state, why)
