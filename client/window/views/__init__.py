"""The panels: each file has draw(state) -> actions. They draw and return; nothing here waits, opens a file or knows a
socket.
"""
