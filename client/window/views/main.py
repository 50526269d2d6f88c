"""The whole window: the bar at its top, the page, and around it what folds. ui(state) -> actions; it knows nothing of
its runner.

The page comes first: beside it lies a panel, below it a drawer, and each can be folded away. A window that is too small
for them shows the page alone, and lays over it what is asked for. The connection is a pill in the bar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from imgui_bundle import ImVec2, imgui

from client.window import chords
from client.window.events import Action, CancelLoad, Connect, Disconnect, Do, LoadModel, Prefer
from client.window.icons import ICONS
from client.window.preferences import DRAWER, POPOVERS, SIDE
from client.window.state import AppState
from client.window.views import (
    branches,
    compare,
    connection,
    dialogs,
    history,
    inference,
    menus,
    models,
    page,
    sampling,
    settings,
    toasts,
    tokens,
    tree,
    widgets,
)

Part: TypeAlias = Literal["side", "drawer"]
CLEAR = (0.0, 0.0, 0.0, 0.0)
SETTLE = 3
"""Number of frames until new panels are in their places."""
NARROW = 1000
"""Width at scale 1 below which the panels collapse."""
BAR_PADDING = 1.8
"""Height of the bar's margin, in that of a button."""
MENUS, OVER = "##MainMenuBar", "##over "
"""Name of Dear ImGui's window of the menus, and the beginning of those of the parts that lie over the page."""
SIDE_SHARE, DRAWER_SHARE = 0.26, 0.32
OVER_WIDTH = 26.0
"""Width of the side panel over the page, in font sizes."""
DRAWN: dict[str, Callable[[AppState], list[Action]]] = {
    "Model": models.draw,
    "Sampling": sampling.draw,
    "Inference": inference.draw,
    "Tokens": tokens.draw,
    "Tree": tree.draw,
    "History": history.draw,
    "Compare": compare.draw,
    "Connection": connection.draw,
    "Settings": settings.draw,
    "Keys": dialogs.draw_keys,
}
PARTS: dict[Part, tuple[str, ...]] = {"side": SIDE, "drawer": DRAWER}
FIXED = (
    imgui.WindowFlags_.no_docking
    | imgui.WindowFlags_.no_collapse
    | imgui.WindowFlags_.no_saved_settings
    | imgui.WindowFlags_.no_move
    | imgui.WindowFlags_.no_title_bar
)


def ui(state: AppState, page_font: imgui.ImFont | None = None) -> list[Action]:
    """Draw one frame."""
    actions = [] if state.focus_mode else draw_bar(state)
    if state.focus_page and not state.page.view.lent and page.keys() != "typed":
        imgui.internal.clear_active_id()  # a field in the page's own window would keep the keyboard
    actions += chords.struck(state, page.keys())
    imgui.push_style_color(imgui.Col_.window_bg, CLEAR)
    dock = imgui.dock_space_over_viewport(imgui.get_id("dock"))
    imgui.pop_style_color()
    if state.settling:
        imgui.set_window_focus(DRAWER[0])
        state.settling -= 1
    if not state.preferences.layout and state.arrange:
        arrange(dock)
        state.arrange, state.settling = False, SETTLE
        state.focus_page = SETTLE + 1
    narrow = is_narrow(state)
    if state.focus_mode:
        alone = imgui.WindowClass()
        alone.dock_node_flags_override_set = int(imgui.internal.DockNodeFlagsPrivate_.no_tab_bar)
        imgui.set_next_window_class(alone)
    state.page.view.bare, state.page.view.paper = bare("Page", dock), None
    # While one writes Tab is a character; a key that the page owned would be lost for Ctrl+Tab, too.
    if imgui.begin("Page", None, imgui.WindowFlags_.no_nav_inputs if state.page.view.keyboard else 0)[0]:
        actions += page.draw(state, page_font)
    imgui.end()
    for part, panels in () if state.focus_mode else PARTS.items():
        if narrow:
            actions += draw_over(state, part) if state.over == part else []
        elif part not in state.preferences.folded:
            actions += draw_docked(state, panels, dock)
    for name in POPOVERS:
        if name not in state.preferences.closed:
            actions += draw_popover(state, name)
    if imgui.internal.get_top_most_popup_modal() and not state.asks:  # a notice on top would get the keyboard from it
        state.focus_page, state.page.view.lent = max(1, state.focus_page), False
    if state.focus_page:
        imgui.set_window_focus("Page")
        state.focus_page -= 1
    actions += [*branches.draw(state), *toasts.draw(state), *dialogs.draw(state)]
    state.esc_closes = esc_closes()
    return actions


def esc_closes() -> bool:
    """True if Esc will close something: Dear ImGui closes its popups before the next frame can see them."""
    focused = imgui.get_current_context().nav_window
    name = focused.root_window.name if focused else ""
    popup = imgui.is_popup_open("", imgui.PopupFlags_.any_popup_id | imgui.PopupFlags_.any_popup_level)
    return popup or name in {MENUS, *POPOVERS} or name.startswith(OVER)


def bare(name: str, dock: int) -> bool:
    """Leave out the background of a panel that is docked: the frame was cleared to that colour. Where there is no
    graphics card, filling the window twice more takes two thirds of a frame's time. Return True if it is left out.
    """
    window = imgui.internal.find_window_by_name(name)
    node = window.dock_node if window else None
    docked = bool(node and imgui.internal.dock_node_get_root_node(node).id_ == dock)
    if docked:
        imgui.set_next_window_bg_alpha(0.0)
    return docked


def is_narrow(state: AppState) -> bool:
    return imgui.get_main_viewport().size.x < NARROW * state.preferences.scale * state.screen_scale


def draw_docked(state: AppState, panels: tuple[str, ...], dock: int) -> list[Action]:
    actions = list[Action]()
    for name in panels:
        if name in state.preferences.closed:
            continue
        bare(name, dock)
        # Panels that appear together would each come to the front, and the last one stay there.
        opened, stays = imgui.begin(name, True, imgui.WindowFlags_.no_focus_on_appearing)
        if opened:
            actions += draw_panel(state, name)
        imgui.end()
        if not stays:
            actions.append(toggle(state, name))
    return actions


def draw_panel(state: AppState, name: str) -> list[Action]:
    imgui.push_id(name)
    actions = DRAWN[name](state)
    imgui.pop_id()
    return actions


def draw_over(state: AppState, part: Part) -> list[Action]:
    """Draw the side panel or the drawer over the page, with a tab for each of its panels."""
    actions, view = list[Action](), imgui.get_main_viewport()
    place, room = view.work_pos, view.work_size
    if part == "side":
        size = ImVec2(min(imgui.get_font_size() * OVER_WIDTH, room.x), room.y)
    else:
        size = ImVec2(room.x, room.y * 0.6)
    imgui.set_next_window_pos((place.x + room.x - size.x, place.y + room.y - size.y))
    imgui.set_next_window_size(size)
    if imgui.begin(f"{OVER}{part}", None, FIXED | imgui.WindowFlags_.no_resize):
        if imgui.is_window_appearing():
            imgui.set_window_focus()
        if imgui.begin_tab_bar("panels"):
            for name in PARTS[part]:
                if imgui.begin_tab_item(name)[0]:
                    actions += draw_panel(state, name)
                    imgui.end_tab_item()
            if imgui.tab_item_button(f"{ICONS['x']}###close", imgui.TabItemFlags_.trailing):
                state.over = ""
            imgui.end_tab_bar()
        if is_left():
            state.over = ""
            actions += to_the_page()
    imgui.end()
    return actions


def draw_popover(state: AppState, name: str) -> list[Action]:
    """Draw a panel that hangs from the bar, until the focus goes elsewhere."""
    actions, view = list[Action](), imgui.get_main_viewport()
    size, room = imgui.get_font_size(), view.work_size
    margin = size * 0.5
    imgui.set_next_window_pos((view.work_pos.x + room.x - margin, view.work_pos.y + margin), 0, (1, 0))
    width = min(size * (30 if name == "Keys" else 26), room.x - 2 * margin)
    imgui.set_next_window_size_constraints((width, 0), (width, room.y - 2 * margin))
    imgui.push_style_color(imgui.Col_.window_bg, widgets.color("raised"))
    shown = imgui.begin(name, None, FIXED | imgui.WindowFlags_.always_auto_resize)
    imgui.pop_style_color()
    if shown:
        if imgui.is_window_appearing():
            imgui.set_window_focus()
        widgets.heading(name)
        actions += draw_panel(state, name)
        if is_left():
            actions += [toggle(state, name), *to_the_page()]
    imgui.end()
    return actions


def is_left() -> bool:
    """True if the focus has gone elsewhere from this window, or Esc is pressed that closes nothing smaller first."""
    if imgui.is_window_appearing():
        return False
    if not imgui.is_window_focused(imgui.FocusedFlags_.root_and_child_windows):
        # A click in the bar may be on what opens and closes it.
        return imgui.get_io().mouse_pos.y >= imgui.get_main_viewport().work_pos.y
    popup = imgui.is_popup_open("", imgui.PopupFlags_.any_popup_id | imgui.PopupFlags_.any_popup_level)
    return not popup and imgui.is_key_pressed(imgui.Key.escape, False)


def to_the_page() -> list[Action]:
    """Give the keyboard back to the page where Esc has left this window: Dear ImGui would give it to what lies on top,
    which may be a notice.
    """
    return [Do("to the page")] if imgui.is_window_focused(imgui.FocusedFlags_.root_and_child_windows) else []


def toggle(state: AppState, panel: str) -> Action:
    closed = state.preferences.closed
    return Prefer("closed", [p for p in closed if p != panel] if panel in closed else [*closed, panel])


def fold(state: AppState, part: Part) -> list[Action]:
    """Open or fold a part; in a small window, over the page."""
    if is_narrow(state):
        state.over = "" if state.over == part else part
        return []
    folded = state.preferences.folded
    return [Prefer("folded", [p for p in folded if p != part] if part in folded else [*folded, part])]


def draw_bar(state: AppState) -> list[Action]:
    """Draw the menus, and at the right the connection, what folds, and the settings."""
    actions, padding = list[Action](), imgui.get_style().frame_padding
    imgui.push_style_var(imgui.StyleVar_.frame_padding, (padding.x, padding.y * BAR_PADDING))
    opened = imgui.begin_main_menu_bar()
    imgui.pop_style_var()
    if not opened:
        return actions
    writing, still = state.page.busy, state.page.generating is None
    entries: dict[str, tuple[menus.Item, ...]] = {
        "File": (
            ("New", Do("new"), True),
            ("Open", Do("open"), True),
            ("Save", Do("save"), True),
            ("Save as", Do("save as"), True),
            ("Quit", Do("quit"), True),
        ),
        "Edit": (
            ("Undo", Do("undo"), still and state.page.document.can_undo),
            ("Redo", Do("redo"), still and state.page.document.can_redo),
            *menus.editing(state),
            ("Find", Do("find"), True),
            ("Find and replace", Do("find and replace"), True),
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
            ("Reconnect" if state.link.status != "off" else "Connect", Connect(), True),
            ("Disconnect", Disconnect(), state.link.status != "off"),
            ("Load the model", LoadModel(), state.models.loading is None),
            ("Cancel loading", CancelLoad(), state.models.loading is not None),
        ),
    }
    if state.open_menus:
        imgui.open_popup("File")
        state.open_menus = False
    for title, items in entries.items():
        if imgui.begin_menu(title):
            actions += menus.draw(items)
            actions += dialogs.draw_recent(state) if title == "File" else []
            imgui.end_menu()
    if imgui.begin_menu("View"):
        actions += draw_view_menu(state)
        imgui.end_menu()
    if imgui.is_window_focused() and imgui.is_key_pressed(imgui.Key.escape, False):
        actions.append(Do("to the page"))
    actions += draw_right(state)
    imgui.end_main_menu_bar()
    return actions


def draw_view_menu(state: AppState) -> list[Action]:
    actions, narrow = list[Action](), is_narrow(state)
    labels: dict[Part, str] = {"side": "Side panel", "drawer": "Drawer"}
    for part, label in labels.items():
        shown = state.over == part if narrow else part not in state.preferences.folded
        if imgui.menu_item(label, "", shown)[0]:
            actions += fold(state, part)
    if not narrow:  # there each is a tab
        imgui.separator()
    for panel in () if narrow else (*SIDE, *DRAWER):
        if imgui.menu_item(panel, "", panel not in state.preferences.closed)[0]:
            actions.append(toggle(state, panel))
    imgui.separator()
    for panel in POPOVERS:
        key = chords.keys_of(Do("keys")) if panel == "Keys" else ""
        if imgui.menu_item(panel, key, panel not in state.preferences.closed)[0]:
            actions.append(toggle(state, panel))
    imgui.separator()
    seen: tuple[menus.Item, ...] = (
        ("Larger letters", Do("zoom in"), True),
        ("Smaller letters", Do("zoom out"), True),
        ("Usual letters", Do("zoom 1"), True),
        ("Page alone", Do("focus mode"), True),
    )
    actions += menus.draw(seen)
    actions += menus.draw_shading(state)
    if imgui.menu_item("Reset layout", "", False)[0]:
        state.preferences.layout, state.arrange = "", True
        actions += [Prefer("folded", []), Prefer("closed", [*POPOVERS])]
    return actions


def draw_right(state: AppState) -> list[Action]:
    """Draw the pill and the icons at the right end of the bar."""
    actions, style = list[Action](), imgui.get_style()
    buttons: tuple[tuple[str, str, Part], ...] = (
        ("panel-bottom", "The drawer: times, tokens, history, comparison", "drawer"),
        ("panel-right", "The side panel: model and sampling", "side"),
    )
    icons = 3 * (imgui.get_font_size() + 4 * style.font_scale_dpi + style.item_spacing.x)
    left = imgui.get_cursor_pos_x() + style.item_spacing.x
    width = imgui.get_window_width() - icons - style.window_padding.x - left
    top = (imgui.get_window_height() - imgui.get_frame_height()) / 2
    imgui.set_cursor_pos((left, top))
    if connection.pill(state, width):
        actions.append(toggle(state, "Connection"))
    for name, tip, part in buttons:
        imgui.set_cursor_pos_y(top)
        if widgets.icon_button(name, part, tip):
            actions += fold(state, part)
    imgui.set_cursor_pos_y(top)
    if widgets.icon_button("settings", "settings", "Settings"):
        actions.append(toggle(state, "Settings"))
    return actions


def arrange(dock: int) -> None:
    """Put the panels in their first places."""
    i = imgui.internal
    i.dock_builder_remove_node(dock)
    i.dock_builder_add_node(dock, i.DockNodeFlagsPrivate_.dock_space)
    i.dock_builder_set_node_size(dock, imgui.get_main_viewport().work_size)
    side = i.dock_builder_split_node(dock, imgui.Dir.right, SIDE_SHARE)
    below = i.dock_builder_split_node(side.id_at_opposite_dir, imgui.Dir.down, DRAWER_SHARE)
    model = i.dock_builder_split_node(side.id_at_dir, imgui.Dir.up, 0.42)
    i.dock_builder_dock_window("Page", below.id_at_opposite_dir)
    i.dock_builder_dock_window("Model", model.id_at_dir)
    i.dock_builder_dock_window("Sampling", model.id_at_opposite_dir)
    for name in DRAWER:
        i.dock_builder_dock_window(name, below.id_at_dir)
    node = i.dock_builder_get_node(below.id_at_opposite_dir)
    node.set_local_flags(node.local_flags | i.DockNodeFlagsPrivate_.no_tab_bar)
    i.dock_builder_finish(dock)
