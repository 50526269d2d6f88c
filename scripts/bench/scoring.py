#!/usr/bin/env python3
"""Measure how many tokens a second are scored: many texts in a request, beside a prompt of as many tokens.

    python -m scripts.bench.scoring --like gpt2
    python -m scripts.bench.scoring --like gpt2 --tokens 15 --texts 200
    python -m scripts.bench.scoring --like gpt2 --tokens 8192 --texts 2 --stride 1024 --peers transformers,minicons

Starts a daemon of its own. In each turn the texts are scored (made-up tokens), a prompt of 512 tokens, or of the whole
context where that is less, is prefilled before and after it, and each of --peers scores the same texts at fp32: with
transformers one text after the other in windows of the same stride, all probabilities of a text at once; with minicons
eight texts at a time, which must fit the context. The peers have to be installed.

Figures are medians of the turns: tokens a second, counted as tokens that have a score; `computed`, how many tokens were
computed for each of them, which the stride decides (at 256 of a context of 1,024 four); `of_prefill`, the share of the
prompt's speed; `more_mb`, what the first scores made the worker's memory grow by. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from protocol import Client, messages as m
from scripts.bench.arguments import add_arguments, parse, start_daemon
from server.worker.loop import BEAT_S
from server.worker.windows import Windows, stride_of

if TYPE_CHECKING:
    from server.catalogue.catalogue import Model

PROMPT = 512
"""Most tokens of the prompt that scores are compared with."""
TOGETHER = 8
"""Texts that minicons scores at a time."""
Texts: TypeAlias = Sequence[list[int]]
Peer: TypeAlias = Callable[[Texts], object]


def amount(texts: int, tokens: int, stride: int, context: int) -> tuple[int, int]:
    """Return how many tokens of texts get a score, and how many are computed for it, the token before them included."""
    windows = Windows(1, tokens, stride, context, after=False)
    return texts * tokens, texts * sum(end - begin for begin, end, _ in windows)


def by_protocol(client: Client, texts: Texts, stride: int) -> m.Scored:
    """Score texts in one request."""
    request = m.Score(texts=[m.Passage(ids=ids) for ids in texts], stride=stride)
    answers: list[m.AnyReply | Exception] = []
    client.connection.submit(request, answers.append, 600)
    while not answers or isinstance(answers[-1], m.ScoredText):
        time.sleep(0.001)
    last = answers[-1]
    if not isinstance(last, m.Scored):
        sys.exit(str(last))
    return last


def prefill_speed(client: Client, ids: list[int]) -> float:
    """Return the tokens a second of a prompt."""
    ledger = client.generate(prompt_ids=ids, max_new_tokens=1, deterministic=False).ledger
    return len(ids) / ledger.prefill_ms * 1000


def transformers_peer(folder: Path, threads: int, stride: int, context: int) -> Peer:
    """Return what scores texts by transformers."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    start = model.config.bos_token_id

    def score(texts: Texts) -> None:
        for ids in texts:
            whole = [start, *ids]
            for begin, end, first in Windows(1, len(ids), stride, context, after=False):
                with torch.inference_mode():
                    logits = model(torch.tensor([whole[begin:end]])).logits[0, first - 1 - begin :]
                    torch.log_softmax(logits, -1)[range(len(logits)), whole[first : end + 1]].tolist()

    return score


def minicons_peer(folder: Path, threads: int) -> Peer:
    """Return what scores texts by minicons."""
    import torch
    from minicons import scorer

    torch.set_num_threads(threads)
    model = scorer.IncrementalLMScorer(str(folder), "cpu")

    def score(texts: Texts) -> None:
        words = [model.tokenizer.decode(ids) for ids in texts]
        for first in range(0, len(words), TOGETHER):
            model.token_score(words[first : first + TOGETHER], bow_correction=False)

    return score


def peers_of(names: Sequence[str], model: Model, threads: int, stride: int, context: int) -> dict[str, Peer]:
    """Return the peers that were asked for. Exits with a sentence where one is missing."""
    folder = model.folder or Path()
    try:
        made: dict[str, Callable[[], Peer]] = {
            "transformers": lambda: transformers_peer(folder, threads, stride, context),
            "minicons": lambda: minicons_peer(folder, threads),
        }
        return {name: made[name]() for name in names}
    except ImportError as e:
        sys.exit(f"{e}; `pip install {' '.join(names)}`, with torch for the processor alone, brings it")


def rss(client: Client) -> int:
    """Return the worker's memory, once it has said what it is now."""
    time.sleep(3 * BEAT_S)
    return sum(worker.rss_bytes for worker in client.stats().workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, runs=5)
    parser.add_argument("--texts", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=512, help="of each text; default: %(default)s")
    parser.add_argument("--stride", type=int, default=None, help=f"default: {m.STRIDE}, or half the context")
    parser.add_argument("--peers", default="", metavar="NAME,...", help="of transformers, minicons")
    args, model = parse(parser)
    names = [name for name in args.peers.split(",") if name]
    if unknown := set(names) - {"transformers", "minicons"}:
        parser.error(f"--peers: no {', '.join(sorted(unknown))}; there are transformers and minicons")
    if model.architecture is None:
        sys.exit(f"{model.name} cannot be read")
    context, vocabulary = model.architecture.context, model.architecture.vocabulary
    stride = stride_of(m.Score(texts=[], stride=args.stride), context)
    scored, computed = amount(args.texts, args.tokens, stride, context)
    peers = peers_of(names, model, args.threads, stride, context)
    random = np.random.default_rng(0)

    def made(count: int) -> list[int]:
        return [int(i) for i in random.integers(0, vocabulary - 1, count)]

    found: dict[str, list[float]] = {name: [] for name in ("native", "prefill", "of_prefill", *peers)}
    with start_daemon(args) as daemon, Client(daemon.endpoint) as client:
        loaded = client.load(model.name, engine=args.engine, precision=args.precision)
        prompt = min(PROMPT, context - 1)
        prefill_speed(client, made(prompt))
        rest = rss(client)
        by_protocol(client, [made(args.tokens) for _ in range(args.texts)], stride)
        more = rss(client) - rest
        for turn in range(args.runs):
            texts = [made(args.tokens) for _ in range(args.texts)]
            before = prefill_speed(client, made(prompt))
            began = time.perf_counter()
            by_protocol(client, texts, stride)
            took = time.perf_counter() - began
            prefill = statistics.mean([before, prefill_speed(client, made(prompt))])
            found["native"].append(scored / took)
            found["prefill"].append(prefill)
            found["of_prefill"].append(scored / took / prefill)
            for name, peer in peers.items():
                began = time.perf_counter()
                peer(texts)
                found[name].append(scored / (time.perf_counter() - began))
            shown = ", ".join(f"{name} {values[-1]:.4g}" for name, values in found.items())
            print(f"{turn + 1} of {args.runs}: {shown}", file=sys.stderr, flush=True)
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    figures = {
        "model": loaded.model, "engine": loaded.engine, "precision": loaded.precision, "threads": loaded.threads,
        "texts": args.texts, "tokens": args.tokens, "stride": stride, "context": context,
        "computed": round(computed / scored, 2), "more_mb": round(more / 1e6, 1), "tok_s": medians,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
