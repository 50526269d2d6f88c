"""The server: its address, the state of the connection, what it is."""

from __future__ import annotations

from imgui_bundle import imgui

from client.servers import notices
from client.window.events import Action, Connect, Disconnect, Enter
from client.window.state import AppState, Status
from client.window.views import server_field, widgets

WORDS: dict[Status, str] = {
    "off": "Not connected",
    "connecting": "Connecting",
    "ready": "ready",
    "stuck": "Server stuck",
    "late": "No answer in time",
    "busy": "Server busy",
    "stopping": "Server stopping",
    "failed": "Server error",
    "refused": "Refused",
    "version": "Other version",
    "absent": "No server",
    "other": "Not a gpt2d server",
    "lost": "Connection lost",
}
BUTTON = "###connection"
STATUS_COLORS = {"ready": "good", "off": "dim", "connecting": "warn", "busy": "warn", "late": "warn"}
"""Color of a status; that of all others is red."""


def pill(state: AppState, width: float) -> bool:
    """Draw the button that opens this panel, which says what is chosen and how it is; return True if it is clicked.

    What does not fit into the width is left out, the state last.
    """
    link, models = state.link, state.models
    word, colour = condition(state)
    parts = [models.model, models.precision, word] if link.status == "ready" and models.model else [word]
    dot = imgui.get_font_size() * 1.2
    room = width - dot - 2 * imgui.get_style().frame_padding.x
    while len(parts) > 1 and imgui.calc_text_size(" · ".join(parts)).x > room:
        parts.pop(0)
    text = widgets.printable(" · ".join(parts)).replace("##", "")
    size = imgui.calc_text_size(text).x + dot + 2 * imgui.get_style().frame_padding.x
    imgui.set_cursor_pos_x(imgui.get_cursor_pos_x() + max(0.0, width - size))
    at = imgui.get_cursor_screen_pos()
    imgui.push_style_var(imgui.StyleVar_.button_text_align, (1.0, 0.5))
    imgui.push_style_var(imgui.StyleVar_.frame_rounding, imgui.get_frame_height() / 2)
    clicked = imgui.button(f"{text}{BUTTON}", (size, 0))
    imgui.pop_style_var(2)
    centre = (at.x + imgui.get_style().frame_padding.x + dot * 0.3, at.y + imgui.get_frame_height() / 2)
    imgui.get_window_draw_list().add_circle_filled(centre, dot * 0.24, imgui.get_color_u32(widgets.color(colour)))
    if "Connection" in state.preferences.closed:
        widgets.tip("\n".join(filter(None, (link.server, link.trouble))) or "The server")
    return clicked


def condition(state: AppState) -> tuple[str, str]:
    """Return in a word how the server is, or where it answers, the chosen model; and the colour of that."""
    loading = state.models.loading
    if loading:
        return f"loading {loading.done / loading.total:.0%}" if loading.total > 1 else "loading", "warn"
    if state.link.status != "ready" or not state.models.model or state.loaded:
        return WORDS[state.link.status], STATUS_COLORS.get(state.link.status, "bad")
    return ("loading", "warn") if any(w.state == "loading" for w in state.holders) else ("not loaded", "dim")


def draw(state: AppState) -> list[Action]:
    link, actions = state.link, list[Action]()
    if imgui.is_window_appearing():
        imgui.set_keyboard_focus_here()
    imgui.set_next_item_width(-imgui.get_frame_height() * 1.2)
    actions += server_field.draw(state)
    widgets.tip(
        "A host, an endpoint like tcp://127.0.0.1:5757, the connect line that a server printed, or the name of a saved "
        "server."
    )
    imgui.same_line(0, 2)
    if imgui.begin_combo("##recent", "", imgui.ComboFlags_.no_preview):
        for name in dict.fromkeys([*link.kept, *state.preferences.recent]):
            if imgui.selectable(name, name == link.server)[0]:
                actions += [Enter("link", "server", name), Connect()]
        imgui.end_combo()
    if widgets.section("Keys##own"):
        imgui.set_next_item_width(-1)
        actions += widgets.field("##serverkey", "the server's public key", "link", "server_key", link.server_key)
        actions += server_field.connect_by_enter()
        imgui.set_next_item_width(-1)
        actions += widgets.field("##keyfile", "the file of your own secret key", "link", "key_file", link.key_file)
        actions += server_field.connect_by_enter()
        widgets.tip("Only needed without a connect line, which contains both keys.")
    if link.status == "off":
        if imgui.button("Connect"):
            actions.append(Connect())
    else:
        if imgui.button("Disconnect"):
            actions.append(Disconnect())
        imgui.same_line()
        if imgui.button("Reconnect"):
            actions.append(Connect())
    imgui.same_line()
    busy = sum(w.running + w.waiting for w in link.workers)
    word = f"busy: {busy} generations" if link.status == "ready" and busy else WORDS[link.status]
    widgets.colored(word, STATUS_COLORS.get(link.status, "bad"))
    if link.trouble:
        imgui.text_wrapped(link.trouble)
        wait = link.next_look - state.now
        if link.status not in {"ready", "off"}:
            imgui.text_disabled(f"trying again in {wait:.0f} s" if wait > 0 else "trying again")
    if link.info and link.status == "ready":
        info = link.info
        widgets.row("round trip", f"{link.rtt_ms:.1f} ms")
        widgets.row("server", f"gpt2d {info.version} on {info.host}")
        widgets.row("processor", f"{info.cpu}, {info.cores} cores")
        widgets.row("memory", f"{info.memory_bytes / 1e9:.1f} GB, {link.memory / 1e6:.0f} MB used by gpt2d")
        for notice in notices(info):
            widgets.wrapped(notice, "warn")
        if info.role != "admin":
            widgets.row("this key may", "generate, not load or unload")
    return actions
