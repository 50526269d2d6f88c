"""Task of a process that measures how much quality a precision loses, and keeps the result."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from protocol import messages as m
from server.catalogue.adapters import architecture_of, tokenizer_folder
from server.catalogue.catalogue import HELD_OUT_FILE
from server.catalogue.engines import REFERENCE
from server.catalogue.records import Records
from server.checkpoint.tokenizer import read_tokenizer
from server.engines.load import Made, load_engine
from server.launch.spec import Spec
from server.link import Beat
from server.worker.connection import Connection, reporter, task_of
from server.worker.fidelity import CHUNK, check, compare
from server.worker.text import Text


def measure(spec: Spec, connection: Connection) -> m.Measured:
    """Carry out the one Measure that the gateway has for this process, and keep the result.

    Raises: BadRequest, BadModel, LoadFailed, and whatever a runtime raises.
    """
    task = task_of(connection, m.Measure)
    progress = reporter(connection)
    folder = Path(spec.folder)
    base = Path(spec.base_folder) if spec.base_folder else None
    cache_dir = Path(spec.cache_dir)
    arch = architecture_of(folder, base)
    progress("text", 0, 1, "text")
    text = task.text or HELD_OUT_FILE.read_text(encoding="utf-8")
    ids = Text(read_tokenizer(tokenizer_folder(folder, base)), arch).encode(text)
    check(ids, arch.context)
    records = Records(cache_dir, folder, arch, base)
    progress("text", 1, 1, "text")

    def make(engine: str, precision: str, cache: str | None = None) -> Made:
        made = load_engine(
            folder,
            arch,
            engine,
            precision,
            1,
            spec.threads,
            cache_dir,
            spec.cache_bytes,
            progress,
            cache=cache,
            base=base,
        )
        connection.send(Beat(id=None, rss_bytes=_resident_bytes()))  # the part of its reservation that is used
        return made

    made = make(spec.engine, spec.precision, spec.cache)
    made.engine.prefill(0, ids[: min(CHUNK, arch.context)], 0, [0])
    memory_bytes = _resident_bytes()
    reference = make(*REFERENCE)
    compared = compare(
        made.engine, reference.engine, ids, lambda done, total: progress("compare", done, total, "tokens")
    )
    fidelity = m.Fidelity(
        quantised_share=made.engine.quantised_share,
        disk_bytes=made.disk_bytes,
        memory_bytes=memory_bytes,
        threads=made.engine.threads,
        perplexity=compared.perplexity,
        perplexity_change_pct=100 * (compared.perplexity / compared.reference_perplexity - 1),
        top1_agreement=compared.top1_agreement,
        kl_mean=compared.kl_mean,
        kl_p99=compared.kl_p99,
        greedy_tokens=compared.greedy_tokens,
        greedy_limit=compared.greedy_limit,
        tok_s=compared.tok_s,
        tokens=compared.tokens,
        held_out=task.text is None,
        calibrated=made.calibrated,
    )
    try:
        records.add(spec.engine, spec.precision, spec.cache, fidelity)
    except OSError as e:
        print(f"the measurement cannot be kept in {cache_dir}: {e}", file=sys.stderr)
    return m.Measured(
        id=None,
        model=spec.model,
        engine=spec.engine,
        precision=spec.precision,
        fidelity=fidelity,
        cache=spec.cache,
    )


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss
