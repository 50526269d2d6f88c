"""All wire types: frozen structs, with the range and the unit of each field.

A message on the wire is a map of these fields plus `v` (the major protocol version) and `type` (the tag). PROTOCOL.md
describes the bytes. Times are in milliseconds, sizes in bytes; deadlines are durations, never clock times.
"""

from __future__ import annotations

import math
import reprlib
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, to_builtins

from protocol.keys import Role
from protocol.ledger import Ledger

MAJOR, MINOR = 1, 0
MAX_REPLICAS = 64
MAX_TEXTS = 1024
"""Most texts of one request to score."""
STRIDE = 512
"""Distance in tokens of two windows of a text to score by default, where half the context is not less."""
MAX_TOLD = 50_000
"""Most alternatives of one scored text: some 3 MB."""
MAX_COMPUTED = 4_000_000
"""Most tokens that are computed for one request to score, those of every window counted: some minutes of a model of
124 M."""
CHARACTERS = 4
"""Characters of a text that is not encoded yet for which a token is counted."""
WIRE_ONLY = frozenset({"id", "seq"})
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
SHORT.maxlist = SHORT.maxdict = 3
SHORT.maxstring = SHORT.maxother = 60

RequestId: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]
Milliseconds: TypeAlias = Annotated[int, Meta(ge=1, le=86_400_000)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Base of all requests. `id` is the client's own; it must not be one of its open requests."""

    id: RequestId = 0
    deadline_ms: Milliseconds | None = None
    """Milliseconds that the server may take, counted from its receipt; None: no limit."""

    @property
    def cost(self) -> int:
        """Number of tokens that it counts for against the limit of its client's open requests."""
        return 0


class Hello(Request, frozen=True, tag="hello"):
    """Ask who the server is and what it offers. Answered by ServerInfo."""

    client: Annotated[str, Meta(max_length=200)] = ""


class Ping(Request, frozen=True, tag="ping"):
    """Answered at once, by Pong, whatever else goes on."""


class Models(Request, frozen=True, tag="models"):
    """Answered by ModelList."""


class GetStats(Request, frozen=True, tag="stats"):
    """Answered by Stats."""


class Load(Request, frozen=True, tag="load"):
    """Load a model; answered by Loaded, with `stream` also by Progress. Left out: the default engine and precision."""

    model: Name
    engine: Name | None = None
    precision: Name | None = None
    compile: bool = False
    """Translate the model for this CPU first, which takes a minute: for an engine and precision that `compiles`."""
    cache: Name | None = None
    """What its KV cache is made of, one of Precision.caches. Left out: that of what is loaded, or the default."""
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS)] | None = None
    """Number of processes that are to hold it, and are started again when they die. Left out: as many as now, at least
    one.
    """
    stream: bool = False


class Measure(Request, frozen=True, tag="measure"):
    """Measure what a precision costs against full precision; answered by Measured, with `stream` also by Progress.

    The model's files must be on the server's disk; whether it is loaded does not matter. `text` is one that the model
    was not trained on; left out: the works held out from the embedded model's training.
    """

    model: Name
    engine: Name | None = None
    precision: Name | None = None
    text: Annotated[str, Meta(min_length=1, max_length=50_000)] | None = None
    cache: Name | None = None
    """What the KV cache is made of, as in Load. Precision.fidelity is that of the default."""
    stream: bool = False


class Calibrate(Request, frozen=True, tag="calibrate"):
    """Make a model's int4 of the native engine nearly as good as int8; answered by Calibrated, with `stream` also by
    Progress.

    Its weights are rounded so that their errors cancel each other out, for texts that the model writes itself, or for
    `text`. The model's files must be on the server's disk. What is made is kept, and used by all loads that follow.
    It takes about as long as `calibrate_s` of ModelInfo says.
    """

    model: Name
    text: Annotated[str, Meta(min_length=1, max_length=50_000)] | None = None
    stream: bool = False


class Unload(Request, frozen=True, tag="unload"):
    """Unload what matches; answered by Unloaded. What it was generating ends with `not_loaded`."""

    model: Name
    engine: Name | None = None
    precision: Name | None = None


class Cancel(Request, frozen=True, tag="cancel"):
    """Cancel this client's request `target`; answered by CancelSent, while the target gets its own last reply."""

    target: RequestId


class OfText(Request, frozen=True):
    """Base of requests about a given text, with a loaded model: exactly one of `text` and `ids`."""

    model: Name | None = None
    engine: Name | None = None
    precision: Name | None = None
    text: str | None = None
    ids: Annotated[list[TokenId], Meta(max_length=65_536)] | None = None
    specials: bool = True
    """Whether the names of special tokens in the text become these tokens."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.ids is None):
            raise ValueError("give exactly one of `text` and `ids`")


class Tokenize(OfText, frozen=True, tag="tokenize"):
    """Text to tokens, or tokens to text; answered by Tokenized."""

    about: bool = False
    """Whether to tell of the tokenizer, too."""


class Passage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text to score, as `text` or `ids`, and at most one form of what stands before it and is not scored."""

    text: str | None = None
    ids: Annotated[list[TokenId], Meta(max_length=65_536)] | None = None
    context: str | None = None
    context_ids: Annotated[list[TokenId], Meta(max_length=65_536)] | None = None
    goes_on: bool = False
    """Whether its context is the beginning of the same text: then `bos` is as for a text without a context."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.ids is None):
            raise ValueError("give exactly one of `text` and `ids` in each of `texts`")
        if self.context is not None and self.context_ids is not None:
            raise ValueError("give at most one of `context` and `context_ids` in each of `texts`")

    @property
    def cost(self) -> int:
        """Number of its tokens, as far as that is known."""
        characters = len(self.text or "") + len(self.context or "")
        return len(self.ids or ()) + len(self.context_ids or ()) + characters // CHARACTERS


class Score(OfText, frozen=True, tag="score"):
    """The log-probabilities of a text, answered by Scored, or of many `texts`: each is answered by a ScoredText as soon
    as it is ready, in any order, and all by a Scored of their sums.

    A text longer than the model's context is scored in windows, `stride` tokens apart. One that cannot be scored
    refuses all of a request before anything is computed.
    """

    texts: Annotated[list[Passage], Meta(min_length=1, max_length=MAX_TEXTS)] | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether the token that the model begins with stands before a text, which gives the first token a value: where the
    text has no context and does not begin with it, and the model has one; always, before a context too, where a model
    without one is refused; or never.
    """
    unit: Literal["token", "word"] = "token"
    """Whether to tell the words, too."""
    stride: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    """At most the model's context. None: 512, or half the context where that is less."""
    top: Annotated[int, Meta(ge=0, le=20)] = 0
    """Number of the likeliest tokens to tell for the place of each token."""

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.text, self.ids, self.texts)) != 1:
            raise ValueError("give exactly one of `text`, `ids` and `texts`")

    @property
    def cost(self) -> int:
        own = len(self.ids or ()) + len(self.text or "") // CHARACTERS
        return own + sum(passage.cost for passage in self.texts or ())


Strategy: TypeAlias = Literal["sample", "greedy", "mirostat", "beam", "beam_sample", "diverse_beam", "contrastive"]
SEARCHES = frozenset({"beam", "beam_sample", "diverse_beam", "contrastive"})
"""Strategies that weigh several texts together: they take several rows of a batch, and give no log-probabilities."""


class Generate(Request, frozen=True, tag="generate"):
    """Continue a text. Answered by Generated, with `stream` first by Tokens.

    `model`, `engine` and `precision` that are left out mean the model that was loaded first, as long as it stays
    loaded; when it is unloaded and several remain, they have to be named. Exactly one of `prompt` and `prompt_ids` is
    given; an empty prompt begins with the token that the model begins with: bos, or its first end of text; where it has
    neither, it is refused.
    """

    model: Name | None = None
    engine: Name | None = None
    precision: Name | None = None
    prompt: str | None = None
    prompt_ids: Annotated[list[TokenId], Meta(max_length=65_536)] | None = None
    stream: bool = False
    stream_interval_ms: Annotated[int, Meta(ge=0, le=1000)] = 20
    """Least milliseconds between two pieces of a stream, after the first, which comes at once. Each piece wakes the
    gateway and the client, which may want the cores that write the text. 0: a piece after each step.
    """
    n: Annotated[int, Meta(ge=1, le=16, description="How many continuations to write; they share one prefill.")] = 1
    deterministic: Annotated[
        bool,
        Meta(
            description="Run alone and reuse nothing, so that the text depends on the request alone, to the last bit."
        ),
    ] = False
    logprobs: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=20,
                description="Return each token's log-probability, and this many of its likeliest alternatives.",
            ),
        ]
        | None
    ) = None
    logprobs_of: Annotated[
        Literal["model", "sampler"],
        Meta(
            description="Probabilities as the model gives them, or after penalties and samplers (of a greedy choice: "
            "at temperature 1)."
        ),
    ] = "model"
    max_new_tokens: Annotated[int, Meta(ge=1, le=65_536, description="How many tokens to write at most.")] = 25
    truncate: Annotated[
        Literal["error", "left"],
        Meta(description="A prompt too long for the context with its new tokens: refuse it, or drop its beginning."),
    ] = "error"
    specials: Annotated[
        bool,
        Meta(description="Names of special tokens in the prompt, as <|endoftext|>, become these tokens; else text."),
    ] = True
    ignore_eos: Annotated[bool, Meta(description="Go on after an end-of-text token (for benchmarks).")] = False
    strategy: Annotated[
        Strategy,
        Meta(description="Draw each token at random, always take the likeliest, or search among several texts."),
    ] = "sample"
    temperature: Annotated[
        float, Meta(ge=0, le=100, description="Below 1 sharpens the distribution, above 1 flattens it; 0 is greedy.")
    ] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000, description="Draw from the k likeliest tokens only; 0 is off.")] = 50
    top_p: Annotated[
        float,
        Meta(gt=0, le=1, description="Draw from the fewest tokens that together reach this probability; 1 is off."),
    ] = 1.0
    min_p: Annotated[
        float, Meta(ge=0, le=1, description="Drop tokens less likely than this share of the likeliest one's; 0 is off.")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Meta(ge=0.01, le=100, description="Above 1 makes tokens that were there already less likely; 1 is off.")
    ] = 1.0
    typical_p: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Draw from the tokens about as surprising as expected that together reach this; 1 is off.",
        ),
    ] = 1.0
    mirostat_tau: Annotated[
        float, Meta(ge=0, le=20, description="Mirostat's aim: the mean surprise of a token, in bits.")
    ] = 5.0
    mirostat_eta: Annotated[float, Meta(ge=0, le=1, description="How fast mirostat goes towards its aim.")] = 0.1
    presence_penalty: Annotated[
        float, Meta(ge=-10, le=10, description="Subtracted from the logit of every token written already; 0 is off.")
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        Meta(ge=-10, le=10, description="Subtracted from a token's logit once for each time it was written; 0 is off."),
    ] = 0.0
    no_repeat_ngram_size: Annotated[
        int,
        Meta(ge=0, le=1024, description="No run of this many tokens occurs twice, including the prompt's; 0 is off."),
    ] = 0
    bad_words: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=200)]],
        Meta(max_length=64, description="Words that must not come, at the start of a line or after a space."),
    ] = []
    logit_bias: Annotated[
        list[tuple[TokenId, Annotated[float, Meta(ge=-1000, le=1000)]]],
        Meta(max_length=1024, description="Pairs of a token and what is added to its logit."),
    ] = []
    min_new_tokens: Annotated[
        int, Meta(ge=0, le=65_536, description="No end of text and no stop string before this many tokens.")
    ] = 0
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=200)]],
        Meta(max_length=16, description="End before any of these strings."),
    ] = []
    speculate: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description="Guess up to this many tokens ahead from the text so far; the text stays the same, 0 is off.",
        ),
    ] = 8
    exact_head: Annotated[
        bool,
        Meta(description="Compute every token's logit, also where the largest are enough and all others are bounded."),
    ] = False
    num_beams: Annotated[
        int, Meta(ge=2, le=16, description="How many texts a beam search compares; it returns the best `n` of them.")
    ] = 4
    num_beam_groups: Annotated[
        int, Meta(ge=2, le=16, description="Diverse beam search: into how many groups of equal size the beams part.")
    ] = 2
    diversity_penalty: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="Diverse beam search: what a token costs for each beam of an earlier group that took it.",
        ),
    ] = 1.0
    length_penalty: Annotated[
        float,
        Meta(
            ge=-10,
            le=10,
            description="A beam's score is divided by its length to this power; above 0 favours long texts.",
        ),
    ] = 1.0
    early_stopping: Annotated[
        Literal["no", "yes", "never"],
        Meta(
            description="End a beam search when nothing better is likely (no), when enough beams have ended (yes), "
            "or when nothing better is possible (never)."
        ),
    ] = "no"
    num_candidates: Annotated[
        int, Meta(ge=2, le=16, description="Contrastive search: how many of the likeliest tokens it weighs.")
    ] = 4
    penalty_alpha: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Contrastive search: how much likeness to the text so far counts against a token.",
        ),
    ] = 0.6
    seed: (
        Annotated[int, Meta(ge=0, le=2**63 - 1, description="Fixes the random draws; left out: a new one.")] | None
    ) = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_ids is None):
            raise ValueError("give exactly one of `prompt` and `prompt_ids`")
        # NaN passes the ranges' comparisons or not by accident; a sum shows it.
        total = (
            self.temperature + self.top_p + self.min_p + self.repetition_penalty + self.typical_p + self.mirostat_tau
        )
        total += self.diversity_penalty + self.length_penalty + self.penalty_alpha
        total += (
            self.mirostat_eta
            + self.presence_penalty
            + self.frequency_penalty
            + sum(bias for _, bias in self.logit_bias)
        )
        if not math.isfinite(total):
            raise ValueError(
                "temperature, top_p, min_p, typical_p, penalties, biases and mirostat's settings must be finite numbers"
            )
        if self.rows > 1:
            if self.logprobs is not None:
                raise ValueError(f"strategy {self.strategy} has no logprobs; a beam has a score")
            if self.n > (1 if self.strategy == "contrastive" else self.num_beams):
                raise ValueError("n is at most num_beams, and 1 in contrastive search")
            if self.strategy == "diverse_beam" and self.num_beams % self.num_beam_groups:
                raise ValueError("num_beams must be a multiple of num_beam_groups")

    @property
    def cost(self) -> int:
        prompt = len(self.prompt_ids or ()) + len(self.prompt or "") // CHARACTERS
        return prompt + self.n * self.max_new_tokens

    @property
    def rows(self) -> int:
        """Number of rows of a batch that its strategy takes together; 1: each continuation runs by itself."""
        if self.strategy not in SEARCHES:
            return 1
        return self.num_candidates if self.strategy == "contrastive" else self.num_beams


SETTINGS = (
    "n",
    "deterministic",
    "logprobs",
    "logprobs_of",
    "max_new_tokens",
    "truncate",
    "specials",
    "ignore_eos",
    "strategy",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "mirostat_tau",
    "mirostat_eta",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "bad_words",
    "logit_bias",
    "min_new_tokens",
    "stop",
    "speculate",
    "exact_head",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "early_stopping",
    "num_candidates",
    "penalty_alpha",
    "seed",
)
"""The fields of Generate that shape the text: described by ServerInfo, repeated in Generated."""


class Told(Struct, frozen=True, kw_only=True):
    """Base of what a server tells."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as dicts, lists, texts and numbers, without what only the wire needs: for JSON, a table."""
        fields = to_builtins(self)
        return {name: fields[name] for name in self.__struct_fields__ if name not in WIRE_ONLY}

    def __repr__(self) -> str:
        """Return the fields, the long ones shortened."""
        shown = [name for name in self.__struct_fields__ if name not in WIRE_ONLY]
        fields = (f"{name}={SHORT.repr(getattr(self, name))}" for name in shown)
        return f"{type(self).__name__}({', '.join(fields)})"


class Reply(Told, frozen=True, kw_only=True):
    """Base of all replies. `seq` numbers the replies to one request from 0, without gaps."""

    id: int | None
    """The request's id; None where the request was too broken to have one."""
    seq: int = 0


class Progress(Reply, frozen=True, tag_field="type", tag="progress"):
    """Progress of a load, a measurement or a calibration. `stage` is a word for people; `unit` says what `done` and
    `total` count.

    For a generation with `stream` that has to wait: stage "waiting", its place in the queue and the queue's length.
    """

    stage: str
    done: int
    total: int
    unit: str


class Alternative(Told, frozen=True, kw_only=True):
    """A possible token. `text` has a replacement character where the token is a part of a character."""

    id: int
    text: str
    logprob: float
    name: str = ""
    """What the token is called where its text does not say which it is: a special one's name, or the bytes of a part of
    a character, as `bytes:\\xe2\\x80`. Empty: its text.
    """


class TokenLogprobs(Told, frozen=True, kw_only=True):
    """One new token: its text, its natural log-probability, and the likeliest tokens at its place, best first."""

    text: str
    logprob: float
    top: list[Alternative]
    name: str = ""
    """As in Alternative."""


class Tokens(Reply, frozen=True, tag_field="type", tag="tokens"):
    """New text of a stream. `ids` may run ahead of `text`: a token can end inside a character or a possible stop
    string.

    `index` says which of the `n` continuations it belongs to.
    """

    text: str
    ids: list[int]
    index: int = 0
    logprobs: list[TokenLogprobs] = []
    """One for each of `ids`, where asked for."""


class Failure(Reply, frozen=True, tag_field="type", tag="error"):
    """The last reply of a request that failed; `code` is one of errors.BY_CODE."""

    code: str
    message: str


class Result(Reply, frozen=True, tag_field="of"):
    """Base of the last replies of requests that succeeded: `type` is "result", `of` the request's type."""


class Parameter(Told, frozen=True, kw_only=True):
    """A generation setting, so that a client need not know it beforehand."""

    name: str
    type: str
    """int, float, bool, choice, strings or biases; a later server may have others, which nobody here can set."""
    default: Any
    description: str
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: list[str] = []


class Engine(Told, frozen=True, kw_only=True):
    """An engine, its precisions with the default first, and the strategies it can do."""

    name: str
    precisions: list[str]
    strategies: list[str] = []
    compiles: list[str] = []
    """The precisions for which a load may ask to `compile`."""
    calibrates: list[str] = []
    """The precisions that `calibrate` makes better."""


class Limits(Told, frozen=True, kw_only=True):
    """What the server takes of one client: all connections of a key, or one connection where there are no keys."""

    open: int
    """Open requests."""
    tokens: int
    """Their tokens: those of the prompts (one for four characters of a text), and those still to be written."""
    rate: float
    """Requests a second; as many more may come at once."""


class ServerInfo(Result, frozen=True, tag="hello"):
    """`server_id` changes with every start: a client that sees another one knows that its state is gone."""

    protocol: str
    server_id: str
    version: str
    host: str
    cpu: str
    cores: int
    memory_bytes: int
    engines: list[Engine]
    parameters: list[Parameter]
    role: Role = "admin"
    """Rights of this client: `generate` is all but load, measure, calibrate and unload."""
    notices: list[str] = []
    """What a user of this server should know: a sentence each."""
    limits: Limits | None = None
    """None: unknown, by an older server."""
    instruction_set: str = ""
    """Instructions that the engine native computes with on the server's machine; empty where it cannot be used."""


class WorkerHealth(Told, frozen=True, kw_only=True):
    """A process that holds a model, or loads it. `moved_ms_ago` is the time since its work loop last moved: large means
    stuck.
    """

    model: str
    engine: str
    precision: str
    state: Literal["loading", "ready", "stopping"]
    moved_ms_ago: float
    running: int
    waiting: int
    replica: int = 0
    """Number of this process among those that hold the same model; the lowest that was free."""
    node: str = ""
    """The machine it runs on; empty while it is being placed."""
    cache: str = ""
    """What its KV cache is made of. Empty, here and elsewhere: the server does not say."""
    byte_level: bool = False
    """True if its tokenizer is byte-level BPE, in which the space before a word belongs to the word's token: a prompt
    that ends in a space is best sent without it."""
    calibrated: bool = False
    """Whether its weights were rounded by calibration."""
    instruction_set: str = ""
    """Instructions that it computes with, of the engine native once it is ready; all give the same bits."""


class Pong(Result, frozen=True, tag="ping"):
    server_id: str
    uptime_ms: float
    draining: bool
    workers: list[WorkerHealth]


class Fidelity(Told, frozen=True, kw_only=True):
    """A model at a precision, compared with the same model at full precision, over `tokens` tokens of a text.

    The distributions compared are those of the next token, at each place of the text.
    """

    quantised_share: float
    """Share of the weights in matrix products that are stored with less than 16 bits."""
    disk_bytes: int
    """Size of the files that the engine opens."""
    memory_bytes: int
    """Resident memory of its process, after a first prompt."""
    perplexity: float
    perplexity_change_pct: float
    """Change against full precision; above 0 is worse."""
    top1_agreement: float
    """Share of places where the likeliest token is the same."""
    kl_mean: float
    """Kullback-Leibler divergence from full precision, in nats."""
    kl_p99: float
    """The same at the 99th percentile."""
    greedy_tokens: float
    """Number of tokens of a greedy continuation before the first that differs: the mean over the prompts."""
    greedy_limit: int
    """Length of those continuations."""
    tok_s: float
    """Tokens a second of a greedy continuation: the median over the prompts."""
    tokens: int
    threads: int
    held_out: bool
    """True if the text was the works held out from the embedded model's training; else it was given."""
    calibrated: bool = False
    """Whether the weights had been rounded by calibration."""


class Precision(Told, frozen=True, kw_only=True):
    """One way to load a model: about how much memory it takes, whether it is loaded so, and what it costs where that
    was measured.
    """

    engine: str
    precision: str
    memory_bytes: int
    loaded: bool
    fidelity: Fidelity | None = None
    replicas: list[WorkerHealth] = []
    caches: dict[str, int] = {}
    """What its KV cache can be made of, the default first: about how much memory it then takes."""


class ModelInfo(Told, frozen=True, kw_only=True):
    """A model the server knows. `problem` says why it cannot be loaded; the sizes are then 0."""

    name: str
    parameters: int
    context: int
    file_bytes: int
    """Size of its weights' file."""
    on_disk: bool = True
    """False: a load downloads it first, `file_bytes` and a little more."""
    precisions: list[Precision]
    problem: str = ""
    notices: list[str] = []
    """What a user should know of how its files are read. Found, as some problems are, a moment after a first listing,
    by a look into its files."""
    calibrate_s: int = 0
    """About how many seconds `calibrate` takes here, where nothing else wants the processor; 0: it is not possible."""


class ModelList(Result, frozen=True, tag="models"):
    models: list[ModelInfo]


class Loaded(Result, frozen=True, tag="load"):
    model: str
    engine: str
    precision: str
    digest: str
    """SHA-256 of the weights' file; where there are several, of their digests."""
    context: int
    rows: int
    threads: int
    rss_bytes: int
    load_ms: float
    """From the start of its process to its readiness."""
    already: bool
    """True if it was loaded before this request."""
    quantised_share: float = 0.0
    """Share of the weights in matrix products that are stored with less than 16 bits."""
    disk_bytes: int = 0
    """Size of the files that the engine opened."""
    replicas: int = 1
    """Number of processes that hold it now."""
    notices: list[str] = []
    """What a user should know of how these files were read."""
    byte_level: bool = False
    """As in WorkerHealth."""
    calibrated: bool = False
    """Whether the weights were rounded by calibration."""
    cache: str = ""
    """What its KV cache is made of."""
    instruction_set: str = ""
    """As in WorkerHealth."""


class Measured(Result, frozen=True, tag="measure"):
    """Result of a measurement, which Precision has too from now on, as long as the model's files do not change."""

    model: str
    engine: str
    precision: str
    fidelity: Fidelity
    cache: str = ""
    """What the KV cache was made of."""


class Calibrated(Result, frozen=True, tag="calibrate"):
    """What is used by loads of this model, engine and precision from now on; one that is loaded stays as it is."""

    model: str
    engine: str
    precision: str
    digest: str
    """SHA-256 of the file that was made; the same for the same model and the same text."""
    disk_bytes: int
    elapsed_ms: float
    """A few moments where it had been made already."""


class Unloaded(Result, frozen=True, tag="unload"):
    """Names of what was unloaded, as model/engine/precision."""

    names: list[str]


class CancelSent(Result, frozen=True, tag="cancel"):
    """`found`: the target was an open generate, score, load, measure or calibrate of this client; others cannot be
    cancelled.
    """

    found: bool


FinishReason: TypeAlias = Literal["eos", "length", "stop", "cancelled", "deadline"]


class Continuation(Told, frozen=True, kw_only=True):
    """One of the further continuations of a request with `n` above 1, drawn with the seed `seed`."""

    text: str
    ids: list[int]
    finish_reason: FinishReason
    seed: int
    ledger: Ledger
    logprobs: list[TokenLogprobs] = []
    score: float | None = None
    """Score of a beam: the sum of its log-probabilities divided by its length to the power of `length_penalty`."""


class Generated(Result, frozen=True, tag="generate"):
    """The first continuation; `others` has the rest, drawn with the seeds that follow."""

    text: str
    ids: list[int]
    """All new tokens, the end-of-text token that ended it included."""
    finish_reason: FinishReason
    prompt_truncated: int
    """Tokens dropped from the prompt's beginning."""
    settings: dict[str, Any]
    """The settings in force, the drawn seed included (SETTINGS)."""
    model: str
    engine: str
    precision: str
    digest: str
    threads: int
    ledger: Ledger
    logprobs: list[TokenLogprobs] = []
    """One for each of `ids`, where asked for."""
    score: float | None = None
    """Score of a beam, as in Continuation; `others` are sorted by theirs."""
    others: list[Continuation] = []
    threads_used: float = 0.0
    """Mean number of threads that took part in the steps while it was answered: fewer than `threads` where other
    processes needed the cores. 0 if the server does not say.
    """
    calibrated: bool = False
    """Whether the model's weights were rounded by calibration."""
    cache: str = ""
    """What the KV cache was made of."""
    instruction_set: str = ""
    """As in WorkerHealth."""


class TokenizerInfo(Told, frozen=True, kw_only=True):
    """What a model's files say of its texts."""

    context: int
    """Most tokens of a prompt and what is written after it."""
    before: list[int]
    """Tokens that are put before every text."""
    bos: str
    """Name of the token that an empty prompt begins with; empty where there is none."""
    eos: list[str]
    """Names of the tokens that end a text."""
    chat_template: str
    """Template in Jinja that makes a prompt of a conversation; empty where there is none."""
    names: dict[str, str] = {}
    """Special tokens as such a template may ask for them, {"bos_token": "<s>"}: those that the tokenizer has."""


class Tokenized(Result, frozen=True, tag="tokenize"):
    """`offsets[i]` and the one after it enclose the bytes of token i in the UTF-8 text; there is one more of them than
    tokens.
    """

    text: str
    ids: list[int]
    offsets: list[int]
    about: TokenizerInfo | None = None
    """Where asked for."""


class Words(Told, frozen=True, kw_only=True):
    """Words of a text that was scored; word i is text[starts[i] : ends[i]], in characters."""

    texts: list[str]
    starts: list[int]
    ends: list[int]
    tokens: list[int]
    """Index of each word's first token."""
    logprobs: list[float | None]
    """Natural log-probability of each word, corrected for where words end; None where nothing stands before it."""


class ScoredText(Reply, frozen=True, tag_field="type", tag="scored"):
    """One of the texts of a Score. The lists have an entry for each of `ids`: None where nothing stands before it,
    which can be so of the first token only, and which the sums leave out.
    """

    index: int
    """Which of the request's texts it is."""
    ids: list[int]
    logprobs: list[float | None]
    """Natural log-probabilities."""
    ranks: list[int | None]
    """1, and the number of tokens whose logit is greater."""
    entropies: list[float | None]
    """Entropies of the distributions, in nats."""
    greedy: list[int | None]
    """Tokens that would be chosen greedily: the likeliest, of several that with the lowest number."""
    sum: float
    """Sum of the log-probabilities."""
    mean: float
    perplexity: float
    """exp of the mean loss per token."""
    bits_per_byte: float
    """Bits per byte of the UTF-8 text, without a first token that nothing stands before."""
    offsets: list[int] = []
    """Where the tokens are in the text, as in Tokenized."""
    top: list[list[Alternative]] = []
    """Where asked for: the likeliest tokens at each place, best first; none where nothing stands before it.

    A token has the same log-probability there as in `logprobs`, to the last bit.
    """
    words: Words | None = None
    """Where asked for."""


class Scored(Result, frozen=True, kw_only=True, tag="score"):
    """Scores of a text, as in ScoredText; of many texts, sums and means over all of their tokens, and empty lists."""

    ids: list[int]
    logprobs: list[float | None]
    ranks: list[int | None] = []
    entropies: list[float | None] = []
    greedy: list[int | None] = []
    sum: float = 0.0
    mean: float = 0.0
    perplexity: float
    bits_per_byte: float
    tokens: int = 0
    """Number of tokens that have a log-probability."""
    computed: int = 0
    """Number of tokens that were computed for it: those of all windows, and what stands before texts where it was not
    known already.
    """
    elapsed_ms: float
    offsets: list[int] = []
    top: list[list[Alternative]] = []
    words: Words | None = None


class WorkerStats(Told, frozen=True, kw_only=True):
    """Work that one worker has done since it was loaded. Tokens are counted as ledgers do: prompts when answered."""

    model: str
    engine: str
    precision: str
    rss_bytes: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    busy_ms: float
    replica: int = 0
    node: str = ""


class Stats(Result, frozen=True, tag="stats"):
    """Counts since the start; for a key that may not administrate, those of its own requests, tokens from their ledgers
    and `busy_ms` the sum of their times.
    """

    uptime_ms: float
    rss_bytes: int
    """Memory of the gateway's process."""
    peers: int
    open_requests: int
    requests: dict[str, int]
    """Requests received, by type."""
    errors: dict[str, int]
    """Error replies sent, by code."""
    workers: list[WorkerStats]


OfModel: TypeAlias = Generate | Tokenize | Score
"""The requests that a loaded model answers."""
Task: TypeAlias = Measure | Calibrate
"""What a process of its own does, which then ends."""
AnyRequest: TypeAlias = Hello | Ping | Models | GetStats | Load | Measure | Calibrate | Unload | Cancel | OfModel
AnyResult: TypeAlias = (
    ServerInfo
    | Pong
    | ModelList
    | Stats
    | Loaded
    | Measured
    | Calibrated
    | Unloaded
    | CancelSent
    | Generated
    | Tokenized
    | Scored
)
AnyReply: TypeAlias = Progress | Tokens | ScoredText | Failure | AnyResult
