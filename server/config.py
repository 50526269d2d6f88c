"""One frozen Config: every limit, path and default of the daemon."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import psutil

from protocol.keys import DEFAULT_ENDPOINT

VERSION = "0.1.0"
CGROUP = Path("/sys/fs/cgroup")


def default_models_dir() -> Path:
    """Where GPT-2 folders are looked for: `gpt2d/models` in the user's data folder."""
    return platformdirs.user_data_path("gpt2d") / "models"


def default_cache_dir() -> Path:
    """Where built graphs are kept: `gpt2d/graphs` in the user's cache folder."""
    return platformdirs.user_cache_path("gpt2d") / "graphs"


def default_hub_cache() -> Path:
    """The HuggingFace hub's ordinary cache, found as huggingface_hub finds it, which the gateway does not import."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def default_threads() -> int:
    """The physical cores that this process may use, by its affinity and by a container's limit."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed, _cgroup_cores() or physical))


def _cgroup_cores() -> int | None:
    """Whole cores of the CPU time that a container may take (cgroup v2: cpu.max is "QUOTA PERIOD" in microseconds); None: no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file; "max"
        return None


@dataclass(frozen=True)
class Config:
    endpoint: str = DEFAULT_ENDPOINT
    models_dir: Path = field(default_factory=default_models_dir)
    cache_dir: Path = field(default_factory=default_cache_dir)
    hub_cache: Path = field(default_factory=default_hub_cache)
    allow_hub: bool = False
    """Offer every repository of the hub, not only catalogue.PUBLISHED."""
    key: Path | None = None
    """The server's secret key; with it clients need keys of `authorised_keys`, a folder. Both, or neither."""
    authorised_keys: Path | None = None
    preload: tuple[str, ...] = ()
    """model, model/engine or model/engine/precision, loaded at the start."""
    threads: int = field(default_factory=default_threads)
    rows: int | None = None
    """Sequences that run together in a worker; None: as many as catalogue.Architecture.default_rows says."""
    max_memory: int | None = None
    """Bytes that all workers together may come to need; None: what is free."""
    keep_alive: float | None = None
    """Seconds after which a model that nobody uses is unloaded; None: never."""
    stuck_seconds: float | None = 60.0
    """A worker that has not moved for so long is ended; None: never."""
    drain_seconds: float = 10.0
    log_prompts: bool = False
    max_open_per_peer: int = 64
    """Unfinished requests of one peer: all connections of a key, or one connection where there are no keys."""
    max_tokens_per_peer: int = 1 << 20
    """Tokens of its unfinished requests, those of the prompt and those still to be written."""
    max_rate_per_peer: float = 1000.0
    """Its requests a second; as many more may come at once."""
    max_open_per_worker: int = 128
    """Unfinished generations of one worker, running and waiting; beyond it: busy."""
    max_unsent: int = 256
    max_unsent_bytes: int = 4 << 20
    max_unsent_seconds: float = 10.0
    """Replies kept for a client that does not read them, and for how long; beyond it, the client is given up."""
    cache_bytes: int = 20 << 30
    """Built graphs on disk; the least recently used leave first."""
