"""The model that does a whole file: one, named in every request, so that no other can take its place on the way."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from client.corpus.progress import say
from protocol import Client, messages as m
from protocol.errors import Unauthorised


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    model: str
    engine: str
    precision: str
    context: int
    cache: str
    calibrated: bool
    digest: str = ""
    """SHA-256 of its weights; empty where this client's key does not let it ask."""

    @property
    def which(self) -> dict[str, str]:
        """Fields of a request that name it."""
        return {"model": self.model, "engine": self.engine, "precision": self.precision}

    @property
    def name(self) -> str:
        return "/".join(self.which.values())

    @property
    def identity(self) -> str:
        """Everything of it that the numbers depend on."""
        notes = [self.cache and f"KV cache {self.cache}", "calibrated" if self.calibrated else "", self.digest[:16]]
        return " ".join([self.name, *filter(None, notes)])


def choose(client: Client, model: str | None, engine: str | None, precision: str | None) -> Model:
    """Return the model that is meant, which is loaded if it is not. Raises: Gpt2dError, ValueError."""
    ready = {
        (w.model, w.engine, w.precision): w
        for w in client.ping().workers
        if w.state == "ready"
        and model in (None, w.model)
        and engine in (None, w.engine)
        and precision in (None, w.precision)
    }
    if model is None:
        if not ready:
            raise ValueError("nothing is loaded that this could be done with; name a model, like --model demo")
        if len(ready) > 1:
            several = ", ".join("/".join(way) for way in ready)
            raise ValueError(f"several are loaded ({several}); say which by --model, --engine and --precision")
        only = next(iter(ready.values()))
        model, engine = only.model, only.engine
        precision = only.precision
    try:
        loaded = _load(client, model, engine, precision)
    except Unauthorised:
        if len(ready) != 1:
            raise
        one = next(iter(ready.values()))
        context = next(info.context for info in client.models() if info.name == one.model)
        return Model(one.model, one.engine, one.precision, context, one.cache, one.calibrated)
    return Model(
        loaded.model, loaded.engine, loaded.precision, loaded.context, loaded.cache, loaded.calibrated, loaded.digest
    )


def _load(client: Client, model: str, engine: str | None, precision: str | None) -> m.Loaded:
    shown = ""

    def on_progress(progress: m.Progress) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = f"{model}: {progress.stage} {progress.done * 100 // max(1, progress.total)} %"
            say(f"\r\x1b[K{shown}", end="")

    try:
        loaded = client.load(model, engine=engine, precision=precision, on_progress=on_progress)
    finally:
        if shown:
            say("\r\x1b[K", end="")
    if not loaded.already:
        say(f"{loaded.model}/{loaded.engine}/{loaded.precision} loaded in {loaded.load_ms / 1000:.1f} s")
    for notice in loaded.notices:
        say(f"note: {notice}")
    return loaded
