"""One engine in a process of its own, for the benchmarks: `EngineProcess` starts it, asks for timed runs, reads its memory.

The child reads a line of JSON for each run and answers with a line; nothing else happens in it, so what it reports is
the engine alone. Run as a program, this file is that child.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from protocol.errors import Gpt2dError
from scripts.make_model import ensure_model
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import Catalogue, Model
from server.catalogue.engines import ENGINES
from server.config import default_hub_cache, default_models_dir, default_threads

Generate = Callable[[list[list[int]], int], tuple[float, float]]
"""(prompts, new tokens) -> (prefill seconds, decode seconds): all prompts together, greedy, end of text ignored."""


def add_arguments(parser: argparse.ArgumentParser, *, runs: int) -> None:
    """The arguments that every benchmark of one model has."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a model of the daemon: demo, or a folder of --models-dir")
    which.add_argument(
        "--like", choices=list(PUBLISHED), help="random weights of these shapes, made where they are missing"
    )
    parser.add_argument("--models-dir", type=Path, default=default_models_dir(), help="default: %(default)s")
    parser.add_argument("--engine", choices=list(ENGINES), default=next(iter(ENGINES)), help="default: %(default)s")
    parser.add_argument("--precision", default="int8", help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=runs, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: %(default)s")


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Model]:
    """Parse, check, and find (or make) the model; exits with a sentence where something is wrong."""
    args = parser.parse_args()
    if args.precision not in ENGINES[args.engine].precisions:
        parser.error(f"engine {args.engine} has the precisions {', '.join(ENGINES[args.engine].precisions)}")
    if args.runs < 1 or args.prompt_tokens < 1 or args.new_tokens < 2:
        parser.error("--runs and --prompt-tokens are at least 1, --new-tokens at least 2")
    try:
        model = Catalogue(args.models_dir, default_hub_cache()).find(
            args.model or ensure_model(args.like, args.models_dir)
        )
    except Gpt2dError as e:
        sys.exit(str(e))
    if model.folder is None:
        sys.exit(
            f"{model.name} is not on this disk; load it once with the daemon, which downloads it, or measure random weights with --like"
        )
    return args, model


@dataclass(frozen=True)
class DaemonProcess:
    endpoint: str
    process: subprocess.Popen[bytes]


@contextmanager
def daemon_process(args: argparse.Namespace, *more: str) -> Iterator[DaemonProcess]:
    """A daemon of its own on a port of the system's choice, which is stopped at the end."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "server",
        "--endpoint=tcp://127.0.0.1:0",
        f"--models-dir={args.models_dir}",
        f"--threads={args.threads}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            daemon = subprocess.Popen([*command, *more], stderr=stream)
        try:
            give_up = time.monotonic() + 20
            while not (found := re.search(r"listens on (\S+?),", log.read_text())):
                if daemon.poll() is not None or time.monotonic() > give_up:
                    sys.exit(f"the daemon did not start: {log.read_text()}")
                time.sleep(0.02)
            yield DaemonProcess(found[1], daemon)
        finally:
            daemon.terminate()
            daemon.wait(20)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass(frozen=True)
class Variant:
    """What to measure: engine "transformers" is the reference, all others are the daemon's own."""

    engine: str
    precision: str
    folder: str
    threads: int
    rows: int = 1


@dataclass(frozen=True)
class Run:
    prefill_s: float
    decode_s: float


class EngineFailed(SystemExit):
    """Ends a benchmark with its sentence, unless it goes on without the engine."""


class EngineProcess:
    """A context manager; `load_s` is the time its model took to load, without the interpreter's start."""

    def __init__(self, variant: Variant, command: list[str] | None = None) -> None:
        """`command` starts another program that answers in the same way. Raises: EngineFailed."""
        command = command or [sys.executable, __file__, json.dumps(asdict(variant))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_s = float(self._read()["load_s"])

    def run(self, prompt_tokens: int, new_tokens: int, seed: int, batch: int = 1) -> Run:
        """A generation of `batch` sequences together, from random prompts that no other seed has."""
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
                f"the engine's process ended with exit code {self._process.wait()}; its own words are above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def own_engine(variant: Variant) -> tuple[Generate, int]:
    from server.catalogue.architecture import read_architecture
    from server.config import Config
    from server.engines.load import load_engine

    arch, config = read_architecture(Path(variant.folder)), Config()
    engine = load_engine(
        Path(variant.folder), arch, variant.engine, variant.precision, variant.rows, variant.threads,
        config.cache_dir, config.cache_bytes, lambda *_: None,
    ).engine  # fmt: skip

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        began = time.perf_counter()
        tokens = [int(engine.prefill(row, p, 0, [len(p) - 1])[0].argmax()) for row, p in enumerate(prompts)]
        middle = time.perf_counter()
        past = [len(p) for p in prompts]
        for _ in range(new_tokens - 1):
            tokens = engine.decode(tokens, past).argmax(axis=1).tolist()
            past = [p + 1 for p in past]
        return middle - began, time.perf_counter() - middle

    return generate, arch.vocabulary


def transformers_engine(variant: Variant) -> tuple[Generate, int]:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(variant.threads)
    model = GPT2LMHeadModel.from_pretrained(variant.folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def timed(ids: torch.Tensor, new_tokens: int) -> float:
        began = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return time.perf_counter() - began

    def generate(prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        ids = torch.tensor(prompts)
        prefill = timed(ids, 1)
        return prefill, timed(ids, new_tokens) - prefill

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
