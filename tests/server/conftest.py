"""Fixtures that these tests share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from server.catalogue.catalogue import DEMO_FOLDER

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    """Return the embedded model as transformers computes it."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
    model.eval()
    assert isinstance(model, GPT2LMHeadModel)
    return model


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no more threads begin, as where a container's limit of processes is reached."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
