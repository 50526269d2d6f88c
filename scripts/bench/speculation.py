#!/usr/bin/env python3
"""Measure what guessing ahead gains, by how many guesses are right: the worker's loop, a guesser that knows the text.

    python -m scripts.bench.speculation --like gpt2
    python -m scripts.bench.speculation --model demo --precision int4 --acceptance 0,0.5,0.8,1

The text is written once without guesses; then again while a guesser proposes it, each of its tokens wrong with the
chance 1 - acceptance. `speedup` is the time without over the time with guesses, medians of --runs that alternate. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np

from protocol import messages as m
from scripts.bench.arguments import add_arguments, parse
from scripts.reliability.fakes import ListConnection
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import Model
from server.checkpoint.tokenizer import read_tokenizer
from server.config import Config
from server.engines.load import load_engine
from server.launch.spec import Spec
from server.link import Work
from server.worker.loop import Worker
from server.worker.sequence import Sequence
from server.worker.text import Text


class Script:
    """Guesser of a known text, with some tokens wrong."""

    def __init__(self, ids: list[int], acceptance: float, vocabulary: int) -> None:
        rng = np.random.default_rng(1)
        right = rng.random(len(ids)) < acceptance
        self._ids = [token if good else (token + 1) % vocabulary for token, good in zip(ids, right, strict=True)]

    def guess(self, ids: Many[int], most: int) -> list[int]:
        return self._ids[len(ids) : len(ids) + most]


class Bench:
    def __init__(self, args: argparse.Namespace, model: Model) -> None:
        config, folder = Config(), model.folder or Path()
        self._arch = read_architecture(folder)
        self._engine = load_engine(
            folder,
            self._arch,
            args.engine,
            args.precision,
            1,
            args.threads,
            config.cache_dir,
            config.cache_bytes,
            lambda *_: None,
        ).engine
        self._spec = Spec(
            endpoint="",
            server_key="",
            identity="",
            model=model.name,
            folder=str(folder),
            hub_cache="",
            models_dir="",
            engine=args.engine,
            precision=args.precision,
            threads=args.threads,
            rows=1,
            room=0,
            cache_dir="",
            cache_bytes=0,
        )
        self._text = Text(read_tokenizer(folder), self._arch)
        self._prompt = np.random.default_rng(0).integers(0, self._arch.vocabulary, args.prompt_tokens).tolist()
        self._new_tokens = args.new_tokens

    def write(self, acceptance: float | None, text: list[int]) -> m.Generated:
        link = ListConnection()
        worker = Worker(self._spec, link, self._engine, self._text, "", self._arch)
        speculate = 0 if acceptance is None else 8
        request = m.Generate(
            prompt_ids=self._prompt,
            max_new_tokens=self._new_tokens,
            strategy="greedy",
            ignore_eos=True,
            speculate=speculate,
        )
        worker.take(Work(id=1, group=1, request=request))
        if acceptance is not None:
            for task in worker.scheduler.find(1):
                assert isinstance(task, Sequence)
                task.guesser = Script([*self._prompt, *text], acceptance, self._arch.vocabulary)
        while not link.sent:
            worker.step()
        (result,) = link.sent
        if not isinstance(result, m.Generated):
            sys.exit(str(result))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=5)
    parser.add_argument("--acceptance", default="0,0.5,0.8,1", metavar="A,B,...", help="default: %(default)s")
    args, model = parse(parser)
    bench = Bench(args, model)
    text = bench.write(None, []).ids
    shares = [float(a) for a in args.acceptance.split(",")]
    times: dict[float | None, list[float]] = {a: [] for a in (None, *shares)}
    ledgers: dict[float, m.Generated] = {}
    for _ in range(args.runs):
        for acceptance, taken in times.items():
            began = time.perf_counter()
            result = bench.write(acceptance, text)
            taken.append(time.perf_counter() - began)
            if result.ids != text:
                sys.exit("guessing has changed the text")
            if acceptance is not None:
                ledgers[acceptance] = result
    plain = statistics.median(times[None])
    rows = [
        {
            "acceptance": a,
            "speedup": round(plain / statistics.median(times[a]), 2),
            "guessed": ledgers[a].ledger.guessed_tokens,
            "accepted": ledgers[a].ledger.accepted_tokens,
        }
        for a in shares
    ]
    print(
        json.dumps(
            {
                "model": model.name,
                "engine": args.engine,
                "precision": args.precision,
                "tok_s": round(len(text) / plain),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
