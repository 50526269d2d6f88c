"""Choice of the replica for a request."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from protocol import messages as m
from protocol.ledger import ledger
from server.gateway import routing
from server.gateway.routing import MAX_BLOCKS, MAX_KNOWN, SLACK, Known


@dataclass(eq=False)
class Replica:
    open: int = 0
    used: float = 0.0
    known: Known = field(default_factory=Known)


def choose(replicas: list[Replica], request: m.OfModel) -> Replica:
    return routing.choose(replicas, request, lambda r: r.open)


def page(start: str, blocks: int = 4) -> m.Generate:
    return m.Generate(prompt=start.ljust(64 * blocks, "."))


@pytest.mark.parametrize("request_", [page("Shall I compare thee"), m.Generate(prompt_ids=list(range(70)))])
def test_a_prompt_goes_where_its_beginning_went(request_: m.Generate) -> None:
    replicas = [Replica(), Replica(used=1), Replica(used=2)]
    first = choose(replicas, request_)
    first.used, first.open = 9.0, 2
    if request_.prompt is None:
        longer = m.Generate(prompt_ids=[*range(64), 7, 7, 7])
    else:
        longer = m.Generate(prompt=request_.prompt + " to a summer's day?")
    assert choose(replicas, longer) is first
    assert choose(replicas, page("another")) is replicas[1], "what nobody knows goes to the one that was idle longest"


def test_the_next_page_goes_where_its_text_was_written() -> None:
    replicas = [Replica(), Replica()]
    prompt, text = "p" * 10, "t" * 300
    replicas[1].known.learn(routing.blocks_of(m.Generate(prompt=prompt), _result(text)))
    assert choose(replicas, m.Generate(prompt=prompt + text + "and so on")) is replicas[1]


def test_the_one_that_knows_more_of_it_comes_first() -> None:
    replicas, prompt = [Replica(), Replica()], "".join(f"line {i:3} of the poem\n" for i in range(40))
    replicas[0].known.learn(routing.blocks_of(m.Generate(prompt=prompt[:200])))
    replicas[1].known.learn(routing.blocks_of(m.Generate(prompt=prompt[:400])))
    assert choose(replicas, m.Generate(prompt=prompt)) is replicas[1]
    assert choose(replicas, m.Generate(prompt=prompt[:150])) is replicas[0]


@pytest.mark.parametrize(("least", "most"), [(0, SLACK), (3, 6 + SLACK)])
def test_one_that_is_much_busier_is_passed_over(least: int, most: int) -> None:
    knowing, idle = Replica(), Replica(open=least)
    choose([knowing], page("x")), choose([knowing, Replica(open=9)], page("x"))
    knowing.open = most
    assert choose([knowing, idle], page("x")) is knowing
    knowing.open = most + 1
    assert choose([knowing, idle], page("x")) is idle
    knowing.open = 0
    assert choose([knowing, idle], page("x")) is knowing, "the other knows it now too; between them the less busy one"
    assert idle.known.shared(routing.blocks_of(page("x"))) == 4


def test_other_requests_go_to_the_least_busy_one() -> None:
    replicas = [Replica(open=2), Replica(open=1), Replica(open=1, used=-1.0)]
    assert choose(replicas, m.Tokenize(text="x" * 200)) is replicas[2]
    assert choose(replicas, m.Score(text="x" * 200)) is replicas[2] and not len(replicas[2].known)


def test_what_is_remembered_has_a_bound() -> None:
    known = Known()
    for i in range(MAX_KNOWN // MAX_BLOCKS + 9):
        blocks = routing.blocks_of(m.Generate(prompt=f"{i:9}" + "long" * 9000))
        assert len(blocks) == MAX_BLOCKS
        known.learn(blocks)
    assert len(known) == MAX_KNOWN and known.shared(blocks) == MAX_BLOCKS
    assert known.shared(routing.blocks_of(m.Generate(prompt=f"{0:9}" + "long" * 9000))) == 0


def test_what_one_key_has_sent_draws_no_other_key_to_its_replica() -> None:
    """Else the road that a guess takes would tell whether it was right."""
    replicas = [Replica(used=2), Replica(used=1)]
    request = page("a")
    replicas[0].known.learn(routing.blocks_of(request, _result("text"), 1))
    assert routing.choose(replicas, request, lambda r: r.open, 1) is replicas[0]
    assert routing.choose(replicas, request, lambda r: r.open, 2) is replicas[1]
    assert routing.choose(replicas, m.Generate(prompt_ids=[7] * 90), lambda r: r.open, 2) is replicas[1]


def test_text_and_tokens_are_kept_apart() -> None:
    known = Known()
    known.learn(routing.blocks_of(m.Generate(prompt="\0" * 640)))
    assert known.shared(routing.blocks_of(m.Generate(prompt_ids=[0] * 160))) == 0
    assert routing.blocks_of(m.Generate(prompt="short")) == [], "an unfinished block does not count"


def _result(text: str) -> m.Generated:
    return m.Generated(
        id=1, text=text, ids=[], finish_reason="length", prompt_truncated=0, settings={},
        model="m", engine="e", precision="p", digest="", threads=1,
        ledger=ledger(queue_ms=1, tokenise_ms=1, prefill_ms=1, decode_ms=1, prompt_tokens=1, new_tokens=1),
    )  # fmt: skip
