"""A model of a daemon, as lm-eval asks for one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lm_eval.api.model import LM
from tqdm import tqdm

from client.doors.lm_eval import pairs, writing
from client.doors.lm_eval.pairs import Pair
from client.doors.lm_eval.writing import Writing
from protocol import messages as m
from protocol.client import GENERATE_S, Client
from protocol.errors import BadRequest, NotGpt2d, NotLoaded
from protocol.keys import DEFAULT_ENDPOINT
from protocol.programs import given_line

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16
"""Requests under way at a time; the daemon bounds what it takes of one client, and the rest waits."""
ON_STDIN = (
    "endpoint: lm-eval writes its arguments into its results, and a connect line has a secret: write endpoint=- and "
    "give the line on stdin"
)


class DaemonLM(LM):
    """A model that a gpt2d-server has loaded; answers as lm-eval's `hf` does for the same folder.

    The values of a text depend on the text and the model alone, in whatever order they are asked for.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        model: str | None = None,
        engine: str | None = None,
        precision: str | None = None,
        max_length: int | None = None,
        prefix_token_id: int | None = None,
        timeout: float = GENERATE_S,
        **ours: Any,
    ) -> None:
        """Connect, and load the model where it is not loaded.

        `ours` are lm-eval's own, of which none has a meaning here: the batch size and the device are the daemon's.
        Raises: BadRequest for an argument that is not known, and what every call of a Client raises.
        """
        super().__init__()
        if unknown := {*ours} - {"batch_size", "max_batch_size", "device"}:
            raise BadRequest(f"model_args has no {min(unknown)!r}; python -m client.doors.lm_eval --help says what")
        if "#" in endpoint:
            raise BadRequest(ON_STDIN)
        self._client = Client(given_line(endpoint))
        self._which: dict[str, Any] = {"model": model, "engine": engine, "precision": precision}
        self._timeout = timeout
        try:
            about = self._about()
            self.max_length = about.context if max_length is None else max_length
            if not 1 <= self.max_length <= about.context:
                raise BadRequest(f"max_length must be 1 to {about.context}, this model's context, got {max_length}")
            self._before = len(about.before)
            self._prefix = prefix_token_id if prefix_token_id is not None else self._first(about)
        except BaseException:
            self._client.close()
            raise

    @property
    def tokenizer_name(self) -> str:
        """Name by which lm-eval keeps what it has made of a task's texts."""
        return "-".join(str(part) for part in self._which.values() if part)

    def loglikelihood(self, requests: Many[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and whether greedy would write it."""
        given = [request.args for request in requests]
        encoded = self._encoded(itertools.chain.from_iterable(itertools.starmap(pairs.texts, given)))
        asked = [pairs.of_texts(head, tail, encoded, self._prefix, self._before) for head, tail in given]
        answers = self._judged(asked, "loglikelihood", quiet=disable_tqdm)
        for texts, answer in zip(given, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Many[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, of any length."""
        given = [text for request in requests for text in request.args[:1]]
        encoded = self._encoded(given)
        parts = [list(pairs.windows(encoded[text], self._prefix, self.max_length)) for text in given]
        asked = [pair for windows in parts for pair in windows]
        answers = iter(self._judged(asked, "loglikelihood_rolling", quiet=disable_tqdm))
        sums = [math.fsum(logprob for logprob, _ in itertools.islice(answers, len(windows))) for windows in parts]
        for text, answer in zip(given, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return sums

    def generate_until(self, requests: Many[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to a string that ends it."""
        given = [request.args for request in requests]
        encoded = self._encoded(context for context, _ in given)
        asked = [(encoded[context], writing.read(settings)) for context, settings in given]
        answers = list(self._mapped(self._written, asked, "generate_until", quiet=disable_tqdm))
        for texts, answer in zip(given, answers, strict=True):
            self.cache_hook.add_partial("generate_until", texts, answer)
        return answers

    def _about(self) -> m.TokenizerInfo:
        """Return what is known of the model's tokenizer; load the model where it is not loaded."""
        try:
            told = self._client.tokenize("", about=True, **self._which)
        except NotLoaded:
            if self._which["model"] is None:
                raise
            self._client.load(**self._which)
            told = self._client.tokenize("", about=True, **self._which)
        if told.about is None:
            raise NotGpt2d("the server said nothing of its tokenizer")
        return told.about

    def _first(self, about: m.TokenizerInfo) -> int:
        """Return the token that stands before a text without a context.

        Raises: BadRequest if the model has none, NotGpt2d if the server does not tell it.
        """
        own = (about.names.get(name, "") for name in ("bos_token", "eos_token"))  # as lm-eval's hf takes them
        name = next(filter(None, (*own, about.bos, *about.eos)), "")
        if not name:
            raise BadRequest("this model has no token to begin a text with: give prefix_token_id")
        ids = self._client.tokenize(name, **self._which).ids
        if not ids:
            raise NotGpt2d(f"the server found no token in {name!r}, with which it says that a text begins")
        return ids[-1]

    def _mapped(self, call: Callable[[T], R], items: Iterable[T], what: str = "", *, quiet: bool = True) -> Iterator[R]:
        """Yield what a call returns for each item, several at a time."""
        items = list(items)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from tqdm(pool.map(call, items), total=len(items), desc=f"Running {what} requests", disable=quiet)

    def _encoded(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Return the tokens of each text."""
        once = list(dict.fromkeys(texts))
        return dict(zip(once, self._mapped(self._ids, once), strict=True))

    def _ids(self, text: str) -> list[int]:
        return self._client.tokenize(text, timeout=self._timeout, **self._which).ids

    def _written(self, asked: tuple[list[int], Writing]) -> str:
        """Return what the model writes after tokens, of which the last are taken that leave room for it."""
        ids, how = asked
        room = self.max_length - how.length
        if room < 1:
            raise BadRequest(f"max_gen_toks must be less than the {self.max_length} tokens of a text, got {how.length}")
        done = self._client.generate(
            prompt_ids=ids[-room:], max_new_tokens=how.length, timeout=self._timeout, **how.settings, **self._which
        )
        return how.cut(done.text)

    def _judged(self, asked: list[Pair], what: str, *, quiet: bool) -> list[tuple[float, bool]]:
        """Return for each pair the log-probability of its continuation, and whether greedy would write it.

        They are sent in the order of their tokens, so that those with the same beginning come together.
        """
        cut = [pairs.cut(pair, self.max_length) for pair in asked]
        order = sorted(range(len(cut)), key=lambda i: (cut[i].context, cut[i].continuation))
        passages = [m.Passage(ids=cut[i].continuation, context_ids=cut[i].context) for i in order]
        answers = [(0.0, False)] * len(cut)
        scored = self._client.score_many(passages, timeout=self._timeout, bos="never", **self._which)
        shown = tqdm(scored, total=len(cut), desc=f"Running {what} requests", disable=quiet)
        for i, one in zip(order, shown, strict=True):
            answers[i] = (one.sum, one.ids == one.greedy)
        return answers
