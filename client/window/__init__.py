"""The desktop window: its state, what changes it, and what draws it.

What other programs of this user want of the libraries is set aside here, before one of them is loaded.
"""

import os
import sys

# imgui_bundle names its own GLFW in PYGLFW_LIBRARY; another one would be a second in this process.
for name in [name for name in os.environ if name.startswith(("PYGLFW_", "PYOPENGL_"))]:
    del os.environ[name]
if sys.platform == "linux":
    # GLFW's contexts are GLX's. PyOpenGL would look for EGL's, and find none, wherever WAYLAND_DISPLAY is set and
    # XDG_SESSION_TYPE is not: under WSL, or a compositor that was started from a console.
    os.environ["PYOPENGL_PLATFORM"] = "glx"
