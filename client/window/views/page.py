"""The page: an editable text, into which the continuation streams."""

from __future__ import annotations

from collections.abc import Callable

from imgui_bundle import ImVec2, imgui

from client.window import theme
from client.window.chords import PageKeys, keys_of
from client.window.editor import drawing
from client.window.editor.view import TOP
from client.window.events import Action, Do, PageWord
from client.window.state import AppState
from client.window.textfile import told
from client.window.views import find, live, menus, token_popup, widgets
from client.window.views.toasts import short

SIGHT = "the model sees from here"
PLACEHOLDER = "Write a beginning, then press {}"
MENU = "page menu"
GAP = "   "
MAX_NAME = 40
"""Most characters of a file's name in the line below the page."""


def keys() -> PageKeys:
    """Return what the page has of the keyboard."""
    window = imgui.internal.find_window_by_name("Page")
    if window and imgui.internal.get_active_id() == window.get_id(drawing.LABEL):
        return "typed"
    return "in sight" if window and window.was_active and not window.hidden else "hidden"


def draw(state: AppState, font: imgui.ImFont | None) -> list[Action]:
    actions = [] if state.focus_mode else draw_bar(state)
    actions += find.draw(state)
    page, preferences = state.page, state.preferences
    document, view = page.document, page.view
    if page.move_cursor:
        view.reveal, page.move_cursor = True, False
    sheet = drawing.Sheet(
        text=document.text,
        selected=(document.anchor, document.cursor),
        written=document.marks,
        found=page.find.places(document.text),
        shades=state.shades(*view.sight),
        sight=page.sight,
        sight_label=SIGHT,
        placeholder=PLACEHOLDER.format("Enter" if preferences.enter_generates else keys_of(Do("generate"))),
        follow=page.generating.end if page.generating else None,
        enter=not preferences.enter_generates or page.generating is not None,
    )
    alone = state.focus_mode and page.wanted is None  # a load, which takes its time, is told there, too
    below = 0.0 if alone else imgui.get_frame_height_with_spacing() + live.height()
    imgui.push_font(font, preferences.page_font_size * preferences.zoom)
    room = imgui.get_content_region_avail()
    size = ImVec2(max(1.0, room.x), max(1.0, room.y - below))
    done, first = drawing.draw(sheet, view, inks(), size, document.sticky.get(TOP))
    imgui.pop_font()
    document.sticky[TOP] = first
    actions += done
    entered = view.keyboard and not sheet.enter and imgui.is_key_pressed(imgui.Key.enter, False)
    if entered and not (imgui.get_io().key_shift or imgui.get_io().key_ctrl):
        actions.append(Do("generate"))
    actions += draw_menu(state)
    actions += token_popup.draw(state)
    wheel = imgui.get_io().mouse_wheel
    if wheel and imgui.get_io().key_ctrl and imgui.is_window_hovered():
        actions.append(Do("zoom in" if wheel > 0 else "zoom out"))
    if not alone:
        draw_status(state)
    return actions


def inks() -> drawing.Inks:
    """Return the page's colours in the present theme."""

    def packed(name: str) -> int:
        return imgui.get_color_u32(widgets.color(name))

    return drawing.Inks(
        paper=packed("page"),
        text=packed("text"),
        model=packed("model"),
        muted=packed("dim"),
        selection=packed("selection"),
        found=imgui.get_color_u32(theme.mark("found")),
        chosen=imgui.get_color_u32(theme.mark("found now")),
        shade=imgui.get_color_u32(theme.mark("unlikely")),
        rule=packed("warn"),
        caret=packed("accent"),
    )


def draw_menu(state: AppState) -> list[Action]:
    """Draw the menu of the right mouse button."""
    page, view = state.page, state.page.view
    if view.menu:
        imgui.open_popup(MENU)
        view.menu = False
    if not imgui.begin_popup(MENU):
        return []
    actions = menus.draw(menus.editing(state))
    imgui.separator()
    able = not page.busy
    actions += menus.draw((("Generate here", Do("generate"), able), ("Regenerate", Do("regenerate"), able)))
    imgui.separator()
    actions += menus.draw((("Find", Do("find"), True), ("Page alone", Do("focus mode"), True)))
    actions += menus.draw_shading(state)
    imgui.end_popup()
    return actions


def draw_bar(state: AppState) -> list[Action]:
    page, actions = state.page, list[Action]()
    ready = state.link.status == "ready"
    if page.busy:
        if widgets.primary_button("Stop"):
            actions.append(Do("stop"))
        widgets.tip(keys_of(Do("stop")))
    else:
        if widgets.primary_button("Generate"):
            actions.append(Do("generate"))
        key = keys_of(Do("generate"))
        widgets.tip(f"Continue from the cursor ({key}). Text after the cursor stays and is not seen by the model.")
    imgui.begin_disabled(not ready or page.busy)
    writing: tuple[tuple[str, PageWord, str], ...] = (
        ("Continue", "continue", "Go on from the end of the continuation at the cursor ({})."),
        ("Regenerate", "regenerate", "Write the continuation at the cursor again ({}); the earlier one is kept."),
    )
    for label, what, tip in writing:
        imgui.same_line()
        if imgui.button(label):
            actions.append(Do(what))
        widgets.tip(tip.format(keys_of(Do(what))))
    imgui.end_disabled()
    imgui.begin_disabled(page.generating is not None)
    editing: tuple[tuple[str, PageWord, bool], ...] = (
        ("Undo", "undo", page.document.can_undo),
        ("Redo", "redo", page.document.can_redo),
    )
    for label, what, able in editing:
        imgui.same_line()
        imgui.begin_disabled(not able)
        if imgui.button(label):
            actions.append(Do(what))
        imgui.end_disabled()
    at, count = page.tree.standing(page.document, page.document.cursor)
    if count > 1:
        imgui.same_line()
        if imgui.arrow_button("##earlier", imgui.Dir.left):
            actions.append(Do("earlier"))
        imgui.same_line(0, 2)
        imgui.text(f"{at} of {count}")
        imgui.same_line(0, 2)
        if imgui.arrow_button("##later", imgui.Dir.right):
            actions.append(Do("later"))
        widgets.tip(f"The continuations written here ({keys_of(Do('earlier'))}, {keys_of(Do('later'))}).")
    imgui.end_disabled()
    return actions


def waiting(state: AppState) -> str:
    """Return in words what has to be done before anything can be written."""
    doing = state.models.loading
    if doing is None:
        return "waiting until the server has loaded it" if state.models.listed else "connecting"
    amount = f" {widgets.amount(doing)}" if doing.total > 1 else ""
    return f"loading {doing.name}: {doing.stage}{amount} ({keys_of(Do('stop'))} stops)"


def parts_of_status(state: AppState) -> list[str]:
    """Return what the line below the page says. What was counted is left out where the cursor has moved since, and an
    estimate where the text was edited.
    """
    page, context = state.page, state.models.context
    words = page.view.words.count(page.document.text)
    name = told(page.path.name) if page.path else "not saved yet"
    parts = [f"{short(name, MAX_NAME)}{' *' if page.dirty else ''}", f"{words:,} word{'s' * (words != 1)}"]
    counted = state.link.status == "ready" and page.known
    if counted:
        exact = page.exact and page.counted == page.document.version and not page.counting
        tokens = f"{'' if exact else 'about '}{page.tokens} token{'s' * (page.tokens != 1)}"
        share = min(1.0, page.tokens / context)
        parts.append(f"{tokens} before the cursor, {share:.0%} of the context of {context}")
    if spaces := state.unsent_spaces:
        parts.append("the space before the cursor is not sent" if spaces == 1 else f"{spaces} spaces are not sent")
    if counted and page.sight:
        parts.append("the beginning is out of the model's sight")
    if page.generating:
        parts.insert(0, live.words(page.generating))
    elif page.wanted:
        parts.insert(0, waiting(state))
    return parts


def draw_status(state: AppState) -> None:
    parts = parts_of_status(state)
    live.line(live.share(state))
    line = fitting(parts, imgui.get_content_region_avail().x, lambda text: imgui.calc_text_size(text).x)
    imgui.text_disabled(line)
    if len(line) < len(GAP.join(parts)):
        widgets.tip("\n".join(parts))


def fitting(parts: list[str], room: float, width: Callable[[str], float]) -> str:
    """Return as many parts, in a line, as there is room for; three dots stand for the others."""
    line = ""
    for count in range(len(parts), 0, -1):
        line = GAP.join([*parts[:count], *["\u2026"] * (count < len(parts))])
        if width(line) <= room:
            break
    return line
