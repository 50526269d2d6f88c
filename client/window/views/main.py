"""The whole window: menu, panels and their places, dialogs. ui(state) -> actions; it knows nothing of its runner."""

from __future__ import annotations

from collections.abc import Callable

from imgui_bundle import ImVec2, imgui

from client.window import chords
from client.window.events import Action, CancelLoad, Connect, Disconnect, Do, LoadModel, Prefer
from client.window.state import PANELS, AppState
from client.window.views import (
    branches,
    compare,
    connection,
    dialogs,
    history,
    inference,
    models,
    page,
    sampling,
    settings,
    tokens,
    tree,
    widgets,
)

SETTLE = 3
"""Number of frames until new panels are in their places."""
DRAWN: dict[str, Callable[[AppState], list[Action]]] = {
    "Connection": connection.draw,
    "Model": models.draw,
    "Sampling": sampling.draw,
    "Inference": inference.draw,
    "Tokens": tokens.draw,
    "Tree": tree.draw,
    "History": history.draw,
    "Compare": compare.draw,
    "Settings": settings.draw,
}


def ui(state: AppState, page_font: imgui.ImFont | None = None) -> list[Action]:
    """Draw one frame."""
    actions = [*draw_menu(state), *chords.struck(state, page.keys())]
    dock = imgui.dock_space_over_viewport(imgui.get_id("dock"))
    if not state.preferences.layout and state.arrange:
        arrange(dock)
        state.arrange, state.focus_page = False, SETTLE
    if imgui.begin("Page"):
        actions += page.draw(state, page_font)
    imgui.end()
    for name, draw in DRAWN.items():
        if name not in state.preferences.closed:
            opened, stays = imgui.begin(name, True)
            if opened:
                imgui.push_id(name)
                actions += draw(state)
                imgui.pop_id()
            imgui.end()
            if not stays:
                actions.append(Prefer("closed", [*state.preferences.closed, name]))
    if state.focus_page:
        imgui.set_window_focus("Page")
        state.focus_page -= 1
    if "Keys" not in state.preferences.closed:
        imgui.set_next_window_pos(imgui.get_main_viewport().get_center(), imgui.Cond_.appearing, ImVec2(0.5, 0.5))
        opened, stays = imgui.begin("Keys", True, imgui.WindowFlags_.always_auto_resize | imgui.WindowFlags_.no_docking)
        if opened:
            dialogs.draw_keys()
        imgui.end()
        if not stays:
            actions.append(Do("keys"))
    return [*actions, *branches.draw(state), *dialogs.draw(state)]


def toggle(state: AppState, panel: str) -> Action:
    closed = state.preferences.closed
    return Prefer("closed", [p for p in closed if p != panel] if panel in closed else [*closed, panel])


def draw_menu(state: AppState) -> list[Action]:
    actions = list[Action]()
    if not imgui.begin_main_menu_bar():
        return actions
    writing = state.page.generating is not None
    menus: dict[str, tuple[tuple[str, Action, bool], ...]] = {
        "File": (
            ("New", Do("new"), True),
            ("Open", Do("open"), True),
            ("Save", Do("save"), True),
            ("Save as", Do("save as"), True),
            ("Quit", Do("quit"), True),
        ),
        "Edit": (
            ("Undo", Do("undo"), state.page.document.can_undo),
            ("Redo", Do("redo"), state.page.document.can_redo),
        ),
        "Write": (
            ("Generate", Do("generate"), not writing),
            ("Continue", Do("continue"), not writing),
            ("Regenerate", Do("regenerate"), not writing),
            ("Write 4 branches", Do("branches"), not writing),
            ("Stop", Do("stop"), writing),
            ("Earlier continuation", Do("earlier"), not writing),
            ("Later continuation", Do("later"), not writing),
        ),
        "Server": (
            ("Connect", Connect(), True),
            ("Disconnect", Disconnect(), state.link.status != "off"),
            ("Load the model", LoadModel(), state.models.loading is None),
            ("Cancel loading", CancelLoad(), state.models.loading is not None),
        ),
    }
    for title, items in menus.items():
        if imgui.begin_menu(title):
            for label, action, able in items:
                if imgui.menu_item(label, chords.keys_of(action), False, able)[0]:
                    actions.append(action)
            imgui.end_menu()
    if imgui.begin_menu("View"):
        for panel in PANELS:
            if imgui.menu_item(
                panel, chords.keys_of(Do("keys")) if panel == "Keys" else "", panel not in state.preferences.closed
            )[0]:
                actions.append(toggle(state, panel))
        imgui.separator()
        if imgui.menu_item("Reset the layout", "", False)[0]:
            state.preferences.layout, state.arrange = "", True
        imgui.end_menu()
    if state.notices:
        notice = state.notices[-1]
        imgui.same_line(imgui.get_window_width() - imgui.calc_text_size(notice.text).x - imgui.get_font_size())
        widgets.colored(notice.text, "bad" if notice.kind == "failed" else "accent")
    imgui.end_main_menu_bar()
    return actions


def arrange(dock: int) -> None:
    """Put the panels in their first places."""
    i = imgui.internal
    i.dock_builder_remove_node(dock)
    i.dock_builder_add_node(dock, i.DockNodeFlagsPrivate_.dock_space)
    i.dock_builder_set_node_size(dock, imgui.get_main_viewport().work_size)
    left = i.dock_builder_split_node(dock, imgui.Dir.left, 0.24)
    right = i.dock_builder_split_node(left.id_at_opposite_dir, imgui.Dir.right, 0.29)
    middle = i.dock_builder_split_node(right.id_at_opposite_dir, imgui.Dir.down, 0.26)
    model = i.dock_builder_split_node(left.id_at_dir, imgui.Dir.down, 0.74)
    sampling_node = i.dock_builder_split_node(model.id_at_dir, imgui.Dir.down, 0.5)
    past = i.dock_builder_split_node(right.id_at_dir, imgui.Dir.down, 0.35)
    places = {
        "Connection": model.id_at_opposite_dir,
        "Model": sampling_node.id_at_opposite_dir,
        "Sampling": sampling_node.id_at_dir,
        "Compare": middle.id_at_opposite_dir,
        "Page": middle.id_at_opposite_dir,
        "Tokens": middle.id_at_dir,
        "Tree": middle.id_at_dir,
        "Inference": past.id_at_opposite_dir,
        "History": past.id_at_dir,
        "Settings": past.id_at_dir,
    }
    for name, node in places.items():
        i.dock_builder_dock_window(name, node)
    i.dock_builder_finish(dock)
