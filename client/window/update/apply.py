"""apply(state, message): what the user did and what happened outside change the state, and effects follow.

No file, no socket, no clock: time comes with Tick. The text is handled in page.py, comparison and history in
comparison.py, opening and saving in files.py.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from client import replicas
from client.window import events as e
from client.window.parameters import usable
from client.window.state import AppState, Doing, Status
from client.window.update import comparison, files, notices, page
from client.window.update.comparison import LOAD_S
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import (
    Busy,
    Cancelled,
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
LOOK_TIMEOUT_S = 10.0
MEASURE_S = LOAD_S
UNLOAD_S = 60.0
CONTROL_S = 10.0
MAX_RECENT, MAX_MODELS = 10, 500
ANSWERS: dict[e.Tag, tuple[type[m.Reply], ...]] = {
    "look": (m.ServerInfo, m.Pong),
    "models": (m.ModelList,),
    "stats": (m.Stats,),
    "load": (m.Progress, m.Loaded),
    "measure": (m.Progress, m.Measured),
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
GOES_ON = frozenset[Status]({"ready", "stuck", "late", "busy", "stopping", "failed"})
"""The connection is there, so that what is under way may still come to an end."""


def apply(state: AppState, message: e.Message) -> list[e.Effect]:
    """Change the state; return what is to be done outside."""
    match message:
        case e.Tick(now, unix):
            state.now = now
            notices.expire(state)
            return [*_look(state), *page.tick(state, unix)]
        case e.Replied():
            return _replied(state, message)
        case e.Connect():
            return connect(state)
        case e.Disconnect():
            return [*_left(state, "", "disconnected"), e.CloseLink()]
        case e.NotConnected(error):
            return _left(state, error, error)
        case e.Broken():
            if state.link.status == "ready":
                return _trouble(state, ConnectionLost("the connection broke; reconnecting"))
        case e.Kept(names):
            state.link.kept = names
        case e.Choose(model, engine, precision):
            choose(state, model, engine, precision)
        case e.LoadModel():
            return load(state)
        case e.CancelLoad():
            return [e.Cancel("load")]
        case e.UnloadModel(model, engine, precision):
            return [e.Send("unload", m.Unload(model=model, engine=engine, precision=precision), UNLOAD_S)]
        case e.Prefer(name, value):
            setattr(state.preferences, name, value)
            state.fonts_changed = state.fonts_changed or name in {"font", "page_font", "scale", "theme"}
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
        case e.Do(what):
            return _do(state, what)
        case e.Typed() | e.Moved() | e.TakeToken() | e.Restore():
            return page.apply(state, message)
        case e.Dismiss(key):
            notices.drop(state, key)
        case e.ChooseColumn() | e.ExportEntry():
            return comparison.apply(state, message)
        case e.ChooseFile() | e.Opened() | e.Saved() | e.Exported() | e.DiskFailed() | e.Listed():
            return files.apply(state, message)
        case _:
            assert_never(message)
    return []


# The connection


def connect(state: AppState) -> list[e.Effect]:
    link = state.link
    if link.status != "off":
        _lost(state, "reconnecting")
    link.status, link.trouble = "connecting", ""
    link.since = link.next_look = state.now
    link.info, link.looking = None, False
    # A connect line is a secret; once it works it is kept apart.
    state.preferences.server = link.server.partition("#")[0].strip()
    return [e.OpenLink(link.server.strip(), link.server_key.strip(), link.key_file.strip())]


def _left(state: AppState, trouble: str, why: str) -> list[e.Effect]:
    """End the connection, with no new try until the user connects."""
    link = state.link
    link.status, link.trouble = "off", trouble
    link.looking = False
    _lost(state, why)
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
    link.rtt_ms, link.workers = took_ms, pong.workers[:MAX_MODELS]
    link.next_look = state.now + LOOK_S
    return [e.Send("stats", m.GetStats(), CONTROL_S)] if any(w.running for w in link.workers) else []


def _met(state: AppState, info: m.ServerInfo) -> list[e.Effect]:
    """Take the answer to hello, in which the server describes itself."""
    link = state.link
    before = link.info
    if before is not None and before.server_id != info.server_id:
        notices.inform(state, "link", "the server was restarted: what it had loaded is gone")
    elif before is not None and link.status != "ready":
        notices.inform(state, "link", "connected again")
    link.status, link.trouble = "ready", ""
    link.since = link.next_look = state.now
    link.info = replace(info, parameters=[*{p.name: p for p in info.parameters if usable(p)}.values()])
    name = link.server.partition("#")[0].strip()
    state.preferences.recent = [name, *(r for r in state.preferences.recent if r != name)][:MAX_RECENT]
    state.preferences.sampling = state.fitting(state.settings)  # the others belong to another version
    state.page.counted = -1
    return [e.KeepServer(), e.Send("models", m.Models(), CONTROL_S), e.Send("stats", m.GetStats(), CONTROL_S)]


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
        _lost(state, str(error))
    return []


def _lost(state: AppState, why: str) -> None:
    """There is no server to talk to: what was under way is over."""
    state.link.workers, state.link.worker_stats = [], []
    models = state.models
    if models.loading or models.measuring:
        models.loading = models.measuring = None
        models.error = why
    page.lost(state, why)
    comparison.lost(state, why)


def _replied(state: AppState, message: e.Replied) -> list[e.Effect]:
    tag, event = message.tag, message.event
    if isinstance(event, (Gpt2dError, *ANSWERS[tag])):
        return _answered(state, tag, event, message.took_ms)
    wanted = " or ".join(kind.__name__ for kind in ANSWERS[tag])
    error = NotGpt2d(f"the server answered with {type(event).__name__} instead of {wanted}")
    return [e.Cancel(tag), *_answered(state, tag, error, message.took_ms)]


def _answered(state: AppState, tag: e.Tag, event: Reply, took_ms: float) -> list[e.Effect]:
    """Take one of the tag's ANSWERS, or the error that its request ended in."""
    match tag:
        case "look":
            return _looked(state, event, took_ms)
        case "models":
            _listed(state, event)
        case "stats":
            if isinstance(event, m.Stats):  # after an error the last figures stay: they are asked for again soon
                state.link.worker_stats = event.workers[:MAX_MODELS]
                state.link.memory = event.rss_bytes + sum(w.rss_bytes for w in event.workers)
        case "load" | "measure":
            return _worked(state, tag, event)
        case "unload":
            if isinstance(event, m.Unloaded):
                notices.inform(state, "model", f"unloaded {', '.join(event.names)}")
            else:
                notices.warn(state, "model", str(event))
            return _refresh(state)
        case "page" | "count" | "branch ids" | "branch text":
            return page.replied(state, tag, event, took_ms)
        case "compare" | "compare load":
            return comparison.replied(state, event)
        case _:
            assert_never(tag)
    return []


def _refresh(state: AppState) -> list[e.Effect]:
    state.link.next_look = state.now
    return [e.Send("models", m.Models(), CONTROL_S), e.Send("stats", m.GetStats(), CONTROL_S)]


# Models


def _listed(state: AppState, event: Reply) -> None:
    if isinstance(event, m.ModelList):
        state.models.known = event.models[:MAX_MODELS]
        notices.drop(state, "models")
        if not state.models.chosen():
            choose(state, *_first_choice(state))
    elif state.link.status in GOES_ON:
        notices.warn(state, "models", f"the models could not be listed: {event}")


def _first_choice(state: AppState) -> tuple[str, str, str]:
    """Return what is loaded, else the first model that can be."""
    for worker in state.link.workers:
        return worker.model, worker.engine, worker.precision
    for info in state.models.known:
        for p in info.precisions:
            if p.loaded:
                return info.name, p.engine, p.precision
    usable = next((info for info in state.models.known if not info.problem), None)
    return (usable.name, "", "") if usable else ("", "", "")


def choose(state: AppState, model: str, engine: str, precision: str) -> None:
    """Choose a model; an engine or precision that it does not have is replaced by its first one."""
    models = state.models
    models.model = model
    info = models.chosen()
    ways = [(p.engine, p.precision) for p in info.precisions] if info else []
    if (engine, precision) not in ways:
        same_engine = [way for way in ways if way[0] == engine]
        engine, precision = next(iter(same_engine or ways), ("", ""))
    models.engine, models.precision = engine, precision
    models.error, models.replicas = "", None
    state.page.counted = -1


def load(state: AppState) -> list[e.Effect]:
    models = state.models
    if not models.model or models.loading or state.link.status != "ready":
        return []
    models.loading = _begin(state)
    request = m.Load(
        model=models.model,
        engine=models.engine or None,
        precision=models.precision or None,
        compile=models.compile and state.compiles and not state.loaded,  # what is loaded stays as it is
        replicas=state.wanted,
        stream=True,
    )
    return [e.Send("load", request, LOAD_S)]


def measure(state: AppState) -> list[e.Effect]:
    models = state.models
    if not models.model or models.measuring or state.link.status != "ready":
        return []
    models.measuring = _begin(state)
    request = m.Measure(model=models.model, engine=models.engine, precision=models.precision, stream=True)
    return [e.Send("measure", request, MEASURE_S)]


def _begin(state: AppState) -> Doing:
    """Begin a load or a measurement of what is chosen."""
    models = state.models
    models.error = ""
    return Doing(f"{models.model}/{models.engine}/{models.precision}", stage_began=state.now)


def _worked(state: AppState, tag: e.Tag, event: Reply) -> list[e.Effect]:
    """A load or a measurement went on, or ended."""
    models = state.models
    if isinstance(event, m.Progress):
        _advance(models.loading if tag == "load" else models.measuring, event, state.now)
        return []
    if tag == "load":
        models.loading = None
    else:
        models.measuring = None
    if isinstance(event, m.Loaded):
        choose(state, event.model, event.engine, event.precision)
        took = "is loaded" if event.already else f"loaded in {event.load_ms / 1000:.1f} s"
        each = f"{replicas.count(event.replicas)} of " if event.replicas != 1 else ""
        name = f"{event.model}/{event.engine}/{event.precision}"
        notes = "".join(f"; note: {notice}" for notice in event.notices)
        notices.inform(state, "model", f"{name} {took}, {each}{event.rss_bytes / 1e6:.0f} MB{notes}")
    elif isinstance(event, m.Measured):
        name, change = f"{event.model}/{event.engine}/{event.precision}", event.fidelity.perplexity_change_pct
        notices.inform(state, "model", f"{name}: perplexity {change:+.2f} % against full precision")
    elif not isinstance(event, Cancelled):
        models.error = str(event)
    return _refresh(state)


def _advance(doing: Doing | None, progress: m.Progress, now: float) -> None:
    if doing:
        if progress.stage != doing.stage:
            doing.stage_began, doing.stage_done = now, progress.done
        doing.stage, doing.unit = progress.stage[:40], progress.unit[:20]
        doing.done, doing.total = max(0, progress.done), max(1, progress.total)
        doing.rate = (progress.done - doing.stage_done) / max(0.1, now - doing.stage_began)


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


def _do(state: AppState, what: e.ModelWord | e.PageWord | e.CompareWord | e.FileWord) -> list[e.Effect]:
    match what:
        case "measure":
            return measure(state)
        case "stop measuring":
            return [e.Cancel("measure")]
        case "reset settings":
            state.preferences.sampling = {}
            return []
        case "generate" | "stop" | "continue" | "regenerate" | "undo" | "redo" | "earlier" | "later":
            return page.do(state, what)
        case "compare" | "stop compare" | "add column" | "remove column":
            return comparison.do(state, what)
        case (
            "new"
            | "open"
            | "save"
            | "save as"
            | "quit"
            | "confirmed"
            | "dismissed"
            | "restore"
            | "forget"
            | "close files"
        ):
            return files.do(state, what)
        case _:
            assert_never(what)
