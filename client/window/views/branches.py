"""Continuations that are written at once, side by side over the page, while they are written and until one is taken."""

from __future__ import annotations

from imgui_bundle import ImVec2, imgui

from client.window.events import Action, Do, Take
from client.window.state import AppState
from client.window.tree import Node
from client.window.views import widgets

SHARE = 0.45
"""Share of the page's height that they take where there is nothing below it."""
LEAST = 9.0
"""Least height, in font sizes."""
FLAGS = (
    imgui.WindowFlags_.no_docking
    | imgui.WindowFlags_.no_saved_settings
    | imgui.WindowFlags_.no_focus_on_appearing
    | imgui.WindowFlags_.no_collapse
    | imgui.WindowFlags_.no_move
    | imgui.WindowFlags_.no_resize
)


def draw(state: AppState) -> list[Action]:
    actions, tree = list[Action](), state.page.tree
    nodes = [tree.nodes[node] for node in state.page.batch if node in tree.nodes]
    page = imgui.internal.find_window_by_name("Page")
    if not nodes or page is None:
        return actions
    margin = imgui.get_font_size() * 0.5
    view, least = imgui.get_main_viewport(), imgui.get_font_size() * LEAST
    end = page.pos.y + page.size.y
    below = view.work_pos.y + view.work_size.y - end
    if below >= least:  # over the drawer: the page stays in sight
        top, height = end, below - margin
    else:
        height = max(page.size.y * SHARE, least)
        top = end - height - imgui.get_frame_height_with_spacing() * 1.5
    imgui.set_next_window_pos(ImVec2(page.pos.x + margin, top))
    imgui.set_next_window_size(ImVec2(page.size.x - 2 * margin, height))
    drawn, stays = imgui.begin("Branches: take one, the others stay in the tree###Branches", True, FLAGS)
    if drawn and imgui.begin_table("columns", len(nodes), imgui.TableFlags_.borders_inner_v):
        span = {each.node for each in state.page.document.spans}
        for number, node in enumerate(nodes, 1):
            imgui.table_next_column()
            actions += draw_column(number, node, node.id in span, state.page.generating is not None)
        imgui.end_table()
    imgui.end()
    return actions if stays else [*actions, Do("close branches")]


def draw_column(number: int, node: Node, shown: bool, live: bool) -> list[Action]:
    """Draw one of them: its end while it is written, then its beginning."""
    taken = imgui.button(f"Take {number}###take {number}")
    if shown:
        imgui.same_line()
        widgets.colored("on the page", "accent")
    if imgui.begin_child(f"column {number}"):
        imgui.text_wrapped(widgets.printable(node.text.lstrip() or "\u2026"))
        storage, key = imgui.get_state_storage(), imgui.get_id("live")
        if live and imgui.get_scroll_y() >= imgui.get_scroll_max_y():
            imgui.set_scroll_here_y(1.0)
        elif not live and storage.get_bool(key):
            imgui.set_scroll_y(0.0)
        storage.set_bool(key, live)
        if imgui.is_window_hovered():
            imgui.set_mouse_cursor(imgui.MouseCursor_.hand)
            taken = taken or imgui.is_mouse_clicked(imgui.MouseButton_.left)
    imgui.end_child()
    return [Take(node.id)] if taken else []
