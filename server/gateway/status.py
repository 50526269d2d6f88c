"""Status of the daemon: the answers to hello, ping, stats and models."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import cast, get_args

import msgspec
import psutil
from msgspec.structs import replace

from protocol import messages as m
from protocol.errors import BadModel, printable
from protocol.keys import Role
from protocol.parameters import parameters
from protocol.programs import VERSION
from server.catalogue.architecture import Architecture
from server.catalogue.catalogue import Model
from server.catalogue.engines import CALIBRATES, ENGINES, Traits, instruction_set, notices, pace
from server.catalogue.findings import Finding
from server.catalogue.records import Found, Records
from server.config import Config
from server.gateway.replicas import Replica, Replicas, rows_share
from server.gateway.sessions import Done, Owner, Sessions

NOTICES_S = 10.0
"""Time after which what users should know is looked at again."""


def server_info(server_id: str, role: Role, config: Config) -> m.ServerInfo:
    limits = m.Limits(open=config.max_open_per_peer, tokens=config.max_tokens_per_peer, rate=config.max_rate_per_peer)
    return _server_info(server_id, role, limits, int(time.monotonic() / NOTICES_S))


@lru_cache(maxsize=4)
def _server_info(server_id: str, role: Role, limits: m.Limits, _: int) -> m.ServerInfo:
    """Return the answer to hello as it is in one period of NOTICES_S: whoever asks without end costs nothing."""
    return m.ServerInfo(
        id=None,
        protocol=f"{m.MAJOR}.{m.MINOR}",
        server_id=server_id,
        version=VERSION,
        host=platform.node(),
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        memory_bytes=_memory(),
        engines=[_engine(name, traits) for name, traits in ENGINES.items()],
        parameters=parameters(),
        role=role,
        notices=[printable(notice) for notice in notices()],
        limits=limits,
        instruction_set=instruction_set() if "native" in ENGINES else "",
    )


def _engine(name: str, traits: Traits) -> m.Engine:
    strategies = [s for s in get_args(m.Strategy) if traits.most_rows != 1 or s not in m.SEARCHES]
    return m.Engine(
        name=name,
        precisions=list(traits.precisions),
        strategies=strategies,
        compiles=list(traits.compiles),
        calibrates=[CALIBRATES[1]] if name == CALIBRATES[0] else [],
    )


def model_list(models: dict[str, m.ModelInfo], packed: dict[str, msgspec.Raw], replicas: Replicas) -> m.ModelList:
    """Return the reply: every model on the disk, as `packed` and `models` have them, with what is loaded of it."""
    running: dict[str, list[Replica]] = {}
    for replica in replicas.models():
        running.setdefault(replica.model, []).append(replica)
    loaded = {name: _with_replicas(models[name], found) for name, found in running.items() if name in models}
    return m.ModelList(id=None, models=cast("list[m.ModelInfo]", list((packed | loaded).values())))


def _with_replicas(model: m.ModelInfo, running: list[Replica]) -> m.ModelInfo:
    precisions = [
        replace(p, loaded=any(r.serves for r in own), replicas=[r.health() for r in own])
        for p in model.precisions
        for own in [[r for r in running if r.way[1:] == (p.engine, p.precision)]]
    ]
    return replace(model, precisions=precisions)


def pong(server_id: str, began: float, replicas: Replicas, *, draining: bool) -> m.Pong:
    """Return the answer to ping. `began` is when this daemon started (monotonic)."""
    return m.Pong(
        id=None,
        server_id=server_id,
        uptime_ms=(time.monotonic() - began) * 1000,
        draining=draining,
        workers=[replica.health() for replica in replicas.models()],
    )


def stats(began: float, sessions: Sessions, requests: Counter[str], replicas: Replicas) -> m.Stats:
    """Return the counts. `began` is when this daemon started (monotonic); `requests` has their number by type."""
    return m.Stats(
        id=None,
        uptime_ms=(time.monotonic() - began) * 1000,
        rss_bytes=process_rss(),
        peers=sessions.peers,
        open_requests=len(sessions.all_open()),
        requests=dict(requests),
        errors=dict(sessions.errors),
        workers=[replica.stats() for replica in replicas.all() if replica.ready],
    )


def own_stats(began: float, sessions: Sessions, owner: Owner, replicas: Replicas) -> m.Stats:
    """Return the counts of an owner's own requests, for one that may not know others'."""
    return m.Stats(
        id=None,
        uptime_ms=(time.monotonic() - began) * 1000,
        rss_bytes=process_rss(),
        peers=sessions.peers_of(owner),
        open_requests=owner.open,
        requests=dict(owner.requests),
        errors=dict(owner.errors),
        workers=[
            replace(replica.stats(), **asdict(owner.done.get(replica.identity, Done())))
            for replica in replicas.all()
            if replica.ready
        ],
    )


def process_rss() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def cpu() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(model: Model, finding: Finding, config: Config) -> m.ModelInfo:
    """Return what the disk says about a model, without what is loaded of it. Reads a file."""
    arch = model.architecture
    if arch is None or finding.problem:
        problem = model.problem or finding.problem
        return m.ModelInfo(
            name=model.name, parameters=0, context=0, file_bytes=0, precisions=[], problem=printable(problem)
        )
    found = _measured(model, config)
    precisions = [
        m.Precision(
            engine=engine,
            precision=precision,
            memory_bytes=next(iter(caches.values())),
            loaded=False,
            fidelity=found.get(f"{engine}/{precision}/{next(iter(caches))}"),
            caches=caches,
        )
        for engine, traits in ENGINES.items()
        for precision in traits.precisions
        for caches in [_memory_by_cache(arch, engine, precision, config)]
    ]
    calibrates = CALIBRATES[0] in ENGINES and model.on_disk
    return m.ModelInfo(
        name=model.name, parameters=arch.parameters, context=arch.context, file_bytes=model.file_bytes,
        on_disk=model.on_disk, precisions=precisions,
        notices=[printable(notice) for notice in (*arch.notices, *finding.notices)],
        calibrate_s=arch.calibration_seconds(config.threads, pace()) if calibrates else 0,
    )  # fmt: skip


def _memory_by_cache(arch: Architecture, engine: str, precision: str, config: Config) -> dict[str, int]:
    """Return the memory that a model takes with each kind of KV cache, the default first."""
    traits = ENGINES[engine]

    def memory(cache: str) -> int:
        rows = traits.rows(config.rows) or arch.default_rows(engine, precision, rows_share(config), cache)
        return arch.memory_bytes(engine, precision, rows, cache)

    return {cache: memory(cache) for cache in traits.precisions[precision].caches}


def _measured(model: Model, config: Config) -> Found:
    if model.folder is None or not model.on_disk or model.architecture is None:
        return {}
    try:
        return Records(config.cache_dir, model.folder, model.architecture, model.base_folder).found()
    except (OSError, BadModel):  # it has just been taken away
        return {}


def _memory() -> int:
    return int(psutil.virtual_memory().total)
