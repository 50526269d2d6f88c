"""The field for a server's address, in which a connect line's secret is hidden before it is drawn."""

from __future__ import annotations

from imgui_bundle import imgui

from client.window import secret
from client.window.events import Action, Connect, Enter
from client.window.state import AppState

LABEL = "##server"
HINT = "host, tcp://host:5757, connect line, or name"


def draw(state: AppState) -> list[Action]:
    """Draw the field; Enter in it connects."""
    link, actions = state.link, list[Action]()
    found = [(link.server, link.secret)]
    field = imgui.internal.get_input_text_state(imgui.get_id(LABEL))
    if link.replaced and field is not None:
        field.reload_user_buf_and_move_to_end()
    link.replaced = False  # the field has the new text now

    def on_edit(data: imgui.InputTextCallbackData) -> int:
        text = str(data.buf)  # a str already, whatever its declaration says
        found[0] = secret.read(text, link.secret)
        hidden = secret.shown(*found[0])
        if found[0][1] and hidden != text:
            data.delete_chars(0, data.buf_text_len)
            data.insert_chars(0, hidden)
        return 0

    text = secret.shown(link.server, link.secret)
    changed, new = imgui.input_text_with_hint(LABEL, HINT, text, imgui.InputTextFlags_.callback_edit, on_edit)
    if changed and new != text:
        address, keys = found[0]
        actions.append(Enter("link", "server", f"{address}#{keys}" if keys else address))
    return [*actions, *connect_by_enter()]


def connect_by_enter() -> list[Action]:
    """Return what follows where Enter was pressed in the field above."""
    pressed = imgui.is_key_pressed(imgui.Key.enter, False) or imgui.is_key_pressed(imgui.Key.keypad_enter, False)
    return [Connect()] if imgui.is_item_deactivated() and pressed else []
