"""apply(state, message): what the user did and what happened outside change the state, and what is to be done follows.

No file, no socket, no clock: time comes with Tick. The page is in writing.py, comparison and history in comparing.py,
opening and saving in files.py.
"""

from __future__ import annotations

from msgspec.structs import replace

from client import replicas
from client.window import events as e
from client.window.parameters import usable
from client.window.state import AppState, Doing, Status
from client.window.update import comparison as comparing, files, page as writing
from client.window.update.comparison import LOAD_S
from protocol import messages as m
from protocol.errors import (
    Cancelled,
    ConnectionFailed,
    ConnectionLost,
    Gpt2dError,
    KeyRefused,
    NoServer,
    NotGpt2d,
    RequestError,
    ServerRestarted,
    ServerStuck,
)

LOOK_S, RETRY_S, LOOK_TIMEOUT_S = 3.0, 2.0, 4.0
MEASURE_S = LOAD_S
UNLOAD_S = 60.0
CONTROL_S = 10.0
NOTICE_S = 8.0
MAX_RECENT, MAX_MODELS = 10, 500


def apply(state: AppState, message: e.Message) -> list[e.Effect]:
    """Change the state; return what is to be done outside."""
    match message:
        case e.Tick(now, unix):
            state.now = now
            if state.notice and now > state.notice_at + NOTICE_S:
                state.notice = ""
            return [*_look(state), *writing.tick(state, unix)]
        case e.Replied(tag, event, took_ms):
            return _replied(state, tag, event, took_ms)
        case e.Connect():
            return connect(state)
        case e.Disconnect():
            state.link.status, state.link.trouble, state.link.looking = "off", "", False
            return [*_lost(state, "disconnected"), e.CloseLink()]
        case e.NotConnected(error):
            state.link.status, state.link.trouble, state.link.looking = "off", error, False
            return _lost(state, error)
        case e.Broken():
            if state.link.status == "ready":
                return _trouble(state, ConnectionLost("the connection broke; making it anew"))
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
        case _:
            return [*writing.apply(state, message), *comparing.apply(state, message), *files.apply(state, message)]
    return []


# The connection


def connect(state: AppState) -> list[e.Effect]:
    link = state.link
    lost = _lost(state, "connecting anew") if link.status != "off" else []
    link.status, link.trouble, link.since, link.info, link.next_look, link.looking = (
        "connecting",
        "",
        state.now,
        None,
        state.now,
        False,
    )
    state.preferences.server = link.server.partition("#")[
        0
    ].strip()  # a connect line is a secret; once it works it is kept apart
    return [*lost, e.OpenLink(link.server.strip(), link.server_key.strip(), link.key_file.strip())]


def _look(state: AppState) -> list[e.Effect]:
    """Ask the server for a sign of life when it is time."""
    link = state.link
    if link.status == "off" or link.looking or state.now < link.next_look:
        return []
    link.looking = True
    return [e.Send("look", m.Ping() if link.status == "ready" else m.Hello(client="gpt2d window"), LOOK_TIMEOUT_S)]


def _looked(state: AppState, event: object, took_ms: float) -> list[e.Effect]:
    link = state.link
    link.looking = False
    if link.status == "off":
        return []
    if isinstance(event, m.ServerInfo):
        return _met(state, event)
    if isinstance(event, m.Pong):
        if link.info and event.server_id != link.info.server_id:
            return _trouble(state, ServerRestarted("the server was restarted"))
        link.rtt_ms, link.workers = took_ms, event.workers[:MAX_MODELS]
        link.next_look = state.now + LOOK_S
        return [e.Send("stats", m.GetStats(), CONTROL_S)] if any(w.running for w in link.workers) else []
    if isinstance(event, Gpt2dError):
        return _trouble(state, event)
    return []


def _met(state: AppState, info: m.ServerInfo) -> list[e.Effect]:
    """The server has said who it is."""
    link = state.link
    before = link.info
    restarted = before is not None and before.server_id != info.server_id
    if restarted:
        files.notify(state, "the server was restarted: what it had loaded is gone")
    elif link.status in {"lost", "stuck"}:
        files.notify(state, "connected again")
    link.status, link.trouble, link.next_look, link.since = "ready", "", state.now, state.now
    link.info = replace(info, parameters=[*{p.name: p for p in info.parameters if usable(p)}.values()])
    name = link.server.partition("#")[0].strip()
    state.preferences.recent = [name, *(r for r in state.preferences.recent if r != name)][:MAX_RECENT]
    state.preferences.sampling = state.fitting(state.settings)  # the others are another version's
    state.page.counted = -1
    return [e.KeepServer(), e.Send("models", m.Models(), CONTROL_S), e.Send("stats", m.GetStats(), CONTROL_S)]


def _trouble(state: AppState, error: Gpt2dError) -> list[e.Effect]:
    link = state.link
    kinds: list[tuple[type[Gpt2dError] | tuple[type[Gpt2dError], ...], Status]] = [
        ((ServerRestarted, ConnectionLost), "lost"), (KeyRefused, "refused"), (ServerStuck, "stuck"), ((NoServer, NotGpt2d), "lost"),
        (ConnectionFailed, "lost"), (RequestError, "refused"),
    ]  # fmt: skip
    status: Status = next((word for kind, word in kinds if isinstance(error, kind)), "stuck")
    if link.status != status:
        link.since = state.now
    was_ready = link.status == "ready"
    link.status, link.trouble = status, str(error)
    # What was lost with a connection is asked for at once; a server that is not there, every other second.
    link.next_look = state.now if was_ready and status == "lost" else state.now + RETRY_S
    return _lost(state, str(error)) if status != "stuck" else []


def _lost(state: AppState, why: str) -> list[e.Effect]:
    """There is no server to talk to: what was under way is over."""
    state.link.workers, state.link.worker_stats = [], []
    if state.models.loading or state.models.measuring:
        state.models.loading, state.models.measuring, state.models.error = None, None, why
    writing.lost(state, why)
    comparing.lost(state, why)
    return []


def _replied(state: AppState, tag: str, event: object, took_ms: float) -> list[e.Effect]:
    match tag:
        case "look":
            return _looked(state, event, took_ms)
        case "models":
            if isinstance(event, m.ModelList):
                state.models.known = event.models[:MAX_MODELS]
                if not state.models.chosen():
                    choose(state, *_first_choice(state))
        case "stats":
            if isinstance(event, m.Stats):
                state.link.worker_stats = event.workers[:MAX_MODELS]
                state.link.memory = event.rss_bytes + sum(w.rss_bytes for w in event.workers)
        case "load" | "measure":
            return _worked(state, tag, event)
        case "unload":
            files.notify(state, f"unloaded {', '.join(event.names)}" if isinstance(event, m.Unloaded) else str(event))
            return _refresh(state)
        case _:
            return [*writing.replied(state, tag, event, took_ms), *comparing.replied(state, tag, event)]
    return []


def _refresh(state: AppState) -> list[e.Effect]:
    state.link.next_look = state.now
    return [e.Send("models", m.Models(), CONTROL_S), e.Send("stats", m.GetStats(), CONTROL_S)]


# Models


def _first_choice(state: AppState) -> tuple[str, str, str]:
    """What is loaded, else the first model that can be."""
    for worker in state.link.workers:
        return worker.model, worker.engine, worker.precision
    for info in state.models.known:
        for p in info.precisions:
            if p.loaded:
                return info.name, p.engine, p.precision
    usable = next((info for info in state.models.known if not info.problem), None)
    return (usable.name, "", "") if usable else ("", "", "")


def choose(state: AppState, model: str, engine: str, precision: str) -> None:
    """Choose a model; an engine or precision that it does not have gives way to its first one."""
    models = state.models
    models.model = model
    info = models.chosen()
    ways = [(p.engine, p.precision) for p in info.precisions] if info else []
    same = [way for way in ways if way[0] == engine] or ways
    models.engine, models.precision = (
        (engine, precision) if (engine, precision) in ways else (same[0] if same else ("", ""))
    )
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
    return [
        e.Send(
            "measure",
            m.Measure(model=models.model, engine=models.engine, precision=models.precision, stream=True),
            MEASURE_S,
        )
    ]


def _begin(state: AppState) -> Doing:
    """A load or a measurement of what is chosen."""
    models = state.models
    models.error = ""
    return Doing(f"{models.model}/{models.engine}/{models.precision}", stage_began=state.now)


def _worked(state: AppState, tag: str, event: object) -> list[e.Effect]:
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
        files.notify(
            state, f"{event.model}/{event.engine}/{event.precision} {took}, {each}{event.rss_bytes / 1e6:.0f} MB"
        )
    elif isinstance(event, m.Measured):
        change = event.fidelity.perplexity_change_pct
        files.notify(
            state, f"{event.model}/{event.engine}/{event.precision}: perplexity {change:+.2f} % against full precision"
        )
    elif not isinstance(event, Cancelled):
        models.error = str(event)
    return _refresh(state)


def _advance(doing: Doing | None, told: m.Progress, now: float) -> None:
    if doing:
        if told.stage != doing.stage:
            doing.stage_began, doing.stage_done = now, told.done
        doing.stage, doing.unit = told.stage[:40], told.unit[:20]
        doing.done, doing.total = max(0, told.done), max(1, told.total)
        doing.rate = (told.done - doing.stage_done) / max(0.1, now - doing.stage_began)


# Settings


def _preset(state: AppState, message: e.Preset) -> None:
    presets, name = state.preferences.presets, message.name.strip()[:60]
    if message.what == "save" and name:
        presets[name] = dict(state.settings)
    elif message.what == "load" and name in presets:
        state.preferences.sampling = state.fitting(presets[name])
    elif message.what == "delete":
        presets.pop(name, None)


def _do(state: AppState, what: str) -> list[e.Effect]:
    match what:
        case "measure":
            return measure(state)
        case "stop measuring":
            return [e.Cancel("measure")]
        case "reset settings":
            state.preferences.sampling = {}
        case _:
            return [*writing.do(state, what), *comparing.do(state, what), *files.do(state, what)]
    return []
