"""apply(state, message): what the user did and what happened outside change the state, and effects follow.

No file, no socket, no clock: time comes with Tick. What is to be written waits in act.py; models are handled in
models.py, the text in page.py and branches.py, how it is seen in seeing.py, comparison and export in comparison.py,
opening and saving in files.py.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from client.window import events as e, secret
from client.window.parameters import usable
from client.window.preferences import MAX_SERVERS
from client.window.state import GOES_ON, AppState, Status
from client.window.update import act, branches, comparison, files, models, notices, page, seeing
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
    NotLoaded,
    RequestError,
    ServerRestarted,
    ServerStuck,
    Unauthorised,
    VersionMismatch,
)

LOOK_S, RETRY_S = 3.0, 2.0
LOOK_TIMEOUT_S = 10.0
ANSWERS: dict[e.Tag, tuple[type[m.Reply], ...]] = {
    "look": (m.ServerInfo, m.Pong),
    "models": (m.ModelList,),
    "stats": (m.Stats,),
    "load": (m.Progress, m.Loaded),
    "measure": (m.Progress, m.Measured),
    "calibrate": (m.Progress, m.Calibrated),
    "unload": (m.Unloaded,),
    "page": (m.Progress, m.Tokens, m.Generated),
    "count": (m.Tokenized,),
    "branch ids": (m.Tokenized,),
    "branch text": (m.Tokenized,),
    "compare": (m.Progress, m.Tokens, m.Generated),
    "compare load": (m.Progress, m.Loaded),
}
"""Answers that a server may give to each request; anything else ends the request with NotGpt2d."""
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


def apply(state: AppState, message: e.Message) -> list[e.Effect]:
    """Change the state; return what is to be done outside."""
    match message:
        case e.Tick(now, unix):
            state.now = now
            notices.expire(state)
            comparison.tick(state)
            return [*_look(state), *page.tick(state, unix)]
        case e.Replied():
            return _replied(state, message)
        case e.Connect():
            return connect(state)
        case e.Disconnect():
            return [*_left(state, ""), e.CloseLink()]
        case e.NotConnected(error):
            return _left(state, error)
        case e.Broken():
            if state.link.status == "ready":
                return _trouble(state, ConnectionLost("the connection broke; reconnecting"))
        case e.Kept():
            _kept(state, message)
        case e.Choose(model, engine, precision):
            models.choose(state, model, engine, precision)
            state.preferences.chosen = list(state.models.way)
        case e.LoadModel():
            return act.load(state)
        case e.CancelLoad():
            return [e.Cancel("load")]
        case e.UnloadModel(model, engine, precision):
            return models.unload(state, model, engine, precision)
        case e.Prefer(name, value):
            setattr(state.preferences, name, value)
            state.fonts_changed = state.fonts_changed or name in {"font", "page_font", "scale", "theme"}
        case e.Enter("link", "server", value):
            state.link.server, state.link.secret = secret.read(value, state.link.secret)
        case e.Enter(part, name, value):
            setattr(getattr(state, part), name, value)
        case e.SetSetting(name, value):
            if value is None:
                state.settings.pop(name, None)
            else:
                state.settings[name] = value
        case e.Preset():
            _preset(state, message)
        case e.FontsListed(fonts):
            state.fonts, state.fonts_changed = fonts, True
        case e.FontsLeftOut(troubles):
            notices.inform(state, "fonts", "; ".join(troubles))
        case e.Do(what):
            return _do(state, what)
        case e.TakeToken():
            return act.want(state, message)
        case e.Edit() | e.Select() | e.ReplaceAll() | e.Restore():
            return page.apply(state, message)
        case e.GoTo() | e.Take() | e.NameNode() | e.KeepNode() | e.PruneNode() | e.Graft():
            branches.apply(state, message)
        case e.Dismiss(key):
            notices.drop(state, key)
        case e.ChooseColumn() | e.ExportEntry():
            return comparison.apply(state, message)
        case e.ChooseFile() | e.Recover() | e.Forget() | e.OpenRecent() | e.Dropped():
            return files.act(state, message)
        case e.Opened() | e.Recovered() | e.Saved() | e.Exists() | e.Exported() | e.Listed():
            return files.apply(state, message)
        case e.DiskFailed() | e.NotKept():
            return files.apply(state, message)
        case _:
            assert_never(message)
    return []


# The connection


def connect(state: AppState) -> list[e.Effect]:
    link = state.link
    _lost(state, "")
    link.status, link.trouble = "connecting", ""
    link.since = link.next_look = state.now
    link.info, link.looking = None, False
    state.preferences.server = link.server.strip()
    line = f"{link.server.strip()}#{link.secret}" if link.secret else link.server.strip()
    return [e.OpenLink(line, link.server_key.strip(), link.key_file.strip())]


def _kept(state: AppState, message: e.Kept) -> None:
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


def _left(state: AppState, trouble: str) -> list[e.Effect]:
    """End the connection, with no new try until the user connects; `trouble`: why, if that was not the user's wish."""
    link = state.link
    link.status, link.trouble = "off", trouble
    link.looking = False
    _lost(state, trouble)
    return []


def _look(state: AppState) -> list[e.Effect]:
    """Ask the server for a sign of life when it is time."""
    link = state.link
    if link.status == "off" or link.looking or state.now < link.next_look:
        return []
    link.looking = True
    return [e.Send("look", m.Ping() if link.status == "ready" else m.Hello(client="gpt2d window"), LOOK_TIMEOUT_S)]


def _looked(state: AppState, event: Reply, took_ms: float) -> list[e.Effect]:
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
    """There is no server to talk to: what was under way is over. `why`: empty where that was the user's wish."""
    if why:
        notices.warn(state, "link", why)
    else:
        notices.drop(state, "link")
    state.link.workers, state.link.worker_stats = [], []
    state.models.lost()
    page.lost(state)
    comparison.lost(state, why)


def _replied(state: AppState, message: e.Replied) -> list[e.Effect]:
    tag, event = message.tag, message.event
    if isinstance(event, (Gpt2dError, *ANSWERS[tag])):
        return _answered(state, tag, event, message.took_ms, message.of)
    wanted = " or ".join(kind.__name__ for kind in ANSWERS[tag])
    error = NotGpt2d(f"the server answered with {type(event).__name__} instead of {wanted}")
    return [e.Cancel(tag), *_answered(state, tag, error, message.took_ms, message.of)]


def _answered(state: AppState, tag: e.Tag, event: Reply, took_ms: float, of: int) -> list[e.Effect]:
    """Take one of the tag's ANSWERS, or the error that its request ended in."""
    match tag:
        case "look":
            return _looked(state, event, took_ms)
        case "models":
            models.listed(state, event)
            comparison.offer(state)
            return act.go(state) if state.models.listed else act.unlisted(state)
        case "stats":
            if isinstance(event, m.Stats):  # after an error the last figures stay: they are asked for again soon
                state.link.worker_stats = event.workers[: models.MAX_MODELS]
                state.link.memory = event.rss_bytes + sum(w.rss_bytes for w in event.workers)
        case "load" | "measure" | "calibrate":
            effects = models.worked(state, tag, event)
            return [*effects, *(act.loaded(state, event) if tag == "load" else [])]
        case "unload":
            return models.unloaded(state, event)
        case "page" | "count" | "branch ids" | "branch text":
            going = state.page.generating
            effects = page.replied(state, tag, event, took_ms, of)
            own = of in {0, going.number} if going else False
            if going and own and going.wanted and isinstance(event, NotLoaded) and tag == "page":
                return [*effects, *act.missing(state, going)]
            return effects
        case "compare" | "compare load":
            return comparison.replied(state, tag, event)
        case _:
            assert_never(tag)
    return []


def _answer(state: AppState, *, agreed: bool) -> list[e.Effect]:
    """Take the answer to the question, and do what it was asked for."""
    question, state.asking = state.asking, None
    if question is None or not agreed:
        return []
    state.agreed |= {info.name for info in question.downloads}
    return apply(state, question.then)


# Settings


def _preset(state: AppState, message: e.Preset) -> None:
    presets, name = state.preferences.presets, message.name.strip()[:60]
    match message.what:
        case "save":
            if name:
                presets[name] = dict(state.settings)
        case "load":
            if name in presets:
                state.preferences.sampling = state.fitting(presets[name])
        case "delete":
            presets.pop(name, None)
        case _:
            assert_never(message.what)


def _do(state: AppState, what: e.Word) -> list[e.Effect]:
    match what:
        case "measure":
            return models.measure(state)
        case "calibrate":
            return models.calibrate(state)
        case "stop measuring" | "stop calibrating":
            return [e.Cancel("measure" if what == "stop measuring" else "calibrate")]
        case "reset settings":
            state.preferences.sampling = {}
            return []
        case "agree" | "decline":
            return _answer(state, agreed=what == "agree")
        case "generate" | "continue" | "regenerate" | "branches":
            return act.want(state, e.Do(what))
        case "stop":
            return [] if seeing.closed_find(state) else act.stop(state)
        case "undo" | "redo" | "earlier" | "later" | "close branches":
            return page.do(state, what)
        case "find" | "find and replace" | "focus mode" | "zoom in" | "zoom out" | "zoom 1":
            seeing.do(state, what)
            return []
        case "cut" | "copy" | "paste" | "select all":
            seeing.do(state, what)
            return []
        case "compare" | "stop compare" | "take page" | "add column" | "remove column":
            return comparison.do(state, what)
        case "keys":
            closed = state.preferences.closed
            state.preferences.closed = [p for p in closed if p != "Keys"] if "Keys" in closed else [*closed, "Keys"]
            return []
        case "menus":
            if state.focus_mode:
                seeing.do(state, "focus mode")
            state.open_menus = True
            return []
        case "to the page":
            state.focus_page, state.page.view.lent = 1, False
            return []
        case (
            "new"
            | "open"
            | "save"
            | "save as"
            | "quit"
            | "confirmed"
            | "dismissed"
            | "replace"
            | "recover"
            | "recover later"
            | "use branches"
            | "clear history"
            | "close files"
        ):
            return files.do(state, what)
        case _:
            assert_never(what)
