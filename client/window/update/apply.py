"""apply(state, message): what the user did and what happened outside change the state, and effects follow.

No file, no socket, no clock: time comes with Tick. What is to be written waits in act.py; the text is handled in
page.py, generation.py and branches.py, how it is seen in seeing.py, models in models.py, comparison and export in
comparison.py, opening and saving in files.py, the connection in connection.py.
"""

from __future__ import annotations

from typing import assert_never

from client.window import events as e
from client.window.state import AppState
from client.window.update import act, branches, comparison, connection, files, models, notices, page, seeing
from protocol import messages as m
from protocol.connection import Event as Reply
from protocol.errors import Gpt2dError, NotGpt2d, NotLoaded

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


def apply(state: AppState, message: e.Message) -> list[e.Effect]:
    """Change the state; return what is to be done outside."""
    match message:
        case e.Tick(now, unix):
            state.now = now
            notices.expire(state)
            comparison.tick(state)
            return [*connection.look(state), *page.tick(state, unix)]
        case e.Replied():
            return _replied(state, message)
        case e.Connect():
            return connection.connect(state)
        case e.Disconnect():
            return [*connection.left(state, ""), e.CloseLink()]
        case e.NotConnected(error):
            return connection.left(state, error)
        case e.Broken():
            return connection.broken(state)
        case e.Kept():
            connection.kept(state, message)
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
            connection.enter(state, value)
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
        case e.Unanswered():
            notices.inform(
                state, "clipboard", "the program in which you copied does not answer; copy once more, elsewhere"
            )
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
            return connection.looked(state, event, took_ms)
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
