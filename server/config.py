"""Config: every limit, path and default of the daemon, as msgspec types with a help text.

server/settings.py turns them into flags and into the keys of a configuration file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from msgspec import Meta

from protocol.keys import DEFAULT_ENDPOINT, check_endpoint
from server.cores import threads_here


def default_models_dir() -> Path:
    """Folder that is searched for GPT-2 models: `gpt2d/models` in the user's data folder."""
    return platformdirs.user_data_path("gpt2d") / "models"


def default_cache_dir() -> Path:
    """Folder of built models: `gpt2d/graphs` in the user's cache folder."""
    return platformdirs.user_cache_path("gpt2d") / "graphs"


def default_hub_cache() -> Path:
    """Folder of the HuggingFace hub's ordinary cache, found as huggingface_hub does it, without importing that."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def default_threads() -> int:
    """Number of the fast physical cores that this process may use."""
    return threads_here().number


def check_cluster(address: str) -> str:
    """Return the address if Ray would take it. Raises: ValueError."""
    if address != "auto" and not re.fullmatch(r"(ray://)?[\w.-]+:\d{1,5}", address):
        raise ValueError(f"must be auto (a cluster on this machine), ray://HOST:10001 or HOST:6379, got {address!r}")
    return address


def parse_resource(text: str) -> tuple[str, float]:
    """Read NAME=AMOUNT, a resource that some nodes have. Raises: ValueError."""
    found = re.fullmatch(r"([A-Za-z_][\w:.-]*)=(\d+(?:\.\d+)?)", text)
    if found is None or float(found[2]) <= 0:
        raise ValueError(f"must be NAME=AMOUNT with an amount > 0, such as fast=1, got {text!r}")
    name = found[1]
    if name in {"CPU", "GPU", "memory", "object_store_memory"}:
        raise ValueError(
            f"{name} cannot be set here: a worker takes its threads as CPUs, the memory that its model needs, "
            "and no GPU"
        )
    return name, float(found[2])


def setting(
    text: str, metavar: str | None = None, *, unset: str = "", check: Callable[[str], object] | None = None
) -> Meta:
    """Make a field of Config a flag and a key of the configuration file, both with the field's name.

    `text` is its help. `unset` says what None means, or describes a default that depends on the machine. `check` raises
    ValueError for a text that is not allowed.
    """
    return Meta(extra={"help": text, "metavar": metavar, "unset": unset, "check": check})


Text = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\Z")]
"""Text of one line that is not empty."""
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
"""Number >= 0 that is not infinite."""
Positive = Annotated[float, Meta(ge=0.001, le=sys.float_info.max)]


@dataclass(frozen=True)
class Config:
    """Settings of the daemon: seconds, bytes and counts, where the name does not say otherwise."""

    endpoint: Annotated[Text, setting("where to listen", check=check_endpoint)] = DEFAULT_ENDPOINT
    key: Annotated[
        Path | None,
        setting("the server's secret key: encrypts, and admits --authorised-keys alone", "FILE", unset="none"),
    ] = None
    authorised_keys: Annotated[
        Path | None,
        setting(
            "public keys NAME.pub of those who may talk, with their roles; read again when it changes",
            "FOLDER",
            unset="none",
        ),
    ] = None
    models_dir: Annotated[Path, setting("folders of GPT-2 models", "DIR")] = field(default_factory=default_models_dir)
    cache_dir: Annotated[Path, setting("built models are kept here", "DIR")] = field(default_factory=default_cache_dir)
    cache_bytes: Annotated[
        Annotated[int, Meta(ge=0)],
        setting("size of the built models together; the least recently used leave first", "BYTES"),
    ] = 20 << 30
    hub_cache: Path = field(default_factory=default_hub_cache)
    """Moved by the hub's own environment variables."""
    allow_hub: Annotated[
        bool,
        setting(
            "let clients load any GPT-2 of the HuggingFace hub as owner/name (off: gpt2 in its four sizes, distilgpt2)"
        ),
    ] = False
    preload: Annotated[
        tuple[Text, ...], setting("model[/engine[/precision]][:replicas], loaded at the start", "MODEL")
    ] = ()
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)],
        setting("threads of each worker", "N", unset="one for each fast physical core"),
    ] = field(default_factory=default_threads)
    instruction_set: Annotated[
        Text | None,
        setting(
            "instructions that the engine native computes with, for comparisons: all give the same text",
            "NAME",
            unset="GPT2D_INSTRUCTION_SET, else the fastest that a worker's processor has",
        ),
    ] = None
    rows: Annotated[
        Count | None,
        setting(
            "sequences that run together in a worker",
            "N",
            unset="up to 16 in 640 MB, up to 64 in an eighth of the memory",
        ),
    ] = None
    max_memory: Annotated[
        Positive | None,
        setting("memory that all models together may come to need", "GB", unset="what is free"),
    ] = None
    keep_alive: Annotated[
        Positive | None, setting("unload a model that nobody has used for S seconds", "S", unset="never")
    ] = None
    idle_exit: Annotated[
        Positive | None,
        setting("drain and end once nobody has been connected for S seconds", "S", unset="never"),
    ] = None
    stuck_seconds: Annotated[
        Amount, setting("end a model's worker that has not moved for S seconds; 0: never", "S")
    ] = 60.0
    drain_seconds: Annotated[Amount, setting("how long running streams may go on after Ctrl-C", "S")] = 10.0
    max_open_per_peer: Annotated[
        Count,
        setting(
            "unfinished requests of one peer: all connections of a key, or one connection where there are no keys", "N"
        ),
    ] = 64
    max_tokens_per_peer: Annotated[
        Count, setting("tokens of its unfinished requests, those of the prompt and those still to be written", "N")
    ] = 1 << 20
    max_rate_per_peer: Annotated[
        Annotated[float, Meta(ge=1, le=sys.float_info.max)],
        setting("its requests a second; as many more may come at once", "N"),
    ] = 1000.0
    max_open_per_worker: Annotated[
        Count, setting("unfinished requests of one worker, running and waiting; beyond it: busy", "N")
    ] = 128
    share_prefixes: Annotated[
        bool,
        setting(
            "keys share what the workers remember of prompts and texts; a key's holder can then find out by timing how "
            "others' prompts begin (off: each key has its own; without keys all share)"
        ),
    ] = False
    max_unsent: Annotated[
        Count, setting("replies kept for a client that does not read them; beyond it, the client is dropped", "N")
    ] = 256
    max_unsent_bytes: Annotated[Count, setting("the size of these replies together", "BYTES")] = 4 << 20
    max_unsent_seconds: Annotated[
        Annotated[float, Meta(ge=0.1, le=sys.float_info.max)], setting("how long these replies are kept", "S")
    ] = 10.0
    cluster: Annotated[
        Text | None,
        setting(
            "place workers on a Ray cluster: auto, ray://HOST:10001 or HOST:6379",
            "ADDRESS",
            unset="on this machine",
            check=check_cluster,
        ),
    ] = None
    cluster_resources: Annotated[
        tuple[Text, ...],
        setting(
            "what a worker takes of its node beside its threads as CPUs and its memory",
            "NAME=AMOUNT",
            check=parse_resource,
        ),
    ] = ()
    worker_address: Annotated[
        Text,
        setting(
            "where workers connect, as they can reach it; port 0: any that is free", "ENDPOINT", check=check_endpoint
        ),
    ] = "tcp://127.0.0.1:0"
    metrics_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        setting("answer Prometheus on http://127.0.0.1:PORT/metrics", "PORT", unset="off"),
    ] = None
    log_format: Annotated[Literal["text", "json"], setting("json: one object for each line")] = "text"
    log_prompts: Annotated[bool, setting("write prompts to the log (off: a prompt's text is never logged)")] = False
