"""What the daemon promises: each promise is a function that breaks it as hard as its scale says, and returns figures.

pytest keeps them at the scale `ci` (seconds each); scripts/chaos.py at `quick` (all of them in under ten minutes) and `full`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Figures = dict[str, float | int | str]
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    name: Literal["ci", "quick", "full"]

    def of(self, ci: T, quick: T, full: T) -> T:
        return {"ci": ci, "quick": quick, "full": full}[self.name]


Check = Callable[[Scale, Path], Figures]
"""Takes a scale and an empty folder. Raises: AssertionError where the promise is broken."""
PROMISES: dict[str, Check] = {}


def promise(check: Check) -> Check:
    """Register a promise under its function's name; its docstring is the promise."""
    PROMISES[check.__name__] = check
    return check
