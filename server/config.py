"""One frozen Config: every limit, path and default of the daemon, and what each is called outside (server/settings.py)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
import psutil

from protocol.keys import DEFAULT_ENDPOINT, check_endpoint

VERSION = "0.1.0"
CGROUP = Path("/sys/fs/cgroup")


def default_models_dir() -> Path:
    """Where GPT-2 folders are looked for: `gpt2d/models` in the user's data folder."""
    return platformdirs.user_data_path("gpt2d") / "models"


def default_cache_dir() -> Path:
    """Where built models are kept: `gpt2d/graphs` in the user's cache folder."""
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


def check_cluster(address: str) -> str:
    """Raises: ValueError for what Ray would not take."""
    if address != "auto" and not re.fullmatch(r"(ray://)?[\w.-]+:\d{1,5}", address):
        raise ValueError(
            f"{address!r} is no cluster: auto finds one on this machine, ray://HOST:10001 and HOST:6379 name one"
        )
    return address


def parse_resource(text: str) -> tuple[str, float]:
    """NAME=AMOUNT of a resource that some nodes have. Raises: ValueError."""
    name, _, amount = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][\w:.-]*", name) or not re.fullmatch(r"\d+(\.\d+)?", amount) or float(amount) <= 0:
        raise ValueError(f"{text!r} is not NAME=AMOUNT with an amount above 0, such as fast=1")
    if name in {"CPU", "GPU", "memory", "object_store_memory"}:
        raise ValueError(
            f"{name} is not for you to say: a worker takes its threads as CPUs, the memory that its model needs, and no GPU"
        )
    return name, float(amount)


@dataclass(frozen=True)
class Option:
    """Makes a field of Config a flag and a key of the configuration file, both with the field's name."""

    help: str
    metavar: str | None = None
    least: float = 0
    most: float = math.inf
    """What a number may be, bounds included."""
    unset: str = ""
    """What None means, or a default that depends on the machine."""
    check: Callable[[str], object] | None = None
    """Raises: ValueError for a text that it may not be."""


@dataclass(frozen=True)
class Config:
    """Seconds, bytes and counts, where the name does not say otherwise."""

    endpoint: Annotated[str, Option("where to listen", check=check_endpoint)] = DEFAULT_ENDPOINT
    key: Annotated[
        Path | None,
        Option("the server's secret key: encrypts, and admits --authorised-keys alone", "FILE", unset="none"),
    ] = None
    authorised_keys: Annotated[
        Path | None,
        Option(
            "public keys NAME.pub of those who may talk, with their roles; read again when it changes",
            "FOLDER",
            unset="none",
        ),
    ] = None
    models_dir: Annotated[Path, Option("folders of GPT-2 models", "DIR")] = field(default_factory=default_models_dir)
    cache_dir: Annotated[Path, Option("built models are kept here", "DIR")] = field(default_factory=default_cache_dir)
    cache_bytes: Annotated[
        int, Option("size of the built models together; the least recently used leave first", "BYTES")
    ] = 20 << 30
    hub_cache: Path = field(default_factory=default_hub_cache)
    """Moved by the hub's own environment variables."""
    allow_hub: Annotated[
        bool, Option("let clients load any GPT-2 of the HuggingFace hub as owner/name (off: the five named below)")
    ] = False
    preload: Annotated[
        tuple[str, ...], Option("model[/engine[/precision]][:replicas], loaded at the start", "MODEL")
    ] = ()
    threads: Annotated[int, Option("threads of each worker", "N", least=1, most=1024, unset="the physical cores")] = (
        field(default_factory=default_threads)
    )
    rows: Annotated[
        int | None,
        Option("sequences that run together in a worker", "N", least=1, unset="what fits into 640 MB, 1 to 16"),
    ] = None
    max_memory: Annotated[
        float | None,
        Option("memory that all models together may come to need", "GB", least=0.001, unset="what is free"),
    ] = None
    keep_alive: Annotated[
        float | None, Option("unload a model that nobody has used for so long", "S", least=0.001, unset="never")
    ] = None
    stuck_seconds: Annotated[float, Option("end a model's worker that has not moved for so long; 0: never", "S")] = 60.0
    drain_seconds: Annotated[float, Option("how long running streams may go on after Ctrl-C", "S")] = 10.0
    max_open_per_peer: Annotated[
        int,
        Option(
            "unfinished requests of one peer: all connections of a key, or one connection where there are no keys",
            "N",
            least=1,
        ),
    ] = 64
    max_tokens_per_peer: Annotated[
        int,
        Option("tokens of its unfinished requests, those of the prompt and those still to be written", "N", least=1),
    ] = 1 << 20
    max_rate_per_peer: Annotated[
        float, Option("its requests a second; as many more may come at once", "N", least=1)
    ] = 1000.0
    max_open_per_worker: Annotated[
        int, Option("unfinished requests of one worker, running and waiting; beyond it: busy", "N", least=1)
    ] = 128
    max_unsent: Annotated[
        int, Option("replies kept for a client that does not read them; beyond it, it is given up", "N", least=1)
    ] = 256
    max_unsent_bytes: Annotated[int, Option("the size of these replies together", "BYTES", least=1)] = 4 << 20
    max_unsent_seconds: Annotated[float, Option("how long such replies are kept", "S", least=0.1)] = 10.0
    cluster: Annotated[
        str | None,
        Option(
            "place workers on a Ray cluster: auto, ray://HOST:10001 or HOST:6379",
            "ADDRESS",
            unset="on this machine",
            check=check_cluster,
        ),
    ] = None
    cluster_resources: Annotated[
        tuple[str, ...],
        Option(
            "what a worker takes of its node beside its threads as CPUs and its memory",
            "NAME=AMOUNT",
            check=parse_resource,
        ),
    ] = ()
    worker_address: Annotated[
        str,
        Option(
            "where workers connect, as they can reach it; port 0: any that is free", "ENDPOINT", check=check_endpoint
        ),
    ] = "tcp://127.0.0.1:0"
    metrics_port: Annotated[
        int | None,
        Option("answer Prometheus on http://127.0.0.1:PORT/metrics", "PORT", least=1, most=65535, unset="off"),
    ] = None
    log_format: Annotated[Literal["text", "json"], Option("json: one object for each line")] = "text"
    log_prompts: Annotated[bool, Option("write prompts to the log (off: a prompt's text is never logged)")] = False
