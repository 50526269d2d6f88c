"""Promises of the daemon: a promise is a function that tries hard to break it, and returns what it measured.

Its docstring is the promise. pytest tries all but the longest at the scale `ci` (seconds), scripts.chaos at `quick`
(all of them in less than ten minutes) and `full`.
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
"""A function of a scale and an empty folder. Raises: AssertionError where the promise is broken."""
PROMISES: dict[str, Check] = {}


def promise(check: Check) -> Check:
    """Register a promise under its function's name; its docstring is the promise."""
    PROMISES[check.__name__] = check
    return check
