"""The head in two passes: what can be among the best has the bits of the whole head, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.messages import Generate
from scripts.head import choice, compare, made_up, same
from server.catalogue.architecture import Architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import instruction_sets
from server.checkpoint.tensors import Weights
from server.convert.native_layout import FILE, Layout, Tensors
from server.engines.native import NativeEngine
from server.worker.processors import Processors
from server.worker.sampling import Sampler
from tests.server.test_native import ARCH, ODD, make

SMALL = Architecture(layers=1, heads=2, width=96, inner=64, context=64, vocabulary=5003, epsilon=1e-5, ends=(0,))
LARGE = replace(SMALL, vocabulary=50257)
"""Of 4.8 MB: a head that is read in two passes without being told."""
IDS = [7, 4999]


def built(folder: Path, arch: Architecture, weights: Tensors, **settings: Any) -> NativeEngine:
    Layout(arch, weights, "int8", lambda *_: None).write(folder)
    return NativeEngine(arch, folder / FILE, "int8", settings.pop("rows", 2), 2, **settings)


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("arch", [SMALL, ODD], ids=["small", "odd"])
def test_the_best_logits_have_the_bits_of_the_whole_head(tmp_path: Path, arch: Architecture, name: str) -> None:
    engine = built(tmp_path, arch, made_up(arch), instruction_set=name)
    engine.always_two_passes(True)
    for past in range(12):
        ids = [(past * 97 + token) % arch.vocabulary for token in IDS]
        whole = engine.decode(ids, [past, past]).copy()
        assert not engine.strips_read and np.isfinite(whole).all()
        for best in ([1, 1], [50, 1], [7, 60], [5]):
            logits = engine.decode(ids[: len(best)], [past] * len(best), best=best)
            assert engine.strips_read
            for row, k in enumerate(best):
                assert same(logits[row], whole[row], k)
                assert ((logits[row] == whole[row]) | (logits[row] == -np.inf)).all()
    engine.close()


def test_a_row_with_another_need_has_the_whole_head(tmp_path: Path) -> None:
    engine = built(tmp_path, SMALL, made_up(SMALL))
    engine.always_two_passes(True)
    for best in ([1, 0], [0, 0], [1, SMALL.vocabulary], [10**6, 5]):
        assert np.isfinite(engine.decode(IDS, [0, 0], best=best)).all(), best
        assert engine.strips_read == 0
    with pytest.raises(ValueError, match="the native engine was given"):
        engine.decode(IDS, [0, 0], best=[1, -1])
    engine.close()
    engine = make(tmp_path, ODD, "fp32", rows=3)
    engine.always_two_passes(True)
    assert np.isfinite(engine.decode([1, 2], [0, 0], best=[1, 1])).all(), "floats have no coarse head"
    engine.close()


def test_two_passes_are_taken_where_they_are_worth_it(tmp_path: Path) -> None:
    """Not on a head that lies in a cache, not for many tokens, and not for a while where too many are alike."""
    engine = built(tmp_path, SMALL, made_up(SMALL))
    engine.decode(IDS, [0, 0], best=[1, 1])
    assert not engine.strips_read
    engine.close()
    weights = dict(made_up(LARGE))
    engine = built(tmp_path, LARGE, weights, rows=3)

    def read(best: list[int]) -> int:
        engine.decode([*IDS, 9][: len(best)], [0] * len(best), best=best)
        return engine.strips_read

    assert 0 < read([1]) < 300 and 0 < read([1, 1]) < 600
    assert read([1, 1, 1]) == read([500]) == 0
    engine.close()
    weights["wte.weight"] = np.tile(weights["wte.weight"][:8], (LARGE.vocabulary // 8 + 1, 1))[: LARGE.vocabulary]
    engine = built(tmp_path, LARGE, weights)
    assert [read([1]) for _ in range(40)] == [0] * 40, "an eighth of all tokens is equal to the best"
    engine.close()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_a_number_is_not_passed_over(tmp_path: Path, broken: float) -> None:
    weights = dict(made_up(SMALL))
    weights["wte.weight"] = weights["wte.weight"].copy()
    weights["wte.weight"][4000, 5] = broken
    engine = built(tmp_path, SMALL, weights)
    engine.always_two_passes(True)
    logits = engine.decode(IDS, [0, 0], best=[1, 1]).copy()
    np.testing.assert_array_equal(logits, engine.decode(IDS, [0, 0]))
    assert not np.isfinite(logits[:, 4000]).any()
    engine.close()


@pytest.fixture
def demo(tmp_path: Path) -> Callable[[int], NativeEngine]:
    Layout(ARCH, Weights(DEMO_FOLDER, ARCH), "int8", lambda *_: None).write(tmp_path)
    return lambda rows: NativeEngine(ARCH, tmp_path / FILE, "int8", rows, 2)


def test_no_token_differs_in_many(demo: Callable[[int], NativeEngine]) -> None:
    """`python -m scripts.head` looks at a million."""
    engine = demo(2)
    found = compare(engine, 8000, 50)
    assert (found.different, found.whole) == (0, 0) and 0.1 < found.read < 0.99, found
    found = compare(engine, 2000, 1)
    assert (found.different, found.whole) == (0, 0) and found.read < 0.2, found
    engine.close()


def test_a_row_alone_has_the_text_that_it_has_among_eight(demo: Callable[[int], NativeEngine]) -> None:
    engine, steps = demo(8), 60
    engine.always_two_passes(True)

    def texts(first: list[int], best: int) -> list[list[int]]:
        chosen, uniforms = [first], np.random.default_rng(1).random(steps)
        rows = list(range(len(first)))
        for past, uniform in enumerate(uniforms):
            drawn = choice(50)
            drawn.uniform = float(uniform)
            logits = engine.decode(chosen[-1], [past] * len(first), best=[best] * len(first))
            assert bool(engine.strips_read) == (len(first) == 1)
            chosen.append(engine.choose(logits, rows, [drawn] * len(first)))
        return [list(text) for text in zip(*chosen, strict=True)]

    begun = [11, 300, 45, 2000, 4000, 77, 9, 1234]
    assert [texts([token], 50)[0] for token in begun] == texts(begun, 50)
    engine.close()


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ({}, 50),
        ({"strategy": "greedy"}, 1),
        ({"temperature": 0.0}, 1),
        ({"top_k": 7, "top_p": 0.5, "min_p": 0.1}, 7),
        ({"top_k": 0}, 0),
        ({"top_k": 0, "min_p": 0.1}, 0),
        ({"typical_p": 0.9}, 0),
        ({"strategy": "mirostat"}, 0),
        ({"logprobs": 0}, 0),
        ({"strategy": "greedy", "logprobs": 2}, 0),
        ({"logit_bias": [(3, 1.0)]}, 0),
        ({"repetition_penalty": 1.1}, 0),
        ({"presence_penalty": 0.5}, 0),
        ({"frequency_penalty": 0.5}, 0),
        ({"no_repeat_ngram_size": 2}, 0),
        ({"min_new_tokens": 3}, 0),
        ({"exact_head": True}, 0),
        ({"exact_head": True, "strategy": "greedy"}, 0),
    ],
    ids=str,
)
def test_which_requests_need_only_the_best(settings: dict[str, Any], best: int) -> None:
    request = Generate(prompt="x", **settings)
    assert Sampler(request, 0, Processors(request, 1, [0], [])).best == best
    words = Processors(request, 1, [0], [[5]])
    assert Sampler(request, 0, words).best == 0, "words that must not come"
