"""The promises, at the scale that a test run has time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.reliability import every_promise
from scripts.reliability.promise import Scale

LONG = {"far_line", "outsiders", "slow_line", "turns"}
"""Those that need longer; tests/system/test_network.py tries such a line, tests/server/test_turns.py who is next,
a case of `hostile` such attacks."""

UNTIMED = {"cancel_races", "disk", "engine_faults", "load", "ranges"}
"""Those that hold nothing to seconds: other tests may run beside them."""
NAMES = sorted(every_promise().keys() - LONG)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in UNTIMED else pytest.mark.alone) for name in NAMES]
)
def test_promise(name: str, tmp_path: Path) -> None:
    every_promise()[name](Scale("ci"), tmp_path)
