#!/usr/bin/env python3
"""Measure what each way of decoding costs and writes, on each size, with the daemon's default engine and precision.

    python -m scripts.investigation.decoder_methods              all; started again, it measures what is missing
    python -m scripts.investigation.decoder_methods --quick      seconds: to see that everything works
    python -m scripts.investigation.decoder_methods --sizes demo --only greedy beam

All decoders of a size are asked in turns, through the socket, of one worker, which is the process that holds the model.
Each turn has another prompt of 32 tokens and another seed, the same for all decoders; nothing of earlier turns is
reused (`deterministic`), the end of text is ignored, and only `prompt lookup` guesses ahead: its text is that of
`greedy`.

Measured: `inference_ms`, which the server measures (prefill and decoding), `whole_ms`, which the client waits, and
tok/s of decoding. Where the weights are trained (`demo`, and what is on the disk by its real name) also what was
written: the share of 4-grams that repeat (seq-rep-4), the share of different 1-, 2- and 3-grams (distinct-n), and the
perplexity of the text under the same model at full precision. Their prompts are verse that `demo` was not trained on,
and the texts are kept in the results. What random weights write is noise, and is not judged; their prompts are random
tokens, and how well guesses work on them says nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from scripts.investigation.harness import WARMUPS, Plan, Results, Row, measure, model_of, parse, parser, runs_of
from scripts.investigation.one_daemon import Limited, OneDaemon, add_seconds, finish, medians, most, table
from scripts.investigation.texts import PROMPT_TOKENS, is_trained, quality, random_prompt, verse_prompt
from server.catalogue.catalogue import Model
from server.catalogue.engines import REFERENCE, choose_engine

BEAMS = {"num_beams": 4}
DECODERS: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "sampling": {"strategy": "sample", "top_k": 0},
    "top-k": {"strategy": "sample", "top_k": 50},
    "top-p": {"strategy": "sample", "top_k": 0, "top_p": 0.95},
    "min-p": {"strategy": "sample", "top_k": 0, "min_p": 0.1},
    "typical": {"strategy": "sample", "top_k": 0, "typical_p": 0.95},
    "mirostat": {"strategy": "mirostat", "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    "beam": {"strategy": "beam"} | BEAMS,
    "beam sampling": {"strategy": "beam_sample", "top_k": 50} | BEAMS,
    "diverse beam": {"strategy": "diverse_beam", "num_beam_groups": 2, "diversity_penalty": 1.0} | BEAMS,
    "contrastive": {"strategy": "contrastive", "num_candidates": 4, "penalty_alpha": 0.6},
    "prompt lookup": {"strategy": "greedy", "speculate": 8},
}
"""Settings of each decoder: its authors' or the daemon's usual ones, temperature 1."""
ROWS = 4
"""Number of rows that the searches need, on every size."""
NEW_TOKENS = (25, 100)
KEPT = 10
"""Number of texts of a decoder in the results, the same prompts for all."""


class Decoder:
    """Trial of a decoder of a shared worker."""

    def __init__(self, daemon: OneDaemon, model: Model, name: str, new_tokens: int) -> None:
        self._daemon, self._model = daemon, model
        self._settings = {"speculate": 0} | DECODERS[name]
        self._new_tokens = new_tokens
        loaded = daemon.load(model, *choose_engine(None, None))
        self._which: dict[str, Any] = {"model": model.name, "engine": loaded.engine, "precision": loaded.precision}
        self._judged = is_trained(model)
        if self._judged:
            daemon.load(model, *REFERENCE)
        self._texts: list[dict[str, str]] = []

    def run(self, seed: int) -> dict[str, float]:
        client, model = self._daemon.client, self._model
        prompt = verse_prompt(client, self._which, seed) if self._judged else random_prompt(model, seed)
        began = time.perf_counter()
        done = client.generate(
            prompt_ids=prompt,
            max_new_tokens=self._new_tokens,
            ignore_eos=True,
            deterministic=True,
            seed=seed,
            **self._which,
            **self._settings,
        )
        whole_ms = (time.perf_counter() - began) * 1000
        ledger = done.ledger
        measured = {"inference_ms": ledger.inference_ms, "whole_ms": whole_ms, "tok_s": ledger.tokens_per_second}
        if self._settings["speculate"]:
            measured["accepted"] = ledger.accepted_tokens / self._new_tokens
        if self._judged:
            measured |= quality(client, model, prompt, done.ids)
            if seed >= WARMUPS and len(self._texts) < KEPT:
                self._texts.append({"prompt": client.tokenize(ids=prompt, **self._which).text, "text": done.text})
        return measured

    def facts(self) -> dict[str, Any]:
        rss_mb = self._daemon.rss_mb(self._model, self._which["engine"], self._which["precision"])
        return {"model": self._model.name, "settings": self._settings, "rss_mb": rss_mb, "texts": self._texts}


def plans(args: argparse.Namespace, daemon: OneDaemon, size: str, model: Model) -> Iterator[Plan]:
    engine, precision = choose_engine(None, None)
    for name in args.only:
        for new_tokens in args.new_tokens:
            key = {
                "model": size, "trained": is_trained(model), "engine": engine, "precision": precision, "decoder": name,
                "prompt_tokens": PROMPT_TOKENS, "new_tokens": new_tokens, "threads": args.threads,
            }  # fmt: skip

            def make(name: str = name, new_tokens: int = new_tokens) -> AbstractContextManager[Limited]:
                warm = new_tokens != args.new_tokens[0]  # the first length warms up what the others ask
                return Limited(
                    Decoder(daemon, model, name, new_tokens), runs_of(size, quick=args.quick), args.seconds, warm=warm
                )

            yield Plan(key, make)


def tables(rows: list[Row]) -> str:
    """Return tables of what each decoder costs, and of what it writes where the weights are trained."""
    speed = {
        "model": lambda r: r.key["model"],
        "decoder": lambda r: r.key["decoder"],
        "new": lambda r: r.key["new_tokens"],
        "runs": most,
        "inference ms": lambda r: medians(r, "inference_ms"),
        "whole ms": lambda r: medians(r, "whole_ms"),
        "tok/s": lambda r: medians(r, "tok_s"),
        "accepted": lambda r: medians(r, "accepted"),
    }
    writing = {name: speed[name] for name in ("model", "decoder", "new", "runs")} | {
        "repeated 4-grams": lambda r: medians(r, "repetition"),
        "distinct-1": lambda r: medians(r, "distinct_1"),
        "distinct-2": lambda r: medians(r, "distinct_2"),
        "distinct-3": lambda r: medians(r, "distinct_3"),
        "perplexity": lambda r: medians(r, "perplexity"),
    }
    judged = [row for row in rows if "perplexity" in row.samples]
    return "\n".join([table(rows, speed), table(judged, writing), *side_by_side(judged)])


def side_by_side(rows: list[Row]) -> Iterator[str]:
    """Yield the first text of each decoder, at the largest length."""
    longest = max((int(row.key["new_tokens"]) for row in rows), default=0)
    for row in rows:
        if row.key["new_tokens"] == longest and row.facts["texts"]:
            first = row.facts["texts"][0]
            yield f"{row.key['model']}, {row.key['decoder']}: {first['prompt']!r} -> {first['text']!r}"


def main() -> None:
    made = parser(__doc__, "decoder_methods")
    made.add_argument(
        "--only",
        nargs="+",
        choices=list(DECODERS),
        default=list(DECODERS),
        metavar="DECODER",
        help="default: all of them",
    )
    made.add_argument(
        "--new-tokens",
        nargs="+",
        type=int,
        default=list(NEW_TOKENS),
        metavar="N",
        help=f"default: {' '.join(map(str, NEW_TOKENS))}",
    )
    add_seconds(made, 4.0)
    args, results = parse(made, "decoder_methods")
    rows = measured(args, results)
    finish(results, rows, tables(rows))


def measured(args: argparse.Namespace, results: Results) -> list[Row]:
    rows = []
    for size in args.sizes:
        model = model_of(size, args.models_dir)
        with OneDaemon(args, f"--rows={ROWS}") as daemon:
            rows += measure(results, list(plans(args, daemon, size, model)), runs_of(size, quick=args.quick), size)
    return rows


if __name__ == "__main__":
    main()
