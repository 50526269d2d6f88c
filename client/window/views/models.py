"""The Model panel: which model, how to load it, its progress, what is loaded now."""

from __future__ import annotations

from collections import Counter

from imgui_bundle import imgui

from client import replicas
from client.amounts import counted
from client.window.events import Action, CancelLoad, Choose, Do, Enter, LoadModel, Prefer, UnloadModel
from client.window.state import AppState
from client.window.views import connection, fidelity, widgets
from protocol import messages as m

PRECISIONS = {"fp32": "full precision", "bf16": "16 bits", "int8": "8 bits", "int4": "4 bits"}
STUCK_MS = 3000
BUILT_IN = "demo"
"""The model that every server has in itself."""
LINES = 5
"""Number of replicas that are shown at a time; the others are reached by scrolling."""


def draw(state: AppState) -> list[Action]:
    models, actions = state.models, list[Action]()
    if state.link.status != "ready" and not models.known:
        widgets.colored(connection.WORDS[state.link.status], connection.STATUS_COLORS.get(state.link.status, "bad"))
        imgui.text_wrapped(widgets.printable(state.link.trouble or "Its models are shown here."))
        if imgui.button("Choose a server"):
            closed = [panel for panel in state.preferences.closed if panel != "Connection"]
            actions.append(Prefer("closed", closed))
        return actions
    imgui.set_next_item_width(-1)
    if imgui.begin_combo("##Model", models.model or "choose a model"):
        for info in models.known:
            imgui.begin_disabled(bool(info.problem))
            if imgui.selectable(
                f"{widgets.item(describe(info))}###{widgets.item(info.name)}", info.name == models.model
            )[0]:
                actions.append(Choose(info.name, models.engine, models.precision))
            imgui.end_disabled()
            if why := info.problem or "\n".join(info.notices):
                widgets.tip(why)
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
        precision = widgets.combo(
            "##Precision", models.precision, [p.precision for p in ways if p.engine == models.engine]
        )
        widgets.tip("int8 and int4 take less memory and are faster; fp32 is full precision.")
        if engine or precision:
            actions.append(Choose(models.model, engine or models.engine, precision or models.precision))
        bits = PRECISIONS.get(models.precision, models.precision)
        memory = state.caches.get(models.cache, 0)
        imgui.text_wrapped(f"{bits}; {summary(chosen, models.engine, models.precision, memory)}")
        for notice in chosen.notices:
            widgets.wrapped(f"note: {notice}", "dim")
    way = next((p for p in ways if (p.engine, p.precision) == (models.engine, models.precision)), None)
    may = state.link.status == "ready" and state.may_load
    if models.loading:
        if widgets.progress(models.loading, "CancelLoad"):
            actions.append(CancelLoad())
    else:
        actions += draw_load(state, may=may and chosen is not None)
    for key in ("load", "measure", "calibrate"):
        if said := state.said(key):
            widgets.wrapped(said, "bad")
    actions += draw_loaded(state)
    if models.measuring:
        imgui.separator()
        if widgets.progress(models.measuring, "StopMeasuring"):
            actions.append(Do("stop measuring"))
    elif chosen and way:
        imgui.separator()
        actions += fidelity.draw(way, may=may and chosen.on_disk)
    if models.calibrating:
        if widgets.progress(models.calibrating, "StopCalibrating"):
            actions.append(Do("stop calibrating"))
    elif chosen and chosen.calibrate_s and chosen.name != BUILT_IN and models.way[1:] in calibrates(state):
        actions += fidelity.draw_calibration(chosen.calibrate_s, may=may)
    return actions


def calibrates(state: AppState) -> set[tuple[str, str]]:
    """Return the engines and precisions that a calibration makes better."""
    info = state.link.info
    return {(engine.name, precision) for engine in info.engines for precision in engine.calibrates} if info else set()


def draw_load(state: AppState, *, may: bool) -> list[Action]:
    """Draw the button that loads the chosen model or changes the number of its replicas, and the choices for it."""
    models, actions = state.models, list[Action]()
    if state.compiles and not state.loaded:
        changed, compiled = imgui.checkbox("compile", models.compile)
        widgets.tip(
            "Compile the model for the server's processor first: loading takes up to a minute longer, each step less."
        )
        if changed:
            actions.append(Enter("models", "compile", compiled))
        imgui.same_line()
    if len(state.caches) > 1 and not state.loaded:
        imgui.set_next_item_width(imgui.get_font_size() * 7)
        if cache := widgets.combo("KV cache", models.cache or next(iter(state.caches)), list(state.caches)):
            actions.append(Enter("models", "cache", cache))
        widgets.tip("What keys and values are kept as: int8 takes half the memory of fp16, and long texts are faster.")
    imgui.begin_disabled(not may)
    imgui.set_next_item_width(imgui.get_font_size() * 7)
    changed, number = imgui.input_int("replicas", models.replicas or state.replicas, 1, 8)
    widgets.tip("Number of processes that hold the model and share its requests; each needs memory of its own.")
    if changed:
        actions.append(Enter("models", "replicas", min(m.MAX_REPLICAS, max(1, number))))
    label = "Loaded" if state.loaded else "Load model and weights"
    if state.loaded and state.wanted:
        label = f"Set to {counted(state.wanted, 'replica')}"
    imgui.begin_disabled(state.loaded and not state.wanted)
    if imgui.button(f"{label}###Load", (-1, 0)):
        actions.append(LoadModel())
    imgui.end_disabled()
    imgui.end_disabled()
    return actions


def describe(info: m.ModelInfo) -> str:
    if info.problem:
        return f"{info.name}  cannot be loaded"
    where = "" if info.on_disk else f", download of {widgets.megabytes(info.file_bytes)}"
    return f"{info.name}  {info.parameters / 1e6:.0f} M{where}"


def summary(info: m.ModelInfo, engine: str, precision: str, memory: int = 0) -> str:
    """Return how much it takes, in words. `memory` is that of the chosen KV cache; 0: of the default."""
    ways = (p.memory_bytes for p in info.precisions if (p.engine, p.precision) == (engine, precision))
    memory = memory or next(ways, 0)
    disk = "built in" if info.name == BUILT_IN else "on the server's disk"
    if not info.on_disk:
        disk = f"not yet {disk}: a download of {widgets.megabytes(info.file_bytes)}"
    return f"about {widgets.megabytes(memory)} of memory; {disk}"


def draw_loaded(state: AppState) -> list[Action]:
    """Draw what is loaded now, with the memory that it takes."""
    actions = list[Action]()
    host = state.link.info.host if state.link.info else ""
    memory = Counter[replicas.Way]()
    for worker in state.link.worker_stats:
        memory[replicas.way(worker)] += worker.rss_bytes
    for way, group in replicas.by_way(state.link.workers).items():
        name = replicas.name(way)
        imgui.separator()
        imgui.text_wrapped(f"{name}, KV cache {group[0].cache}" if group[0].cache else name)
        where = replicas.place(group[0], group, host) if len(group) == 1 else ""
        widgets.wrapped(*condition(group, where, memory[way]))
        widgets.beside("Unload")
        imgui.begin_disabled(not state.may_load)
        if imgui.small_button(f"Unload###unload {name}"):
            actions.append(UnloadModel(*way))
        imgui.end_disabled()
        if not state.may_load:
            widgets.tip("This key may not unload models.")
        if len(group) > 1:
            draw_replicas(name, group, host)
    return actions


def draw_replicas(name: str, group: list[m.WorkerHealth], host: str) -> None:
    imgui.set_next_window_size_constraints((0, 0), (imgui.FLT_MAX, LINES * imgui.get_text_line_height_with_spacing()))
    if imgui.begin_child(f"##replicas {name}", (0, 0), imgui.ChildFlags_.auto_resize_y):
        for worker in group:
            words, color = condition([worker], replicas.place(worker, group, host))
            widgets.row(f"replica {worker.replica}", words, color, indent=5)
    imgui.end_child()


def condition(group: list[m.WorkerHealth], where: str, memory: int = 0) -> tuple[str, str]:
    """Return in words how the processes of a model are, taken together, and the color of the words."""
    still = [w.moved_ms_ago for w in group if w.state == "ready" and w.moved_ms_ago > STUCK_MS]
    ready = sum(w.state == "ready" for w in group) - len(still)
    words: str = group[0].state if len(group) == 1 else f"{ready} of {len(group)} ready"
    if still and len(group) == 1:
        words = f"has not moved for {still[0] / 1000:.0f} s"
    running, waiting = sum(w.running for w in group), sum(w.waiting for w in group)
    words = f"{where}: {words}" if where else words
    words += f", {widgets.megabytes(memory)}" if memory else ""
    words += f", {running} running" if running else ""
    words += f", {waiting} waiting" if waiting else ""
    if ready == len(group):
        return words, "good"
    return words, "bad" if still and not ready else "warn"
