"""A server that speaks the protocol and means harm."""

from __future__ import annotations

import math
from typing import Any

from protocol import messages as m
from protocol.errors import Internal
from protocol.ledger import Ledger
from protocol.parameters import parameters
from protocol.testing import FakeServer, Step, server_info

NASTY = "\0\x1b[31m\u202e##%s%n{}" + "\U0001f600" + "\n" * 50 + "W" * 5000


WILD = m.Fidelity(
    quantised_share=math.inf,
    disk_bytes=-1,
    memory_bytes=2**62,
    perplexity=math.nan,
    perplexity_change_pct=-math.inf,
    top1_agreement=1e300,
    kl_mean=math.nan,
    kl_p99=0.0,
    greedy_tokens=math.nan,
    greedy_limit=-(2**62),
    tok_s=-1e300,
    tokens=2**62,
    threads=-1,
    held_out=False,
)

KINDS = ("int", "float", "bool", "choice", "strings", "biases")
VALUES: list[Any] = [
    NASTY,
    "",
    math.nan,
    -math.inf,
    1e300,
    2**63,
    -1,
    1,
    True,
    None,
    [],
    [NASTY],
    [1],
    [[1]],
    [[1, 2.5]],
    [["a", "b"]],
    [[1, math.nan]],
    {},
    {"a": [1]},
]
CHOICES = ["", "\0", "#", "##", "###", NASTY]
RANGES: list[tuple[float | None, float | None]] = [
    (math.nan, math.nan),
    (math.inf, -math.inf),
    (-math.inf, math.inf),
    (5, 1),
    (2**62, 2**63),
    (None, 2**63),
    (None, None),
    (0.5, 2.5),
]
NAMES = ["", "\0", "##", "###", "a b", "import", NASTY]


def parameter(name: str, kind: Any, default: Any, low: float | None = None, high: float | None = None) -> m.Parameter:
    return m.Parameter(
        name=name, type=kind, default=default, description=NASTY, minimum=low, maximum=high, choices=CHOICES
    )


NONSENSE = [
    *(parameter(f"{kind}_{i}", kind, value) for kind in KINDS for i, value in enumerate(VALUES)),
    *(
        parameter(f"{kind}_within_{i}_{value}", kind, value, *r)
        for kind in KINDS[:2]
        for i, r in enumerate(RANGES)
        for value in (None, 1)
    ),
    *(parameter(name, "bool", default=False) for name in NAMES),
    *(parameter(p.name, p.type, {"a": NASTY}) for p in parameters()[::2]),
    *(parameter(p.name, "strings", []) for p in parameters()[::2]),
]
"""Settings of which many can be neither drawn nor set; some have the names of those that there are."""


class HostileServer(FakeServer):
    """Answers hello, ping, models and load as it should; what it generates depends on the prompt: nonsense after
    `nonsense`, else a flood.
    """

    def __init__(self) -> None:
        settings = [*parameters()[1::2], *NONSENSE]
        words = {"version": NASTY, "host": NASTY, "cpu": NASTY}
        super().__init__(self._replies, info=server_info(**words, cores=-1, memory_bytes=-5, parameters=settings))

    def _replies(self, request: m.AnyRequest) -> Step | list[Step]:
        match request:
            case m.Ping():
                health = m.WorkerHealth(
                    model=NASTY,
                    engine="e",
                    precision="p",
                    state="ready",
                    moved_ms_ago=math.inf,
                    running=-1,
                    waiting=10**18,
                    replica=-(2**62),
                    node=NASTY,
                )
                return m.Pong(
                    id=None, server_id=self.info.server_id, uptime_ms=math.nan, draining=False, workers=[health] * 50
                )
            case m.Models():
                way = m.Precision(engine="e", precision="p", memory_bytes=2**62, loaded=True, fidelity=WILD)
                named = [
                    m.ModelInfo(name=name[:100], parameters=2**62, context=0, file_bytes=-1, precisions=[way] * 3)
                    for name in (NASTY, *NAMES[1:])
                ]
                return m.ModelList(id=None, models=named * 300)
            case m.Load():
                return m.Loaded(
                    id=None,
                    model=request.model,
                    engine=request.engine or "",
                    precision=request.precision or "",
                    digest=NASTY,
                    context=-1,
                    rows=-1,
                    threads=-1,
                    rss_bytes=-(2**62),
                    load_ms=math.nan,
                    already=False,
                    replicas=-5,
                    notices=[NASTY] * 50,
                )
            case m.Generate() if "nonsense" not in (request.prompt or ""):
                return [m.Tokens(id=None, text=NASTY * 10, ids=[1]) for i in range(200)]
            case m.Generate():
                ledger = Ledger(
                    queue_ms=math.nan,
                    tokenise_ms=-1.0,
                    prefill_ms=math.inf,
                    decode_ms=1e300,
                    first_token_ms=-math.inf,
                    inference_ms=math.nan,
                    tokens_per_second=math.inf,
                    prompt_tokens=-4,
                    new_tokens=10**9,
                    reused_tokens=-1,
                    mean_batch=math.nan,
                )
                told = [
                    m.TokenLogprobs(
                        text=NASTY, logprob=math.nan, top=[m.Alternative(id=1, text=NASTY, logprob=math.inf)] * 20
                    )
                ] * 50
                return m.Generated(
                    id=None,
                    text=NASTY,
                    ids=[1] * 50,
                    finish_reason="eos",
                    prompt_truncated=-7,
                    settings={"seed": NASTY},
                    model=NASTY,
                    engine=NASTY,
                    precision=NASTY,
                    digest=NASTY,
                    threads=-1,
                    ledger=ledger,
                    logprobs=told,
                )
            case _:
                return Internal(NASTY)
