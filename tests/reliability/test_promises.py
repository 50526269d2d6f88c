"""The promises, at the scale that a test run has time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.reliability import every_promise
from scripts.reliability.promise import Scale

pytestmark = pytest.mark.alone  # each holds something to seconds
LONG = {"slow_line", "turns"}
"""Those that need longer; tests/system/test_network.py tries such a line, tests/server/test_turns.py who is next."""


@pytest.mark.parametrize("name", sorted(every_promise().keys() - LONG))
def test_promise(name: str, tmp_path: Path) -> None:
    every_promise()[name](Scale("ci"), tmp_path)
