"""What the terminal lists, in lines: the server's models and work, the settings, and the times of a generation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from client import replicas, threads
from protocol import messages as m

UNSET = {"seed": "new each time"}
"""What it means that a setting has no value, where that is not that it is off."""


def models(known: Iterable[m.ModelInfo], host: str) -> Iterator[str]:
    """Yield what a server's models are, and how each can be loaded. `host`: the server's own."""
    for model in known:
        if model.problem:
            yield f"  {model.name:<16} cannot be loaded: {model.problem}"
            continue
        ways = "; ".join(
            f"{engine} {', '.join(_precision(p, host) for p in model.precisions if p.engine == engine)}"
            for engine in dict.fromkeys(p.engine for p in model.precisions)
        )
        where = "" if model.on_disk else f", a download of {model.file_bytes / 1e6:.0f} MB first"
        size = f"{model.parameters / 1e6:>6.1f} M parameters, context {model.context}"
        yield f"  {model.name:<16} {size}{where}\n{'':18} {ways}"
        for notice in model.notices:
            yield f"{'':18} note: {notice}"


def _precision(p: m.Precision, host: str) -> str:
    notes = [f"{p.memory_bytes / 1e6:.0f} MB"]
    if p.loaded:
        notes.append(f"loaded {replicas.summary([w for w in p.replicas if w.state == 'ready'], host)}".rstrip())
    if any(worker.calibrated for worker in p.replicas):
        notes.append("calibrated")
    if p.fidelity:
        notes.append(f"perplexity {p.fidelity.perplexity_change_pct:+.2f} %")
    return f"{p.precision} ({', '.join(notes)})"


def stats(done: m.Stats, host: str) -> Iterator[str]:
    """Yield what a server and its workers have done. `host`: the server's own."""
    yield (
        f"up {done.uptime_ms / 1000:.0f} s, {done.peers} clients, {done.open_requests} open requests, "
        f"gateway {done.rss_bytes / 1e6:.0f} MB"
    )
    for name, counts in (("requests", done.requests), ("errors", done.errors)):
        if counts:
            yield f"{name}: {', '.join(f'{kind} {count}' for kind, count in sorted(counts.items()))}"
    for way, group in replicas.by_way(done.workers).items():
        for w in group:
            number = f"replica {w.replica}" if len(group) > 1 else ""
            name = " ".join(filter(None, (replicas.name(way), number, replicas.place(w, group, host))))
            yield (
                f"{name}: {w.requests} requests, {w.prompt_tokens} prompt and {w.new_tokens} new tokens "
                f"in {w.busy_ms / 1000:.1f} s of work, {w.rss_bytes / 1e6:.0f} MB"
            )


def settings(parameters: Iterable[m.Parameter], chosen: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting with its value, what it is for, and its range."""
    for p in parameters:
        value = chosen.get(p.name, p.default)
        if value is None:
            value = UNSET.get(p.name, "off")
        values = " or ".join(p.choices) if p.choices else p.type
        if p.minimum is not None or p.maximum is not None:
            values += f", {p.minimum} to {p.maximum}"
        yield f"  {p.name:<20} {value!s:<14} {p.description} ({values})"


def ledger(result: m.Generated) -> Iterator[str]:
    """Yield what a generation took, and where they were asked for, its tokens with what else was likely."""
    took, fewer = result.ledger, threads.fewer(result)
    used = f" with {fewer}" if fewer else ""
    cut = f", prompt cut by {result.prompt_truncated} tokens" if result.prompt_truncated else ""
    yield (
        f"[inference {took.inference_ms:.0f} ms: "
        f"prefill {took.prefill_ms:.0f} + decode {took.decode_ms:.0f}; "
        f"{took.prompt_tokens} + {took.new_tokens} tokens, {took.tokens_per_second:.0f} tokens/s{used}; "
        f"first token {took.first_token_ms:.0f} ms; "
        f"{replicas.name(result)}, "
        f"{result.finish_reason}, seed {result.settings.get('seed')}{cut}]"
    )
    for token, chosen in zip(result.ids, result.logprobs, strict=False):
        chances = ", ".join(f"{a.text!r} {math.exp(a.logprob):.0%}" for a in chosen.top if a.id != token)
        yield f"  {chosen.text!r:<16} {math.exp(chosen.logprob):>4.0%}   {chances}"
