"""Which model, how to load it, how far that is, what is loaded now."""

from __future__ import annotations

from imgui_bundle import imgui

from client.events import Action, CancelLoad, Choose, Do, Enter, LoadModel, UnloadModel
from client.state import AppState
from client.views import fidelity, widgets
from protocol import messages as m

PRECISIONS = {"fp32": "full precision", "bf16": "16 bits", "int8": "8 bits", "int4": "4 bits"}


def draw(state: AppState) -> list[Action]:
    models, actions = state.models, list[Action]()
    if state.link.status != "ready" and not models.known:
        imgui.text_wrapped("Connect to a server to see its models.")
        return actions
    imgui.set_next_item_width(-1)
    if imgui.begin_combo("##Model", models.model or "choose a model"):
        for info in models.known:
            imgui.begin_disabled(bool(info.problem))
            if imgui.selectable(f"{describe(info)}###{info.name}", info.name == models.model)[0]:
                actions.append(Choose(info.name, models.engine, models.precision))
            imgui.end_disabled()
            if info.problem:
                widgets.tip(info.problem)
        imgui.end_combo()
    chosen = models.chosen()
    ways = [] if chosen is None else chosen.precisions
    if chosen:
        half = (imgui.get_content_region_avail().x - imgui.get_style().item_spacing.x) / 2
        imgui.set_next_item_width(half)
        engine = widgets.combo("##Engine", models.engine, list(dict.fromkeys(p.engine for p in ways)))
        widgets.tip("What runs the model.")
        imgui.same_line()
        imgui.set_next_item_width(half)
        precision = widgets.combo("##Precision", models.precision, [p.precision for p in ways if p.engine == models.engine])
        widgets.tip("int8 and int4 take less memory and are faster; fp32 is full precision.")
        if engine or precision:
            actions.append(Choose(models.model, engine or models.engine, precision or models.precision))
        imgui.text_wrapped(f"{PRECISIONS.get(models.precision, models.precision)}; {summary(chosen, models.engine, models.precision)}")
    way = next((p for p in ways if (p.engine, p.precision) == (models.engine, models.precision)), None)
    may = state.link.status == "ready" and state.link.info is not None and state.link.info.role == "admin"
    if models.loading:
        if widgets.progress(models.loading, "CancelLoad"):
            actions.append(CancelLoad())
    else:
        loaded = way is not None and way.loaded
        if state.compiles and not loaded:
            changed, compiled = imgui.checkbox("compile", models.compile)
            widgets.tip("Translate the model for this processor first: the load takes up to a minute, the steps less time.")
            if changed:
                actions.append(Enter("models", "compile", compiled))
        imgui.begin_disabled(not may or chosen is None or loaded)
        if imgui.button("Loaded###Load" if loaded else "Load model and weights###Load", (-1, 0)):
            actions.append(LoadModel())
        imgui.end_disabled()
    if models.error:
        widgets.wrapped(models.error, "bad")
    actions += draw_loaded(state)
    if models.measuring:
        imgui.separator()
        if widgets.progress(models.measuring, "StopMeasuring"):
            actions.append(Do("stop measuring"))
    elif chosen and way:
        imgui.separator()
        actions += fidelity.draw(way, may=may and chosen.on_disk)
    return actions


def describe(info: m.ModelInfo) -> str:
    if info.problem:
        return f"{info.name}  cannot be loaded"
    where = "" if info.on_disk else f", download of {widgets.megabytes(info.file_bytes)}"
    return f"{info.name}  {info.parameters / 1e6:.0f} M{where}"


def summary(info: m.ModelInfo, engine: str, precision: str) -> str:
    memory = next((p.memory_bytes for p in info.precisions if (p.engine, p.precision) == (engine, precision)), 0)
    disk = "on the server's disk" if info.on_disk else f"not on the server's disk yet: a download of {widgets.megabytes(info.file_bytes)}"
    return f"about {widgets.megabytes(memory)} of memory; {disk}"


def draw_loaded(state: AppState) -> list[Action]:
    """What is loaded now, with what it takes."""
    actions = list[Action]()
    memory = {(w.model, w.engine, w.precision): w.rss_bytes for w in state.link.worker_stats}
    for worker in state.link.workers:
        name = (worker.model, worker.engine, worker.precision)
        imgui.separator()
        imgui.text_wrapped("/".join(name))
        stuck = worker.moved_ms_ago > 3000 and worker.state == "ready"
        words = f"has not moved for {worker.moved_ms_ago / 1000:.0f} s" if stuck else worker.state
        words += f", {widgets.megabytes(memory[name])}" if name in memory else ""
        words += f", {worker.running} running" if worker.running else ""
        words += f", {worker.waiting} waiting" if worker.waiting else ""
        widgets.colored(words, "bad" if stuck else "good" if worker.state == "ready" else "warn")
        imgui.same_line()
        if imgui.small_button(f"Unload###unload {'/'.join(name)}"):
            actions.append(UnloadModel(*name))
    return actions
