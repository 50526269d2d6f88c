"""Where the server is, how the connection stands, what the server is."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window.events import Action, Connect, Disconnect, Enter
from client.window.state import AppState
from client.window.views import widgets

WORDS = {
    "off": "not connected",
    "connecting": "connecting",
    "ready": "ready",
    "stuck": "server stuck",
    "refused": "refused",
    "lost": "lost",
}


def draw(state: AppState) -> list[Action]:
    link, actions = state.link, list[Action]()
    imgui.set_next_item_width(-imgui.get_frame_height() * 1.2)
    actions += widgets.field("##server", "tcp://host:5757, connect line, or name", "link", "server", link.server)
    widgets.tip(
        "An endpoint like tcp://127.0.0.1:5757, the connect line that a server printed, or the name of one that was kept."
    )
    imgui.same_line(0, 2)
    if imgui.begin_combo("##recent", "", imgui.ComboFlags_.no_preview):
        for name in dict.fromkeys([*link.kept, *state.preferences.recent]):
            if imgui.selectable(name, name == link.server)[0]:
                actions.append(Enter("link", "server", name))
        imgui.end_combo()
    if imgui.collapsing_header("Keys##own"):
        imgui.set_next_item_width(-1)
        actions += widgets.field("##serverkey", "the server's public key", "link", "server_key", link.server_key)
        imgui.set_next_item_width(-1)
        actions += widgets.field("##keyfile", "the file of your own secret key", "link", "key_file", link.key_file)
        widgets.tip("Only where no connect line carries them: that has both keys in it.")
    if link.status == "off":
        if imgui.button("Connect"):
            actions.append(Connect())
    else:
        if imgui.button("Disconnect"):
            actions.append(Disconnect())
        imgui.same_line()
        if imgui.button("Connect anew"):
            actions.append(Connect())
    imgui.same_line()
    busy = sum(w.running + w.waiting for w in link.workers)
    word = f"busy: {busy} generations" if link.status == "ready" and busy else WORDS[link.status]
    widgets.colored(word, {"ready": "good", "off": "dim", "connecting": "warn"}.get(link.status, "bad"))
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
        widgets.row("memory", f"{info.memory_bytes / 1e9:.1f} GB, {link.memory / 1e6:.0f} MB taken by gpt2d")
        if info.role != "admin":
            widgets.row("this key may", "generate, not load or unload")
    return actions
