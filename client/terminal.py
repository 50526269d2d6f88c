"""The client without a screen: streaming text and commands.

Text goes to stdout and everything about it to stderr, so that a pipe gets the text alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from client import listings, replicas
from client.amounts import bar, counted, duration
from client.servers import notices
from protocol import Client, Gpt2dError, messages as m
from protocol.keys import Address
from protocol.parameters import find_parameter, read_settings, read_value
from protocol.programs import needed_by
from protocol.tokens import pieces_of

HELP = """\
Type the beginning of a text; the model goes on from it. An empty line continues the last text.
  /load MODEL [ENGINE] [PRECISION] [cache=KIND] [replicas=N] [compile]
                       load a model, in N processes, with a KV cache of int8 or fp16, and write with it
  /unload MODEL        free its memory                 /measure         compare its precision with full precision
  /calibrate MODEL     make its int4 nearly as good as int8, which takes minutes
  /models              list the server's models        /stats           show what the server has done
  /set                 list the settings               /set NAME VALUE  change one (/set NAME: back to its default)
  /score TEXT          how likely the text is          /tokens TEXT     show the tokens of the text
  /help                show this list                  /quit            leave (also Ctrl-D)
Ctrl-C cancels the generation, or clears the line; at an empty line a second one leaves."""
INTERVAL_MS = 50
"""Milliseconds between two pieces of a text: to the eye as good as 20, and fewer of them wake anybody."""
T = TypeVar("T")


@dataclass
class Choice:
    """The loaded model to write with; None where only one can be meant."""

    model: str | None = None
    engine: str | None = None
    precision: str | None = None


def _named(words: list[str], name: str) -> str | None:
    """Take NAME=VALUE out of the words of a command, and return the value; None where it is not there."""
    given = next((word for word in words if word.startswith(f"{name}=")), None)
    if given is None:
        return None
    words.remove(given)
    return given.removeprefix(f"{name}=")


class Terminal:
    def __init__(self, address: Address) -> None:
        self._client = Client(address.line())
        self._endpoint = address.endpoint
        self._choice = Choice()
        self._settings: dict[str, Any] = {"truncate": "left"}
        self._parameters: dict[str, m.Parameter] = {}
        self._engines: dict[str, m.Engine] = {}
        self._notices: list[str] = []
        self._host = ""
        self._text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def say(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=sys.stderr, flush=True)

    def _list(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def meet(self) -> m.ServerInfo:
        """Ask the server who it is. Raises: Gpt2dError, if there is none or it refuses."""
        return self._client.hello()

    def start(self, info: m.ServerInfo, choice: Choice, settings: list[str], *, hint: bool) -> None:
        """Apply NAME=VALUE settings and load the chosen model. Raises: Gpt2dError, ValueError."""
        self._parameters = {p.name: p for p in info.parameters}
        self._engines = {engine.name: engine for engine in info.engines}
        self._host = info.host
        self._settings |= read_settings(self._parameters, settings)
        if hint:
            self.say(f"gpt2d {info.version} on {info.host} ({info.cpu}, {info.cores} cores), {self._endpoint}")
        self._notices = notices(info)
        for notice in self._notices:
            self.say(notice)
        if choice.model:
            self._load(choice, mention_loaded=hint)
        elif hint:
            ways = replicas.by_way(w for w in self._client.ping().workers if w.state == "ready")
            ready = [f"{'/'.join(way)} {replicas.summary(group, self._host)}".rstrip() for way, group in ways.items()]
            self.say(f"loaded: {'; '.join(ready)}" if ready else "nothing is loaded yet; try /load demo")
        if hint:
            self.say("/help lists the commands")

    def interact(self) -> int:
        """Read lines and carry them out until the end; return the exit code."""
        with needed_by("gpt2d-client"):
            from prompt_toolkit import PromptSession

            from client.history import open_history

        session: PromptSession[str] = PromptSession(history=open_history())
        leaving = False
        while True:
            try:
                line = session.prompt("> ")
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if leaving:
                    return 130
                leaving = not session.default_buffer.text
                if leaving:
                    self.say("Ctrl-C again leaves, and so does Ctrl-D")
                continue
            leaving = False
            try:
                if line.strip() == "/quit":
                    return 0
                if not self.do(line):
                    return 130
            except (Gpt2dError, ValueError) as e:
                self.say(str(e))

    def do(self, line: str) -> bool:
        """Carry out one line, a command or a prompt; return False to leave. Raises: Gpt2dError, ValueError."""
        words = line.split()
        if not line.startswith("/"):
            return self.write(line or self._text)
        command, arguments = words[0], words[1:]
        match command, arguments:
            case "/help", []:
                self.say(HELP)
            case "/models", []:
                self._list(listings.models(self._client.models(), self._host))
            case "/stats", []:
                self._list(listings.stats(self._client.stats(), self._host))
            case "/load", [model, *rest]:
                self._load_with(model, rest)
            case "/measure", rest:
                cache = _named(rest, "cache")
                self._measure(self._way(rest[0], rest[1:]) if rest else self._choice, cache)
            case "/calibrate", [model]:
                self._calibrate(model)
            case "/score", [_, *_]:
                self._score(line.split(None, 1)[1])
            case "/tokens", [_, *_]:
                self._tokens(line.split(None, 1)[1])
            case "/unload", [model]:
                self.say(f"unloaded {', '.join(self._client.unload(model))}")
            case "/set", []:
                self._list(listings.settings(self._parameters.values(), self._settings))
            case "/set", [name]:
                self._settings.pop(find_parameter(self._parameters, name).name, None)
            case "/set", [name, *_]:
                self._settings[name] = read_value(find_parameter(self._parameters, name), line.split(None, 2)[2])
            case _ if command in HELP.split():
                raise ValueError(f"{line.strip()!r} is not how {command} is written; /help shows it")
            case _:
                raise ValueError(f"{line.strip()!r} is not a command; /help lists them")
        return True

    def write(self, prompt: str) -> bool:
        """Continue a text; return False after a second Ctrl-C, the first of which cancels. Raises: Gpt2dError."""
        request = self._which() | self._settings | {"stream_interval_ms": INTERVAL_MS}
        pieces: list[str] = []
        with self._client.stream(prompt, **request) as stream:
            cancelled = False
            while True:
                try:
                    for piece in stream:
                        if piece.index == 0:  # the others follow it, one after the other
                            pieces.append(piece.text)
                            print(piece.text, end="", flush=True)
                    break
                except KeyboardInterrupt:
                    if cancelled:
                        return False
                    cancelled = True
                    stream.cancel()
                except Gpt2dError:
                    if pieces:
                        print(flush=True)
                    raise
            print(flush=True)
            self._text = prompt + stream.result.text
            for number, other in enumerate(stream.result.others, 2):
                self.say(f"continuation {number} of {1 + len(stream.result.others)}:")
                print(other.text, flush=True)
            self._list(listings.ledger(stream.result))
        return True

    def _which(self) -> dict[str, Any]:
        return {"model": self._choice.model, "engine": self._choice.engine, "precision": self._choice.precision}

    def _score(self, text: str) -> None:
        scored = self._client.score(text, **self._which())
        self.say(
            f"{len(scored.ids)} tokens, perplexity {scored.perplexity:.1f}, {scored.bits_per_byte:.2f} bits per byte"
        )

    def _tokens(self, text: str) -> None:
        tokenized = self._client.tokenize(text, **self._which())
        pieces = [piece.decode(errors="replace") for piece in pieces_of(tokenized)]
        self.say(" ".join(f"{piece!r}={token}" for piece, token in zip(pieces, tokenized.ids, strict=True)))

    def _way(self, model: str, words: list[str]) -> Choice:
        """Read a model and, in any order, an engine and a precision. Raises: ValueError for a word that is neither."""
        choice = Choice(model)
        for word in words:
            is_precision = any(word in engine.precisions for engine in self._engines.values())
            if word in self._engines and choice.engine is None:
                choice.engine = word
            elif is_precision and choice.precision is None:
                choice.precision = word
            elif is_precision or word in self._engines:
                raise ValueError(f"{word!r} is one too many: name at most one engine and one precision")
            else:
                there = f"it has the engines {', '.join(self._engines)}, and /models lists their precisions"
                why = [f"; {notice}" for notice in self._notices if word in notice]
                raise ValueError(f"this server has no engine or precision {word!r}; {there}{''.join(why)}")
        return choice

    def _load_with(self, model: str, words: list[str]) -> None:
        """Load a model; `compile`, cache=KIND and replicas=N may be anywhere among the words.

        Raises: Gpt2dError, ValueError.
        """
        compiled = "compile" in words
        if compiled:
            words.remove("compile")
        number = None
        if (text := _named(words, "replicas")) is not None:
            number = int(text) if text.isdecimal() else 0
            if not 1 <= number <= m.MAX_REPLICAS:
                raise ValueError(f"replicas must be a whole number from 1 to {m.MAX_REPLICAS}, got {text!r}")
        cache = _named(words, "cache")
        self._load(self._way(model, words), compiled=compiled, cache=cache, number=number)

    def _load(
        self,
        choice: Choice,
        *,
        compiled: bool = False,
        cache: str | None = None,
        number: int | None = None,
        mention_loaded: bool = True,
    ) -> None:
        if choice.model is None:
            raise ValueError("name a model: /load MODEL [ENGINE] [PRECISION]")
        loaded = self._with_bar(
            lambda on_progress: self._client.load(
                str(choice.model),
                engine=choice.engine,
                precision=choice.precision,
                compile=compiled,
                cache=cache,
                replicas=number,
                on_progress=on_progress,
            )
        )
        self._choice = Choice(*replicas.way(loaded))
        name = replicas.name(loaded)
        if not loaded.already:
            each = f"{counted(loaded.replicas, 'replica')} of " if loaded.replicas != 1 else ""
            took = f"loaded in {loaded.load_ms / 1000:.1f} s"
            kept = f", KV cache {loaded.cache}" if loaded.cache else ""
            instructions = f", {loaded.instruction_set}" if loaded.instruction_set else ""
            memory = f"{loaded.rss_bytes / 1e6:.0f} MB"
            self.say(f"{name} {took}, {each}{memory}, {loaded.threads} threads{instructions}{kept}")
        elif number:
            self.say(f"{name}: {counted(loaded.replicas, 'replica')}")
        elif mention_loaded:
            self.say(f"{name} is loaded already; what you write goes to it")
        for notice in loaded.notices if not loaded.already else []:
            self.say(f"note: {notice}")

    def _measure(self, choice: Choice, cache: str | None) -> None:
        if choice.model is None:
            raise ValueError("name a model: /measure MODEL [ENGINE] [PRECISION]")
        measured = self._with_bar(
            lambda on_progress: self._client.measure(
                str(choice.model),
                engine=choice.engine,
                precision=choice.precision,
                cache=cache,
                on_progress=on_progress,
            )
        )
        f = measured.fidelity
        name = replicas.name(measured) + (f" with a KV cache of {measured.cache}" if cache else "")
        self.say(
            f"{name} against full precision, over {f.tokens} tokens: "
            f"perplexity {f.perplexity:.2f} ({f.perplexity_change_pct:+.2f} %), "
            f"the likeliest token the same at {f.top1_agreement:.1%} of places, "
            f"divergence {f.kl_mean:.2g} nats (99 % below {f.kl_p99:.2g}), "
            f"{f.greedy_tokens:.0f} of {f.greedy_limit} greedy tokens the same; "
            f"{f.tok_s:.0f} tokens/s, {f.disk_bytes / 1e6:.0f} MB on disk, {f.memory_bytes / 1e6:.0f} MB of memory, "
            f"{f.quantised_share:.0%} of the weights quantised"
        )

    def _calibrate(self, model: str) -> None:
        seconds = next((one.calibrate_s for one in self._client.models() if one.name == model), 0)
        if seconds:
            self.say(f"this takes about {duration(seconds)}; Ctrl-C stops it")
        made = self._with_bar(lambda on_progress: self._client.calibrate(model, on_progress=on_progress))
        name = replicas.name(made)
        again = any(replicas.name(worker) == name for worker in self._client.ping().workers)
        then = f"it is loaded as before: /unload {model} and load it again" if again else "the next load takes it"
        self.say(f"{name} is calibrated ({made.disk_bytes / 1e6:.0f} MB, {made.elapsed_ms / 1000:.0f} s); {then}")

    def _with_bar(self, call: Callable[[Callable[[m.Progress], None]], T]) -> T:
        """Make a call that reports progress, and show that in a line that disappears at the end."""
        shown, began = "", 0.0
        had = 0

        def on_progress(p: m.Progress) -> None:
            nonlocal shown, began, had
            if p.stage != shown:
                began, had = time.monotonic(), p.done
            if sys.stderr.isatty():
                amount = f"{p.done}/{p.total} {p.unit}"
                if p.unit == "bytes":
                    rate = (p.done - had) / 1e6 / max(0.1, time.monotonic() - began)
                    amount = f"{p.done / 1e6:.0f}/{p.total / 1e6:.0f} MB, {rate:.1f} MB/s"
                self.say(f"\r\x1b[K{p.stage:<8} {bar(p.done, p.total)} {amount}", end="")
            shown = p.stage

        try:
            return call(on_progress)
        finally:
            if shown and sys.stderr.isatty():
                self.say("\r\x1b[K", end="")
