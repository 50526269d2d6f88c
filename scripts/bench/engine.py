"""Engine in a process of its own, for the benchmarks: `EngineProcess` starts it, times its runs, reads its memory.

The child reads a line of JSON for each run and answers with a line; nothing else happens in it, so what it reports is
the engine alone. Run as a program, this file is that child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
Generate = Callable[[list[list[int]], int], tuple[float, float]]
"""(prompts, new tokens) -> (prefill seconds, decode seconds): all prompts together, end of text ignored."""
SAMPLERS: dict[str, dict[str, Any]] = {"greedy": {"strategy": "greedy"}, "default": {}}
"""Settings of a request by which the daemon's engines choose tokens; others take the likeliest."""


@dataclass(frozen=True)
class Variant:
    """Engine to measure: "transformers" is the baseline, all others are the daemon's own."""

    engine: str
    precision: str
    folder: str
    threads: int
    rows: int = 1
    sampler: str = "greedy"
    """By which of SAMPLERS an engine of the daemon chooses."""
    sampling: dict[str, float] | None = None
    """Settings of the baseline where it samples.

    It then continues one prompt with as many texts as are asked for, and has no prefill of its own.
    """


@dataclass(frozen=True)
class Run:
    prefill_s: float
    decode_s: float


class EngineFailed(SystemExit):
    """End of a benchmark with its sentence, unless it goes on without the engine."""


def as_module(name: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command that runs a module of this checkout; `module_environment` lets it be found from any folder."""
    return [python, "-P", "-m", name, *arguments]


def module_environment(*folders: Path) -> dict[str, str]:
    """Return this process's environment with the checkout, and these folders, on the path of modules."""
    paths = [str(ROOT), *map(str, folders), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class EngineProcess:
    """Context manager; `load_s` is the time its model took to load, without the interpreter's start."""

    def __init__(
        self, variant: Variant, command: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        """Start the engine, or another program that answers in the same way, in an environment or in this process's.

        Raises: EngineFailed.
        """
        command = command or as_module("scripts.bench.engine", json.dumps(asdict(variant)))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables or module_environment()
        )
        self.load_s = float(self._read()["load_s"])

    def run(self, prompt_tokens: int, new_tokens: int, seed: int, batch: int = 1) -> Run:
        """Generate `batch` sequences together, from random prompts that no other seed has."""
        order = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "seed": seed, "batch": batch}
        return Run(**self._ask(order))

    def rss_mb(self) -> float:
        return psutil.Process(self._process.pid).memory_info().rss / 1e6

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("the engine's process has no stdin")
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise EngineFailed(
                f"the engine's process ended with exit code {self._process.wait()}; the lines above say why"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


# The child


def own_engine(variant: Variant) -> tuple[Generate, int]:
    """Load one of the daemon's engines; return what generates with it, and the size of its vocabulary."""
    from protocol import messages as m
    from server.catalogue.architecture import read_architecture
    from server.config import Config
    from server.engines.base import Logits, Selective
    from server.engines.load import load_engine
    from server.worker.processors import Processors
    from server.worker.sampling import Sampler, sample

    arch, config = read_architecture(Path(variant.folder)), Config()
    engine = load_engine(
        Path(variant.folder), arch, variant.engine, variant.precision, variant.rows, variant.threads,
        config.cache_dir, config.cache_bytes, lambda *_: None,
    ).engine  # fmt: skip

    request = m.Generate(prompt="x", **SAMPLERS[variant.sampler])

    def choose(logits: Logits, samplers: list[Sampler]) -> list[int]:
        tokens = sample(logits, samplers, [[]] * len(samplers), engine)
        return [token for token in tokens if isinstance(token, int)]

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        samplers = [Sampler(request, seed, Processors(request, 0, [], [])) for seed in range(len(prompts))]
        best = [sampler.best for sampler in samplers]
        selective = engine if isinstance(engine, Selective) and len(prompts) <= engine.best_rows and all(best) else None
        began = time.perf_counter()
        tokens = []
        for row, prompt in enumerate(prompts):
            tokens += choose(engine.prefill(row, prompt, 0, [len(prompt) - 1]), [samplers[row]])
        middle = time.perf_counter()
        past = [len(p) for p in prompts]
        for _ in range(new_tokens - 1):
            logits = selective.decode(tokens, past, best=best) if selective else engine.decode(tokens, past)
            tokens = choose(logits, samplers)
            past = [p + 1 for p in past]
        return middle - began, time.perf_counter() - middle

    return generate, arch.vocabulary


def transformers_engine(variant: Variant) -> tuple[Generate, int]:
    """Load the baseline; return what generates with it, and the size of its vocabulary."""
    from scripts.bench import baseline

    model = baseline.load(variant.folder, variant.threads, variant.precision)

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        if variant.sampling is not None:
            more = {"do_sample": True, "num_return_sequences": len(prompts), **variant.sampling}
            return 0.0, baseline.generate(model, prompts[:1], new_tokens, **more)
        prefill_s = baseline.generate(model, prompts, 1)
        return prefill_s, baseline.generate(model, prompts, new_tokens) - prefill_s if new_tokens > 1 else 0.0

    return generate, model.config.vocab_size


def main() -> None:
    variant = Variant(**json.loads(sys.argv[1]))
    began = time.perf_counter()
    generate, vocabulary = (transformers_engine if variant.engine == "transformers" else own_engine)(variant)
    print(json.dumps({"load_s": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        shape = (order["batch"], order["prompt_tokens"])
        prompts = np.random.default_rng(order["seed"]).integers(0, vocabulary, shape).tolist()
        prefill_s, decode_s = generate(prompts, order["new_tokens"])
        print(json.dumps({"prefill_s": prefill_s, "decode_s": decode_s}), flush=True)


if __name__ == "__main__":
    main()
