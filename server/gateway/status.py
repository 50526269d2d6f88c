"""What the daemon says about itself: the bodies of hello and models, and the memory of its process."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import get_args

import psutil

from protocol import messages as m
from protocol.keys import Role
from protocol.parameters import parameters
from server.catalogue.catalogue import Catalogue, Model
from server.catalogue.engines import ENGINES, Traits
from server.catalogue.records import Found, Records
from server.config import VERSION, Config
from server.gateway.replicas import Workers


@cache
def server_info(server_id: str, role: Role) -> m.ServerInfo:
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
    )


def _engine(name: str, traits: Traits) -> m.Engine:
    strategies = [s for s in get_args(m.Strategy) if traits.most_rows != 1 or s not in m.SEARCHES]
    return m.Engine(
        name=name, precisions=list(traits.precisions), strategies=strategies, compiles=list(traits.compiles)
    )


def model_list(catalogue: Catalogue, workers: Workers, config: Config) -> m.ModelList:
    return m.ModelList(id=None, models=[_model(model, workers, config) for model in catalogue.models()])


def process_rss() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def cpu() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _model(model: Model, workers: Workers, config: Config) -> m.ModelInfo:
    arch = model.architecture
    if arch is None:
        return m.ModelInfo(name=model.name, parameters=0, context=0, file_bytes=0, precisions=[], problem=model.problem)
    found = _measured(model, config)
    running = [w for w in workers.models() if w.model == model.name]
    precisions = [
        m.Precision(
            engine=engine,
            precision=precision,
            memory_bytes=arch.memory_bytes(
                engine, precision, traits.rows(config.rows) or arch.default_rows(engine, precision)
            ),
            loaded=any(w.serves for w in running if w.way[1:] == (engine, precision)),
            fidelity=found.get(f"{engine}/{precision}"),
            replicas=[w.health() for w in running if w.way[1:] == (engine, precision)],
        )
        for engine, traits in ENGINES.items()
        for precision in traits.precisions
    ]
    return m.ModelInfo(
        name=model.name, parameters=arch.parameters, context=arch.context, file_bytes=model.file_bytes,
        on_disk=model.folder is not None, precisions=precisions,
    )  # fmt: skip


def _measured(model: Model, config: Config) -> Found:
    if model.folder is None or model.architecture is None:
        return {}
    try:
        return Records(config.cache_dir, model.folder, model.architecture).found()
    except OSError:  # it has just been taken away
        return {}


def _memory() -> int:
    return int(psutil.virtual_memory().total)
