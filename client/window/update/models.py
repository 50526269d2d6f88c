"""Part of update.apply for models: which there are, which is chosen, loading, measuring and unloading."""

from __future__ import annotations

from client import replicas
from client.amounts import counted
from client.window import events as e
from client.window.state import GOES_ON, AppState, Doing
from client.window.update import notices
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import Cancelled, Gpt2dError

LOAD_S = MEASURE_S = 3600.0
CALIBRATE_S = 4 * 3600.0
UNLOAD_S = 60.0
CONTROL_S = 10.0
MAX_MODELS = 500
AGAIN: dict[e.Tag, tuple[str, e.LoadModel | e.Do]] = {
    "load": ("Load", e.LoadModel()),
    "measure": ("Measure", e.Do("measure")),
    "calibrate": ("Calibrate", e.Do("calibrate")),
}
"""What each is called that can be tried again."""


def listed(state: AppState, event: Reply) -> None:
    if isinstance(event, m.ModelList):
        state.models.known, state.models.listed = event.models[:MAX_MODELS], True
        notices.drop(state, "models")
        chosen, way = state.models.chosen(), state.models.way[1:]
        if not chosen:
            choose(state, *(_kept_choice(state) or _first_choice(state)))
        elif way not in {(p.engine, p.precision) for p in chosen.precisions}:
            choose(state, *state.models.way)
    elif state.link.status in GOES_ON:
        notices.warn(state, "models", f"the models could not be listed: {event}")


def _kept_choice(state: AppState) -> tuple[str, str, str] | None:
    """Return what was chosen in the last session, if this server has it and this key may load it."""
    kept = state.preferences.chosen
    ways = [(i.name, p.engine, p.precision) for i in state.models.known for p in i.precisions if not i.problem]
    return next((way for way in ways if list(way) == kept and state.may_load), None)


def _first_choice(state: AppState) -> tuple[str, str, str]:
    """Return what is loaded, else the first model that can be."""
    names = {info.name for info in state.models.known}
    for worker in state.link.workers:
        if worker.model in names:
            return replicas.way(worker)
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
    models.replicas, models.cache = None, ""
    state.page.uncount()
    notices.drop(state, "load", "measure", "calibrate", "page")


def load(state: AppState) -> list[e.Effect]:
    models = state.models
    if not models.model or models.loading or state.link.status != "ready":
        return []
    notices.drop(state, "load", "model")
    models.loading = _begin(state)
    request = m.Load(
        model=models.model,
        engine=models.engine or None,
        precision=models.precision or None,
        compile=models.compile and state.compiles and not state.loaded,  # what is loaded stays as it is
        cache=None if state.loaded else models.cache or None,
        replicas=state.wanted,
        stream=True,
    )
    return [e.Send("load", request, LOAD_S)]


def measure(state: AppState) -> list[e.Effect]:
    models = state.models
    if not models.model or models.measuring or state.link.status != "ready":
        return []
    notices.drop(state, "measure")
    models.measuring = _begin(state)
    request = m.Measure(model=models.model, engine=models.engine, precision=models.precision, stream=True)
    return [e.Send("measure", request, MEASURE_S)]


def calibrate(state: AppState) -> list[e.Effect]:
    models = state.models
    if not models.model or models.calibrating or state.link.status != "ready":
        return []
    notices.drop(state, "calibrate")
    models.calibrating = _begin(state)
    return [e.Send("calibrate", m.Calibrate(model=models.model, stream=True), CALIBRATE_S)]


def _begin(state: AppState) -> Doing:
    """Begin a load, a measurement or a calibration of what is chosen."""
    return Doing(replicas.name(state.models.way), stage_began=state.now)


def worked(state: AppState, tag: e.Tag, event: Reply) -> list[e.Effect]:
    """A load, a measurement or a calibration went on, or ended."""
    models = state.models
    doing = {"load": models.loading, "measure": models.measuring}.get(tag, models.calibrating)
    if isinstance(event, m.Progress):
        _advance(doing, event, state.now)
        return []
    if tag == "load":
        models.loading = None
    elif tag == "measure":
        models.measuring = None
    else:
        models.calibrating = None
    if isinstance(event, m.Loaded):
        way = replicas.way(event)
        learn(state, event)
        if state.models.way in {way, (event.model, "", "")}:  # else another one has been chosen since
            choose(state, *way)
        took = "is loaded" if event.already else f"loaded in {event.load_ms / 1000:.1f} s"
        each = f"{counted(event.replicas, 'replica')} of " if event.replicas != 1 else ""
        name = replicas.name(way)
        notes = "".join(f"; note: {notice}" for notice in event.notices)
        notices.inform(state, "model", f"{name} {took}, {each}{event.rss_bytes / 1e6:.0f} MB{notes}")
    elif isinstance(event, m.Measured):
        name, change = replicas.name(event), event.fidelity.perplexity_change_pct
        notices.inform(state, "model", f"{name}: perplexity {change:+.2f} % against full precision")
    elif isinstance(event, m.Calibrated):
        name = replicas.name(event)
        loaded = any(replicas.name(worker) == name for worker in state.link.workers)
        then = "; unload it and load it again" if loaded else "; the next load takes it"
        notices.inform(state, "model", f"{name} is calibrated{then}")
    elif isinstance(event, Gpt2dError):
        failed(state, tag, doing, event)
    return refresh(state)


def learn(state: AppState, loaded: m.Loaded) -> None:
    """Note what a load says of the model's tokenizer."""
    if loaded.byte_level:
        state.models.byte_level |= {loaded.model}


def failed(state: AppState, tag: e.Tag, doing: Doing | None, error: Gpt2dError) -> None:
    """Say why a load, a measurement or a calibration did not come to its end, unless that was the user's wish."""
    if isinstance(error, Cancelled):
        return
    name, again = AGAIN[tag]
    if doing is None or doing.name != replicas.name(state.models.way):  # another one has been chosen since
        notices.warn(state, tag, str(error))
    else:
        notices.warn(state, tag, str(error), again, f"{name} {doing.name} again")


def unload(state: AppState, model: str, engine: str, precision: str) -> list[e.Effect]:
    going = state.page.generating
    if going and going.way == (model, engine, precision):
        going.unloads = True
    return [e.Send("unload", m.Unload(model=model, engine=engine, precision=precision), UNLOAD_S)]


def unloaded(state: AppState, event: Reply) -> list[e.Effect]:
    going = state.page.generating
    if isinstance(event, m.Unloaded):
        notices.inform(state, "model", f"unloaded {', '.join(event.names)}")
    elif isinstance(event, Gpt2dError):
        notices.warn(state, "model", str(event))
    if going and isinstance(event, Gpt2dError):
        going.unloads = False  # whoever unloads it later is another
    return refresh(state)


def refresh(state: AppState) -> list[e.Effect]:
    """Ask the server again for what it has."""
    state.link.next_look = state.now
    return [e.Send("models", m.Models(), CONTROL_S), e.Send("stats", m.GetStats(), CONTROL_S)]


def _advance(doing: Doing | None, progress: m.Progress, now: float) -> None:
    if doing:
        if progress.stage != doing.stage:
            doing.stage_began, doing.stage_done = now, progress.done
        doing.stage, doing.unit = progress.stage[:40], progress.unit[:20]
        doing.done, doing.total = max(0, progress.done), max(1, progress.total)
        doing.rate = (progress.done - doing.stage_done) / max(0.1, now - doing.stage_began)
