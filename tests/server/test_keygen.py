"""The command that makes keys, as its user runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server import keygen


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5757", "tcp://[::]:5757", "tcp://*:5757", "tcp://lab:0"])
def test_where_a_server_listens_is_no_address_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Such a line would lead each client to its own machine. Nothing is made for it."""
    monkeypatch.setattr(
        sys, "argv", ["gpt2d-keygen", "--keys", str(tmp_path / "keys"), "client", "anna", "--endpoint", endpoint]
    )
    with pytest.raises(SystemExit, match=r"says where a server listens; give the address at which this client"):
        keygen.main()
    assert not (tmp_path / "keys").exists()
