"""The server: its address, the state of the connection, what it is."""

from __future__ import annotations

from imgui_bundle import imgui

from client.servers import notices
from client.window.events import Action, Connect, Disconnect, Enter
from client.window.state import AppState, Status
from client.window.views import server_field, widgets

WORDS: dict[Status, str] = {
    "off": "not connected",
    "connecting": "connecting",
    "ready": "ready",
    "stuck": "server stuck",
    "late": "no answer in time",
    "busy": "server busy",
    "stopping": "server stopping",
    "failed": "server error",
    "refused": "refused",
    "version": "other version",
    "absent": "no server",
    "other": "not a gpt2d server",
    "lost": "connection lost",
}
STATUS_COLORS = {"ready": "good", "off": "dim", "connecting": "warn", "busy": "warn", "late": "warn"}
"""Color of a status; that of all others is red."""


def draw(state: AppState) -> list[Action]:
    link, actions = state.link, list[Action]()
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
    if imgui.collapsing_header("Keys##own"):
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
