"""What the window's libraries lack where they cannot be loaded, as a sentence."""

from __future__ import annotations

import platform
import sys

from protocol.programs import install

SYSTEM = (
    "install what they need of the system (Debian, Ubuntu: `apt install libx11-6 libxext6 libgl1`; Fedora: "
    "`dnf install libX11 libXext mesa-libGL`)"
)
NO_WHEEL = "imgui-bundle, which draws it, is no longer made for Macs with Intel processors"


def what_is_missing(error: ImportError) -> str:
    """Return why the window's libraries cannot be loaded, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        if error.name == "imgui_bundle" and sys.platform == "darwin" and platform.machine() == "x86_64":
            return NO_WHEEL
        return f"its libraries are missing ({error}); in the checkout of gpt2d type: {install('client')}"
    advice = SYSTEM if sys.platform == "linux" else "see docs/troubleshooting.md in the checkout"
    return f"its libraries cannot be loaded ({error}); {advice}"
