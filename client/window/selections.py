"""Asks the programs that hold the clipboard and the selection of X11 whether they answer: GLFW waits for them without
an end, and one that hangs would hang the window that pastes.

On a connection of its own: GLFW takes all events of the other one.
"""

from __future__ import annotations

import ctypes
import time

ANSWER_S, AGAIN_S = 1.0, 0.002
"""Seconds that a program has for an answer, and those between two looks whether it has come."""
SELECTION_NOTIFY = 31
CLIENT = ~0x1FFFFF
"""The bits of a window's number that say which program's it is."""
LIBRARY = "libX11.so.6"


class Holders:
    """The programs that hold selections. `window`: one of this program's own, which has no need to ask itself."""

    def __init__(self, window: int) -> None:
        self._own = window & CLIENT
        self._x11 = _library()
        self._display = self._x11.XOpenDisplay(None) if self._x11 else None
        if self._x11 and self._display:
            root = self._x11.XDefaultRootWindow(self._display)
            self._asking = self._x11.XCreateSimpleWindow(self._display, root, 0, 0, 1, 1, 0, 0, 0)

    def answer(self, selection: str) -> bool:
        """Return False if the program that holds this selection does not say within ANSWER_S what kinds it has."""
        if not self._x11 or not self._display:
            return True
        atom, targets = self._atom(selection), self._atom("TARGETS")
        holder = self._x11.XGetSelectionOwner(self._display, atom)
        if not holder or holder & CLIENT == self._own:
            return True
        while self._said():  # what was asked for before, and came too late
            pass
        self._x11.XConvertSelection(self._display, atom, targets, targets, self._asking, 0)
        until = time.monotonic() + ANSWER_S
        while not (said := self._said()) and time.monotonic() < until:
            time.sleep(AGAIN_S)
        return said

    def _atom(self, name: str) -> int:
        return int(self._x11.XInternAtom(self._display, name.encode(), 0)) if self._x11 else 0

    def _said(self) -> bool:
        event = (ctypes.c_long * 24)()  # as large as every event of X11
        found = self._x11 and self._x11.XCheckTypedWindowEvent(self._display, self._asking, SELECTION_NOTIFY, event)
        return bool(found)


def _library() -> ctypes.CDLL | None:
    try:
        x11 = ctypes.CDLL(LIBRARY)
    except OSError:  # then nobody is asked
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_ulong
    count = ctypes.c_int
    for name, result, arguments in (
        ("XOpenDisplay", pointer, [ctypes.c_char_p]),
        ("XDefaultRootWindow", number, [pointer]),
        ("XCreateSimpleWindow", number, [pointer, number, *[count] * 2, *[ctypes.c_uint] * 3, *[number] * 2]),
        ("XInternAtom", number, [pointer, ctypes.c_char_p, count]),
        ("XGetSelectionOwner", number, [pointer, number]),
        ("XConvertSelection", count, [pointer, *[number] * 5]),
        ("XCheckTypedWindowEvent", count, [pointer, number, count, pointer]),
    ):
        function = getattr(x11, name)
        function.restype, function.argtypes = result, arguments
    return x11
