"""Where the kernels' shared library is."""

from __future__ import annotations

from pathlib import Path

VERSION = 7
"""Of the C interface and the layout of the weights: GPT2D_VERSION."""
NAMES = ("libgpt2d_kernels.so", "libgpt2d_kernels.dylib", "gpt2d_kernels.dll")
"""On Linux, macOS and Windows."""


def library() -> Path | None:
    """The library's path; None if there was no compiler when this was installed."""
    return next((path for name in NAMES if (path := Path(__file__).parent / name).exists()), None)
