"""The continuations of the page as a tree: a click shows the page with one of them."""

from __future__ import annotations

from imgui_bundle import ImVec2, imgui

from client import replicas
from client.window.chords import keys_of
from client.window.events import Action, Do, GoTo, KeepNode, NameNode, PruneNode
from client.window.state import AppState
from client.window.tree import Node
from client.window.views import widgets
from client.window.views.toasts import short

SHOWN = 60
"""Most characters of a take that its row shows."""
DOT = "\u2022"
MAX_DEPTH = 16
"""Rows that are deeper are not indented further."""


def draw(state: AppState) -> list[Action]:
    page, actions = state.page, list[Action]()
    tree = page.tree
    span = page.document.written.at(page.document.cursor)
    at = tree.nodes.get(span.node) if span else None
    imgui.begin_disabled(page.busy)
    if imgui.button("Write 4 branches"):
        actions.append(Do("branches"))
    key = keys_of(Do("branches"))
    widgets.tip(f"Four continuations from the cursor at once ({key}), side by side; those that you do not take stay.")
    imgui.end_disabled()
    if not tree.nodes:
        imgui.text_wrapped("Every continuation of the page is kept here, with those that you changed.")
        return actions
    if at:
        imgui.same_line()
        imgui.set_next_item_width(-1)
        changed, name = imgui.input_text_with_hint("##name", "name of the branch at the cursor", at.name)
        if changed:
            actions.append(NameNode(at.id, name))
    shown = {each.node for each in page.document.spans}
    rows = tree.rows()
    if imgui.begin_child("branches"):
        if tree.bare.text and imgui.selectable("the page without continuations###node 0", False)[0]:
            actions.append(GoTo(0))
        clipper = imgui.ListClipper()
        clipper.begin(len(rows))
        while clipper.step():
            for depth, node in rows[clipper.display_start : clipper.display_end]:
                actions += draw_row(state, depth, node, node.id in shown, node is at)
    imgui.end_child()
    return actions


def draw_row(state: AppState, depth: int, node: Node, shown: bool, at: bool) -> list[Action]:
    actions = list[Action]()
    indent = imgui.get_font_size() * 0.9 * min(depth, MAX_DEPTH)
    style = imgui.get_style()
    buttons = imgui.calc_text_size("keptprune").x + 4 * style.frame_padding.x + 3 * style.item_spacing.x
    imgui.push_id(node.id)
    imgui.set_cursor_pos_x(imgui.get_cursor_pos_x() + indent)
    width = max(imgui.get_font_size() * 5, imgui.get_content_region_avail().x - buttons)
    imgui.push_style_color(imgui.Col_.text, widgets.color("text" if shown else "dim"))
    label = f"{DOT if shown else '  '} {title(node)}###node {node.id}"
    if imgui.selectable(label, at, imgui.SelectableFlags_.none, ImVec2(width, 0))[0]:
        actions.append(GoTo(node.id))
    imgui.pop_style_color()
    if imgui.is_item_hovered(imgui.HoveredFlags_.for_tooltip):
        entry = state.history.entry(node.entry)
        by = f"{replicas.name(entry.result)}\n" if entry else ""
        imgui.set_tooltip(widgets.printable(by + node.text[:1000]))
    imgui.same_line()
    if imgui.small_button(f"{'kept' if node.kept else 'keep'}###keep"):
        actions.append(KeepNode(node.id))
    widgets.tip("What is kept is never forgotten, and not pruned by mistake.")
    imgui.same_line()
    imgui.begin_disabled(shown or node.kept or state.page.generating is not None)
    if imgui.small_button("prune"):
        actions.append(PruneNode(node.id))
    imgui.end_disabled()
    imgui.pop_id()
    return actions


def title(node: Node) -> str:
    """Return what a row says of a take: its name, or its first words."""
    words = short(node.text, SHOWN) or "(empty)"
    how = {"edited": "  (edited)", "token": "  (another token)"}.get(node.source, "")
    return widgets.item(f"{node.name}: {words}" if node.name else f"{words}{how}")
