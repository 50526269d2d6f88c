"""Which tokens lm-eval's questions are about, by the rules of its own `hf`; what its settings of a generation mean."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from client.doors.lm_eval import pairs, writing
from client.doors.lm_eval.pairs import Pair
from protocol import Client, messages as m
from protocol.errors import BadRequest, NotGpt2d
from protocol.messages import Passage
from protocol.testing import FakeServer
from scripts.bench.engine import module_environment
from scripts.daemon import Daemon

PREFIX = 0
END = "<|endoftext|>"
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely, and more temperate: "


def test_a_continuation_has_the_tokens_that_it_has_in_the_whole_text() -> None:
    """Spaces at the context's end move into it, so that a word begins with its space."""
    assert pairs.texts("Is it? ", "Yes") == ("Is it?", "Is it? Yes")
    encoded = {"Is it?": [1, 2, 3], "Is it? Yes": [1, 2, 3, 4, 5]}
    assert pairs.of_texts("Is it? ", "Yes", encoded, PREFIX, 0) == Pair([1, 2, 3], [4, 5])
    joined = {"a": [7], "aa": [8]}  # one token of both
    assert pairs.of_texts("a", "a", joined, PREFIX, 0) == Pair([7], [])


def test_without_a_context_the_prefix_stands_before_it() -> None:
    encoded = {"Yes": [9, 4, 5], "": [9], "<end>Yes": [PREFIX, 4, 5]}
    assert pairs.of_texts("", "Yes", encoded, PREFIX, 1) == Pair([PREFIX], [4, 5])
    assert pairs.of_texts("", "<end>Yes", encoded, PREFIX, 0) == Pair([PREFIX], [4, 5])


def test_rolling_windows_judge_each_token_once() -> None:
    """The example of lm-eval's own docstring, and its edges."""
    ids = list(range(1, 11))
    assert list(pairs.windows(ids, PREFIX, 4)) == [
        Pair([PREFIX], [1, 2, 3, 4]),
        Pair([4], [5, 6, 7, 8]),
        Pair([6, 7, 8], [9, 10]),
    ]
    assert list(pairs.windows(ids[:4], PREFIX, 4)) == [Pair([PREFIX], [1, 2, 3, 4])]
    assert list(pairs.windows([], PREFIX, 4)) == []


def test_a_long_context_loses_its_beginning() -> None:
    """The model reads all tokens but the last."""
    assert pairs.cut(Pair([1, 2, 3, 4], [5, 6]), 4) == Pair([2, 3, 4], [5, 6])
    assert pairs.cut(Pair([1, 2], [5, 6]), 4) == Pair([1, 2], [5, 6])
    assert pairs.cut(Pair([1, 2], [5, 6, 7, 8]), 4) == Pair([2], [5, 6, 7, 8])
    for continuation in ([], [1, 2, 3, 4, 5]):
        with pytest.raises(BadRequest, match="must have 1 to 4 tokens"):
            pairs.cut(Pair([1], continuation), 4)


def test_settings_of_a_generation() -> None:
    plain = writing.read({"until": "\n", "max_gen_toks": 12, "do_sample": False, "temperature": 0.7})
    assert plain.settings == {"strategy": "greedy", "stop": ["\n"]} and plain.length == 12
    assert writing.read({}).settings == {"strategy": "greedy", "stop": []}
    for given in ({"do_sample": True}, {"do_sample": True, "temperature": 0.0}):
        with pytest.raises(BadRequest, match="do_sample needs a temperature above 0, got 0; give one, or leave out"):
            writing.read(given)
    assert (writing.read({}).length, writing.read({"max_tokens": 3, "max_new_tokens": 4}).length) == (256, 4)
    state = random.getstate()
    random.seed(1)
    drawn = [writing.read({"temperature": 0.7, "top_p": 0.9, "num_beams": 1}).settings for _ in range(2)]
    random.seed(1)
    again = writing.read({"do_sample": True, "temperature": 0.7, "top_p": 0.9}).settings
    random.setstate(state)
    assert again == drawn[0] != drawn[1], "drawn anew each time, and again with the same --seed"
    assert again | {"seed": 0} == {"strategy": "sample", "temperature": 0.7, "top_p": 0.9, "stop": [], "seed": 0}


def test_more_strings_than_a_request_has_room_for_end_a_text_all_the_same() -> None:
    ends = [str(i) for i in range(10, 30)]
    many = writing.read({"until": [*ends, ""]})
    assert many.settings["stop"] == ends[:16]
    assert many.cut("one 29 two 12") == "one "


class Harness:
    """Stands in for lm_eval.api.model.LM, which need not be installed: what a model has from it."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


MODEL = "client.doors.lm_eval.model"


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that lm-eval makes a model of. Its module is gone afterwards, as what stood in for lm-eval."""
    if not find_spec("lm_eval"):
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", Harness, raising=False)
    yield import_module(MODEL).DaemonLM
    del sys.modules[MODEL]


@pytest.fixture
def model(shared_daemon: Daemon, kind: Any) -> Any:
    return kind(shared_daemon.endpoint, model="demo", precision="int8", batch_size=1, device=None)


def asking(*given: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in given]


def test_continuations_have_the_scores_of_the_protocol(model: Any, client: Client) -> None:
    """In the order of the questions, whatever the order in which they are sent; what greedy would write is told."""
    best = client.generate(TEXT.rstrip(), strategy="greedy", max_new_tokens=3).text
    choices = [(TEXT, "Rough winds"), (TEXT.rstrip(), best), ("", "O, what"), (TEXT, "do shake"), ("O,", " what 汉字")]
    answers = model.loglikelihood(asking(*choices), disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(choices, answers, strict=True):
        before = client.tokenize(context.rstrip()).ids if context else client.tokenize(END).ids
        whole = client.tokenize((context or END) + continuation).ids
        told = client.score(ids=whole, bos="never")
        assert logprob == pytest.approx(sum(value or 0.0 for value in told.logprobs[len(before) :]), abs=1e-9)
        assert greedy == (told.greedy[len(before) :] == told.ids[len(before) :]) == (continuation == best)


def test_a_text_of_any_length_is_judged_in_windows(model: Any, client: Client) -> None:
    text = TEXT * 60
    ids = client.tokenize(text).ids
    assert 1024 < len(ids) < 2048
    (whole, short) = model.loglikelihood_rolling(asking((text,), (TEXT,)), disable_tqdm=True)
    first = client.score(ids=ids[:1024])
    (rest,) = client.score_many([Passage(ids=ids[1024:], context_ids=ids[len(ids) - 1025 : 1024])])
    assert whole == first.sum + rest.sum
    assert short == client.score(TEXT).sum


def test_what_is_written_ends_before_a_string(model: Any, client: Client) -> None:
    kwargs = {"until": ["\n", " the"], "max_gen_toks": 40}
    long, short = model.generate_until(asking((TEXT * 100, kwargs), ("O,", kwargs)), disable_tqdm=True)
    ids = client.tokenize(TEXT * 100).ids[-(1024 - 40) :]
    whole = client.generate(prompt_ids=ids, strategy="greedy", max_new_tokens=40).text
    assert long == whole.split("\n")[0].split(" the")[0]
    assert "\n" not in short and " the" not in short
    with pytest.raises(BadRequest, match="max_gen_toks must be less than the 1024 tokens of a text, got 1024"):
        model.generate_until(asking(("O,", {"max_gen_toks": 1024})), disable_tqdm=True)


def test_arguments_that_mean_nothing_are_refused(model: Any, shared_daemon: Daemon) -> None:
    """And no connection is left behind by what was refused."""
    threads = threading.active_count()
    for given, says in (
        ({"endpoint": f"{shared_daemon.endpoint}#a.b"}, "write endpoint=- and give the line on stdin"),
        ({"dtype": "float32"}, "model_args has no 'dtype'"),
        ({"max_length": 1025}, "max_length must be 1 to 1024, this model's context, got 1025"),
        ({"max_length": 0}, "max_length must be 1 to 1024"),
    ):
        with pytest.raises(BadRequest, match=says):
            type(model)(**({"endpoint": shared_daemon.endpoint, "model": "demo", "precision": "int8"} | given))
    assert threading.active_count() <= threads


def test_a_server_that_knows_no_token_of_its_own_is_not_one_of_ours(kind: Any) -> None:
    about = m.TokenizerInfo(context=64, before=[], bos="<s>", eos=[], chat_template="")
    told = m.Tokenized(id=None, text="", ids=[], offsets=[0], about=about)
    with FakeServer(lambda _: told) as server, pytest.raises(NotGpt2d, match="found no token in '<s>'"):
        kind(server.endpoint)


def test_the_hubs_libraries_are_told_to_count_nothing_before_they_are_loaded(tmp_path: Path) -> None:
    """Those that lm-eval loads; one of that name stands in for it."""
    (tmp_path / "lm_eval" / "api").mkdir(parents=True)
    for package in (tmp_path / "lm_eval", tmp_path / "lm_eval" / "api"):
        (package / "__init__.py").touch()
    seen = "[os.environ.get(name) for name in ('HF_HUB_DISABLE_TELEMETRY', 'HF_UPDATE_DOWNLOAD_COUNTS')]"
    main = f"import os\nfound = {seen}\ndef cli_evaluate():\n    print(*found)\n"
    (tmp_path / "lm_eval" / "__main__.py").write_text(main, encoding="utf-8")
    registry = "class model_registry:\n    @staticmethod\n    def register(name, target): ...\n"
    (tmp_path / "lm_eval" / "api" / "registry.py").write_text(registry, encoding="utf-8")
    environment = module_environment()
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-P", "-m", "client.doors.lm_eval", "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["1", "0"], done.stderr


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_command_says_what_to_install() -> None:
    command = [sys.executable, "-m", "client.doors.lm_eval", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "lm_eval is not installed" in done.stderr and "[lm-eval]" in done.stderr
    assert "Traceback" not in done.stderr
