"""The page: an editable text, into which the continuation streams."""

from __future__ import annotations

from imgui_bundle import ImVec2, imgui

from client.window.chords import PageKeys
from client.window.events import Action, Do, Moved, PageWord, Typed
from client.window.state import AppState, Generating
from client.window.views import widgets

LABEL = "##page"
SIGHT = "the model sees from here"
GUTTER = 0.6
"""Width of the margin, in font sizes."""
MAX_COUNTED = 1_000_000
"""Most characters of a page whose words are counted, which happens in every frame."""
FLAGS = (
    imgui.InputTextFlags_.word_wrap
    | imgui.InputTextFlags_.no_undo_redo
    | imgui.InputTextFlags_.callback_always
    | imgui.InputTextFlags_.allow_tab_input
)


def keys() -> PageKeys:
    """Return what the page has of the keyboard."""
    window = imgui.internal.find_window_by_name("Page")
    if window and imgui.internal.get_active_id() == window.get_id(LABEL):
        return "typed"
    return "in sight" if window and window.was_active and not window.hidden else "hidden"


def draw(state: AppState, font: imgui.ImFont | None) -> list[Action]:
    actions = draw_bar(state)
    page, document = state.page, state.page.document
    imgui.push_font(font, state.preferences.page_font_size)
    gutter = imgui.get_font_size() * GUTTER
    origin = imgui.get_cursor_screen_pos()
    imgui.set_cursor_pos_x(imgui.get_cursor_pos_x() + gutter)
    size = ImVec2(-1, -imgui.get_frame_height_with_spacing() * 1.1)
    content = document.text.encode()  # the text field counts in bytes
    seen = [len(document.text[: document.cursor].encode())]
    was, want = seen[0], seen[0] if page.move_cursor else None

    def on_each(data: imgui.InputTextCallbackData) -> int:
        if want is not None:
            data.cursor_pos = min(want, data.buf_text_len)
            data.clear_selection()
        seen[0] = data.cursor_pos
        return 0

    identity = imgui.get_id(LABEL)
    field = imgui.internal.get_input_text_state(identity)
    active = field is not None and imgui.internal.get_active_id() == identity
    if active and field is not None and page.move_cursor:
        field.reload_user_buf_and_keep_selection()
        field.cursor_follow = True
    enter = state.preferences.enter_generates and not page.generating
    flags = (
        FLAGS
        | (imgui.InputTextFlags_.read_only if page.generating else 0)
        | (imgui.InputTextFlags_.ctrl_enter_for_new_line if enter else 0)
    )
    changed, text = imgui.input_text_multiline(LABEL, document.text, size, flags, on_each)
    lines = imgui.get_current_context().input_text_line_index
    bottom = imgui.get_item_rect_max()
    page.move_cursor = False  # the one field of the state that this view changes: the text field has the cursor now
    if changed and not page.generating:
        actions.append(Typed(text, characters(text.encode(), seen[0])))
    elif active and want is None and seen[0] != was and not (page.generating or imgui.get_io().key_alt):
        actions.append(Moved(characters(content, seen[0])))
    if (
        enter
        and imgui.is_item_deactivated()
        and imgui.is_key_pressed(imgui.Key.enter, False)
        and not imgui.get_io().key_ctrl
    ):
        actions.append(Do("generate"))
        imgui.internal.activate_item_by_id(identity)
    draw_margin(state, lines, origin, bottom, gutter)
    imgui.pop_font()
    draw_status(state)
    return actions


def draw_bar(state: AppState) -> list[Action]:
    page, actions = state.page, list[Action]()
    ready = state.link.status == "ready"
    if page.busy:
        if imgui.button("Stop"):
            actions.append(Do("stop"))
        widgets.tip("Esc")
    else:
        if imgui.button("Generate"):
            actions.append(Do("generate"))
        widgets.tip("Continue from the cursor (Ctrl+Enter). Text after the cursor stays and is not seen by the model.")
    imgui.begin_disabled(not ready or page.busy)
    writing: tuple[tuple[str, PageWord, str], ...] = (
        ("Continue", "continue", "Go on from the end of the last continuation (Ctrl+Shift+Enter)."),
        ("Regenerate", "regenerate", "Write the continuation at the cursor again (Ctrl+R); the earlier one is kept."),
    )
    for label, what, tip in writing:
        imgui.same_line()
        if imgui.button(label):
            actions.append(Do(what))
        widgets.tip(tip)
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
        widgets.tip("The continuations written here (Alt+Left, Alt+Right).")
    imgui.end_disabled()
    return actions


def draw_margin(
    state: AppState, lines: imgui.internal.TextIndex, origin: ImVec2, bottom: ImVec2, gutter: float
) -> None:
    """Draw a bar beside the lines that were generated, and a line where the model's sight begins."""
    page = state.page
    height = imgui.get_text_line_height()
    top = origin.y + imgui.get_style().frame_padding.y
    window = imgui.internal.find_window_by_name(_child_name())
    scroll = window.scroll.y if window else 0.0
    count = lines.size()
    first = max(0, int(scroll / height))
    last = min(count, int((scroll + bottom.y - top) / height) + 1)
    content = page.document.text.encode()
    paint = imgui.get_window_draw_list()
    paint.push_clip_rect((origin.x, origin.y), (bottom.x, bottom.y), True)
    mark_color = imgui.get_color_u32(widgets.color("accent"))
    end = characters(content, lines.offsets[first]) if first < last else 0
    for i in range(first, last):
        begin, stop = end, lines.offsets[i + 1] if i + 1 < count else len(content)
        end = begin + characters(content[lines.offsets[i] : stop], stop)
        y = top + i * height - scroll
        if any(mark.start < end and mark.end > begin for mark in page.document.marks):
            paint.add_rect_filled((origin.x, y), (origin.x + gutter * 0.4, y + height), mark_color)
        if page.sight and begin <= page.sight < end:
            paint.add_line((origin.x, y), (bottom.x, y), imgui.get_color_u32(widgets.color("warn")), 1.0)
            left = bottom.x - imgui.calc_text_size(SIGHT).x - gutter * 2
            paint.add_text((left, y), mark_color, SIGHT)
    paint.pop_clip_rect()


def characters(content: bytes, end: int) -> int:
    """Return how many characters these bytes of a UTF-8 text are."""
    return len(content[:end].decode("utf-8", "ignore"))


def _child_name() -> str:
    """Return the name of the child window that Dear ImGui makes for a multi-line field."""
    return f"{imgui.internal.get_current_window().name}/{LABEL}_{imgui.get_id(LABEL):08X}"


def progress(going: Generating) -> str:
    if going.place:
        return f"waiting, place {going.place}"
    return "stopping" if going.stopping else "writing (Esc stops)"


def waiting(state: AppState) -> str:
    """Return in words what has to be done before anything can be written."""
    doing = state.models.loading
    if doing is None:
        return "waiting until the server has loaded it" if state.models.listed else "connecting"
    amount = f" {widgets.amount(doing)}" if doing.total > 1 else ""
    return f"loading {doing.name}: {doing.stage}{amount} (Esc stops)"


def draw_status(state: AppState) -> None:
    page, context = state.page, state.models.context
    text = page.document.text
    parts = [f"{len(text.split())} words"] if len(text) < MAX_COUNTED else []
    if state.link.status == "ready" and page.counted >= 0:
        tokens = f"{page.tokens} tokens" if page.exact else f"about {page.tokens} tokens"
        share = min(1.0, page.tokens / context)
        parts.append(f"{tokens} before the cursor, {share:.0%} of the context of {context}")
    if spaces := state.unsent_spaces:
        parts.append("the space before the cursor is not sent" if spaces == 1 else f"{spaces} spaces are not sent")
    if page.sight:
        parts.append("the beginning is out of the model's sight")
    name = page.path.name if page.path else "not saved yet"
    parts.append(f"{name}{' *' if page.dirty else ''}")
    if page.generating:
        parts.insert(0, progress(page.generating))
    elif page.wanted:
        parts.insert(0, waiting(state))
    if said := state.said("page"):
        widgets.colored(said, "bad")
    else:
        imgui.text_disabled("   ".join(parts))
