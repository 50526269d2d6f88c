"""The daemon's defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import config


@pytest.mark.parametrize(
    ("limit", "most"), [("150000 100000", 1), ("50000 100000", 1), ("300000 100000", 3), ("max 100000", None), ("", None)]
)
def test_threads_keep_to_a_containers_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int | None) -> None:
    monkeypatch.setattr(config, "CGROUP", tmp_path)
    free = config.default_threads()
    (tmp_path / "cpu.max").write_text(limit)
    assert config.default_threads() == min(free, most or free) >= 1
