"""update.apply: whatever happens in whatever order, the state stays one that can be drawn and worked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client import replicas
from client.window import events as e, secret
from client.window.export import as_json, as_python
from client.window.parameters import OWN, usable
from client.window.results import MAX_LOGPROBS
from client.window.state import GOES_ON, AppState, Status
from client.window.textfile import TextFile
from client.window.update.apply import ANSWERS, apply
from client.window.update.comparison import differences
from client.window.update.connection import STATUS
from client.window.update.generation import note
from client.window.views import connection
from protocol import messages as m
from protocol.errors import (
    BY_CODE,
    Busy,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    Gpt2dError,
    KeyRefused,
    NoServer,
    ServerRestarted,
    ServerStuck,
)
from protocol.ledger import ledger
from protocol.parameters import parameters
from tests.client.hostile import NASTY, NONSENSE, VALUES, parameter

INFO = m.ServerInfo(
    id=1,
    protocol="1.0",
    server_id="a",
    version="1",
    host="h",
    cpu="c",
    cores=2,
    memory_bytes=3,
    engines=[],
    parameters=parameters(),
)
WORKER = m.WorkerHealth(
    model="demo", engine="onnx", precision="int8", state="ready", moved_ms_ago=1, running=0, waiting=0
)
PONG = m.Pong(id=1, server_id="a", uptime_ms=1, draining=False, workers=[WORKER])
MODEL = m.ModelInfo(
    name="demo",
    parameters=6,
    context=1024,
    file_bytes=1,
    precisions=[m.Precision(engine="onnx", precision="int8", memory_bytes=1, loaded=True)],
)
FLAGS = {"held_out": True, "calibrated": False}
FIDELITY = msgspec.convert(dict.fromkeys(m.Fidelity.__struct_fields__, 1) | FLAGS, m.Fidelity)
LOADED = m.Loaded(
    id=1,
    model="demo",
    engine="onnx",
    precision="int8",
    digest="d",
    context=1,
    rows=1,
    threads=1,
    rss_bytes=1,
    load_ms=1,
    already=True,
)
TOLD = [m.TokenLogprobs(text=" x", logprob=-1.0, top=[m.Alternative(id=5, text="y", logprob=-2.0)])] * 2
RESULT = m.Generated(
    id=1,
    text=" x x",
    ids=[3, 3],
    finish_reason="length",
    prompt_truncated=0,
    settings={"seed": 1, "temperature": 0.5},
    model="demo",
    engine="onnx",
    precision="int8",
    digest="d",
    threads=2,
    ledger=ledger(new_tokens=2),
    logprobs=TOLD,
)


def ready() -> AppState:
    state = AppState()
    for message in (
        e.Tick(1.0, 1e9),
        e.Connect(),
        e.Replied("look", INFO, 1),
        e.Replied("models", m.ModelList(id=1, models=[MODEL]), 1),
        e.Replied("look", PONG, 1),
    ):
        apply(state, message)
    assert state.link.status == "ready" and state.models.model == "demo"
    return state


def test_a_restarted_server_that_has_its_models_again_is_not_said_to_have_lost_them() -> None:
    state = ready()
    apply(state, e.Broken())
    for reply in (msgspec.structs.replace(INFO, server_id="b"), msgspec.structs.replace(PONG, server_id="b")):
        apply(state, e.Replied("look", reply, 1))
    assert state.loaded and state.said("link") == "the server was restarted"


def meet(state: AppState, parameters: list[m.Parameter]) -> None:
    """A server that describes these settings."""
    apply(state, e.Replied("look", msgspec.structs.replace(INFO, parameters=parameters), 1))
    apply(state, e.Replied("models", m.ModelList(id=1, models=[MODEL]), 1))


def written(state: AppState, text: str, how: Any = "generate") -> None:
    """Let the page be continued by this text; by none: it fails."""
    apply(state, e.Do(how))
    if text:
        apply(state, e.Replied("page", m.Tokens(id=1, text=text, ids=[3]), 1))
    apply(state, e.Replied("page", RESULT if text else NoServer("gone"), 1))


def sent(effects: list[e.Effect], kind: type[Any]) -> list[Any]:
    return [effect.request for effect in effects if isinstance(effect, e.Send) and isinstance(effect.request, kind)]


def test_a_generation_streams_into_the_place_it_was_asked_for() -> None:
    state = ready()
    state.interval_ms = 120  # where a frame is dear
    apply(state, e.Edit(0, 0, "Once END", "typed"))
    apply(state, e.Select(4, 4))
    (request,) = sent(apply(state, e.Do("generate")), m.Generate)
    assert (request.prompt, request.truncate, request.stream, request.logprobs, request.model) == (
        "Once",
        "left",
        True,
        10,
        "demo",
    )
    assert request.stream_interval_ms == 120, "no piece comes that no frame shows"
    for text in (" upon", " a", " time"):
        apply(state, e.Replied("page", m.Tokens(id=1, text=text, ids=[1]), 1))
    assert state.page.document.text == "Once upon a time END"
    apply(state, e.Replied("page", RESULT, 50.0))
    assert state.page.generating is None and state.ledgers.last == RESULT and len(state.history.entries) == 1
    assert state.page.document.cursor == len("Once upon a time")


def test_what_a_server_describes_is_kept_where_it_can_be_drawn_and_set() -> None:
    state = ready()
    assert state.link.info and state.link.info.parameters == parameters(), "its own are"
    meet(state, NONSENSE)
    kept = state.parameters
    right: dict[str, list[Any]] = {
        "int": [-1, 1, None],
        "float": [2**63, -1, 1],
        "bool": [True],
        "choice": [NASTY, ""],
        "strings": [[], [NASTY]],
        "biases": [[], [[1, 2.5]]],
    }
    for kind, values in right.items():
        defaults = [kept[f"{kind}_{i}"].default for i in range(len(VALUES)) if f"{kind}_{i}" in kept]
        assert sorted(repr(value) for value in defaults) == sorted(repr(value) for value in values), kind
    within = {name for name in kept if "_within_" in name}
    finite = ("5_None", "5_1", "6_None", "6_1", "7_None", "7_1")  # by the number of the range
    assert within == {f"int_within_{w}" for w in ("3_None", "4_None", *finite)} | {
        f"float_within_{w}" for w in finite if "None" not in w
    }
    texts = {p.name for p in parameters()[::2] if p.type == "strings"}
    assert (
        texts
        and {"import", *texts} <= kept.keys()
        and not kept.keys()
        & {
            "",
            "\0",
            "##",
            "###",
            "a b",
            NASTY,
            "temperature",
            "max_new_tokens",
        }
    )
    assert not usable(parameter("temperature", "strings", [])), "under its name a float is expected"
    assert not usable(parameter("max_new_tokens", "int", None)) and usable(parameter("seed", "int", None))


def test_settings_that_do_not_fit_the_server_are_dropped() -> None:
    state = ready()
    state.preferences.sampling = {
        "temperature": "hot",
        "top_k": 2**31,
        "seed": 2**40,
        "stop": [1],
        "gone": 1,
        "logit_bias": [(1, 2.0)],
    }
    state.preferences.presets = {
        "a": {"temperature": 0.5, "top_p": None, "seed": None, "strategy": {}, "bad_words": ["x"], "truncate": 1}
    }
    meet(state, parameters())
    assert state.settings == {"seed": 2**40, "logit_bias": [(1, 2.0)]}
    apply(state, e.Preset("load", "a"))
    assert state.settings == {"temperature": 0.5, "seed": None, "bad_words": ["x"]}
    apply(state, e.ChooseColumn(0, {"preset": "a", "settings": {"temperature": "hot", "top_p": 0.5}}))
    apply(state, e.Do("compare"))
    (request,) = sent(apply(state, e.Replied("compare load", LOADED, 1)), m.Generate)
    assert (request.temperature, request.top_p) == (1.0, 0.5)


def test_how_much_is_written_is_the_servers_to_say() -> None:
    state = ready()
    meet(state, [msgspec.structs.replace(OWN["max_new_tokens"], default=2)])
    state.models.known = [msgspec.structs.replace(MODEL, context=4)]
    assert state.setting("max_new_tokens") == 2
    apply(state, e.Edit(0, 0, "abcd", "typed"))
    apply(state, e.Tick(9.0, 1e9))
    apply(state, e.Replied("count", m.Tokenized(id=1, text="abcd", ids=[1, 2, 3, 4], offsets=[0, 1, 2, 3, 4]), 1))
    assert state.page.sight == 2, "two of four places are left for the prompt"
    apply(state, e.Do("generate"))
    assert e.Cancel("page") in apply(state, e.Replied("page", m.Tokens(id=1, text="x" * 2049, ids=[1]), 1))
    apply(state, e.SetSetting("max_new_tokens", 3))
    apply(state, e.Do("generate"))
    assert apply(state, e.Replied("page", m.Tokens(id=1, text="x" * 2049, ids=[1]), 1)) == []
    meet(state, [])
    assert state.setting("max_new_tokens") == OWN["max_new_tokens"].default


def test_the_newest_generations_keep_their_probabilities() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    for i in range(53):
        written(state, f" {i}", "regenerate" if i else "generate")
    told = [bool(entry.result.logprobs) for entry in state.history.entries]
    assert told == [False] * 3 + [True] * 50
    takes = list(state.page.tree.nodes.values())
    assert [take.entry for take in takes] == list(range(1, 54)), "a take has no result of its own"
    apply(state, e.Restore(1))
    assert state.page.document.text == "Once x x"
    written(state, " x x", "regenerate")
    assert '"logprobs": []' in as_json(state.history.entries[0]) and compile(
        as_python(state.history.entries[0]), "export", "exec"
    )


def test_old_generations_lose_the_probabilities_of_all_their_texts() -> None:
    state = ready()
    few = m.Continuation(text="x", ids=[3], finish_reason="length", seed=1, ledger=RESULT.ledger, logprobs=TOLD)
    none = msgspec.structs.replace(few, logprobs=[])
    for others in ([few] * 3, [none], *[[few]] * 49):
        note(state, "Once", msgspec.structs.replace(RESULT, logprobs=TOLD if others[0].logprobs else [], others=others))
    assert [entry.told for entry in state.history.entries] == [0, 0, *[4] * 49]
    assert [len(entry.result.others) for entry in state.history.entries][:2] == [3, 1]
    many = msgspec.structs.replace(RESULT, logprobs=TOLD, others=[few] * (MAX_LOGPROBS // 2))
    note(state, "Once", many)
    note(state, "Once", RESULT)
    assert [entry.told for entry in state.history.entries] == [*[0] * 52, 2], "the newest alone keep them"


@pytest.mark.parametrize("at", ["compare load", "compare"])
def test_a_stopped_comparison_ends_before_another_begins(at: e.CompareTag) -> None:
    state = ready()
    apply(state, e.Do("compare"))
    if at == "compare":
        assert sent(apply(state, e.Replied("compare load", LOADED, 1)), m.Generate)
    apply(state, e.Do("stop compare"))
    apply(state, e.Do("stop compare"))
    assert state.compare.stopping and state.compare.running is None
    assert apply(state, e.Do("compare")) == [] and state.compare.running is None
    late: dict[str, m.AnyReply] = {
        "compare load": m.Progress(id=1, stage="build", done=1, total=2, unit="layers"),
        "compare": m.Tokens(id=1, text="late", ids=[1]),
    }
    apply(state, e.Replied(at, late[at], 1))
    assert apply(state, e.Do("compare")) == [] and state.compare.columns[0].text == ""
    apply(state, e.Replied(at, RESULT if at == "compare" else BY_CODE["cancelled"]("x"), 1))
    assert (
        sent(apply(state, e.Do("compare")), m.Load)
        and state.compare.running == 0
        and state.compare.columns[0].result is None
    )
    apply(state, e.Do("stop compare"))
    apply(state, e.NotConnected("gone"))
    assert not state.compare.stopping, "nothing comes any more"


def test_only_the_end_of_a_long_page_is_sent() -> None:
    state = ready()
    text = "\u4e2d" * 200_000
    apply(state, e.Edit(0, 0, text, "typed"))
    (request,) = sent(apply(state, e.Do("generate")), m.Generate)
    assert len(request.prompt.encode()) <= 100_000 and text.endswith(request.prompt)


def test_a_chosen_token_goes_on_from_its_tokens() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", m.Tokens(id=1, text=" x x", ids=[3, 3]), 1))
    apply(state, e.Replied("page", RESULT, 1))
    effects = apply(state, e.TakeToken(4, 1, 5))
    assert [r.text or r.ids for r in sent(effects, m.Tokenize)] == ["Once", [3, 5]]
    assert apply(state, e.Replied("branch ids", m.Tokenized(id=1, text="Once", ids=[7, 8], offsets=[0, 2, 4]), 1)) == []
    (request,) = sent(
        apply(state, e.Replied("branch text", m.Tokenized(id=1, text=" xy", ids=[3, 5], offsets=[0, 2, 3]), 1)),
        m.Generate,
    )
    assert request.prompt is None and request.prompt_ids == [7, 8, 3, 5]
    assert state.page.document.text == "Once xy"


def test_a_broken_connection_is_said_at_once() -> None:
    state = ready()
    apply(state, e.Broken())
    assert state.link.status == "lost" and sent(apply(state, e.Tick(1.1, 1e9)), m.Hello)


def concrete(kind: type[Gpt2dError]) -> list[type[Gpt2dError]]:
    """The errors below one of the tree."""
    return [leaf for below in kind.__subclasses__() for leaf in (concrete(below) or [below])]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("deadline", "late"),
        ("busy", "busy"),
        ("draining", "stopping"),
        ("internal", "failed"),
        ("bad_request", "failed"),
        ("unauthorised", "refused"),
        ("version_mismatch", "version"),
        ("KeyRefused", "refused"),
        ("NoServer", "absent"),
        ("NotGpt2d", "other"),
        ("ServerStuck", "stuck"),
        ("ConnectionLost", "lost"),
        ("ServerRestarted", "lost"),
        ("Closed", "lost"),
    ],
)
def test_each_error_is_called_by_its_name(error: str, status: str) -> None:
    """A server that is slow or busy has refused nothing, and what it is doing goes on."""
    known = BY_CODE | {kind.__name__: kind for kind in ConnectionFailed.__subclasses__()}
    state = ready()
    apply(state, e.LoadModel())
    apply(state, e.Replied("look", known[error]("why"), 1))
    assert state.link.status == status and state.link.trouble == "why" and connection.WORDS[state.link.status]
    assert (state.models.loading is not None) == (status in GOES_ON)
    apply(state, e.Do("generate"))
    assert state.page.wanted if status in GOES_ON else state.said("link") == "why"


def test_a_look_whose_time_ran_out_says_so() -> None:
    state = ready()
    apply(state, e.Replied("look", DeadlineExceeded("no answer within 4000 ms"), 1))
    assert connection.WORDS[state.link.status] == "No answer in time" and "no answer" in state.link.trouble
    apply(state, e.Tick(10.0, 1e9))
    apply(state, e.Replied("look", INFO, 1))
    assert state.link.status == "ready" and state.said("link") == "connected again"


def test_every_error_and_every_status_has_a_word() -> None:
    found = {next(STATUS[k] for k in kind.__mro__ if k in STATUS) for kind in concrete(Gpt2dError)}
    assert found <= connection.WORDS.keys() and connection.WORDS.keys() == set(get_args(Status))


@pytest.mark.parametrize("tag", ANSWERS)
def test_an_answer_of_another_kind_ends_its_request(tag: Any) -> None:
    """It neither vanishes, which would leave its request open for ever, nor is it shown as it is."""
    state = ready()
    for message in (e.Do("generate"), e.LoadModel(), e.Do("measure"), e.Do("calibrate"), e.Do("compare")):
        apply(state, message)
    apply(state, e.Tick(5.0, 1e9))
    state.compare.awaited = "compare" if tag == "compare" else "compare load"
    wrong = m.CancelSent(id=1, found=True)
    effects = apply(state, e.Replied(tag, wrong, 1))
    assert effects[0] == e.Cancel(tag)
    shown = {
        "look": state.link.trouble,
        "load": state.said("load"),
        "measure": state.said("measure"),
        "calibrate": state.said("calibrate"),
        "page": state.said("page"),
        "compare": state.compare.columns[0].error,
        "compare load": state.compare.columns[0].error,
        "models": state.said("models"),
        "unload": state.said("model"),
    }.get(tag, "with CancelSent instead of")
    assert "with CancelSent instead of" in shown
    assert not (tag == "page" and state.page.generating) and not (tag == "load" and state.models.loading)
    assert tag != "look" or (state.link.status == "other" and state.link.next_look > state.now)


def test_a_calibration_is_begun_told_and_stopped() -> None:
    state = ready()
    (request,) = sent(apply(state, e.Do("calibrate")), m.Calibrate)
    assert request.model == "demo" and request.stream and state.models.calibrating
    assert apply(state, e.Do("calibrate")) == [], "it is under way"
    apply(state, e.Replied("calibrate", m.Progress(id=1, stage="calibrate", done=3, total=7, unit="layers"), 1))
    assert (state.models.calibrating.done, state.models.calibrating.stage) == (3, "calibrate")
    assert apply(state, e.Do("stop calibrating")) == [e.Cancel("calibrate")]
    made = m.Calibrated(id=1, model="demo", engine="native", precision="int4", digest="d", disk_bytes=5, elapsed_ms=9)
    apply(state, e.Replied("calibrate", made, 1))
    assert state.models.calibrating is None
    assert state.said("model") == "demo/native/int4 is calibrated; the next load takes it"
    apply(state, e.Do("calibrate"))
    apply(state, e.Replied("calibrate", Busy("one is under way"), 1))
    assert state.said("calibrate") == "one is under way" and state.models.calibrating is None


def test_models_that_cannot_be_listed_are_not_passed_over() -> None:
    state = ready()
    apply(state, e.Replied("models", Busy("full up"), 1))
    assert state.said("models") == "the models could not be listed: full up" and state.models.known == [MODEL]


def test_a_message_without_a_handler_is_an_error() -> None:
    """mypy finds it first; whoever asks for a field or a word that does not exist is not passed over either."""
    state = ready()
    wrong: list[Any] = [
        object(),
        e.Do("sing"),  # type: ignore[arg-type]  # the point, here and below
        e.Enter("models", "replica", 3),
        e.Prefer("colour", 1),
        e.ChooseColumn(0, {"modell": "demo"}),
        e.Preset("sell", "a"),  # type: ignore[arg-type]
        e.ExportEntry(1, "xml"),  # type: ignore[arg-type]
    ]
    written(state, " x x")
    for message in wrong:
        with pytest.raises((AssertionError, AttributeError)):
            apply(state, message)


def test_a_restarted_server_is_noticed_and_asked_again() -> None:
    state = ready()
    apply(state, e.Do("generate"))
    apply(state, e.Replied("look", ServerRestarted("gone"), 1))
    link = state.link
    assert link.status == "lost" and state.page.generating is None and state.said("link") == "gone"
    assert sent(apply(state, e.Tick(1.1, 1e9)), m.Hello)
    effects = apply(
        state,
        e.Replied(
            "look", m.ServerInfo(**{**{f: getattr(INFO, f) for f in INFO.__struct_fields__}, "server_id": "b"}), 1
        ),
    )
    assert (
        state.link.info
        and state.link.info.server_id == "b"
        and "restarted" in state.said("link")
        and sent(effects, m.Models)
    )


def test_a_connect_line_is_not_kept_among_the_preferences() -> None:
    state = AppState()
    apply(state, e.Enter("link", "server", "tcp://h:1#secret.keys"))
    effects = apply(state, e.Connect())
    assert state.preferences.server == "tcp://h:1"
    apply(state, e.Replied("look", INFO, 1))
    assert e.OpenLink("tcp://h:1#secret.keys", "", "") in effects
    assert "secret." not in str(state)
    apply(state, e.Kept(["h-1"], "h-1", "tcp://h:1"))
    assert (state.link.server, state.preferences.server, state.preferences.recent) == ("h-1", "h-1", ["h-1"])
    assert apply(state, e.Connect()) == [e.OpenLink("h-1", "", "")], "its name is enough from now on"
    apply(state, e.Kept([], trouble="the disk is full"))
    assert state.said("key") == "the disk is full"


@given(st.text("ab\u2022", max_size=9), st.text("xy", max_size=3))
def test_a_secret_in_a_field_is_hidden_and_can_be_edited(keys: str, typed: str) -> None:
    address, found = secret.read(f"tcp://h:1#{keys}", "")
    assert address == "tcp://h:1" and "\u2022" not in found
    text = secret.shown(address, found)
    assert not found or not set(found) & set(text.partition("#")[2])
    assert secret.read(text, found) == (address, found)
    assert secret.read(text + typed, found) == (address, found + typed) or not found
    assert not found or secret.read(text[:-1], found) == (address, found[:-1])


def replica(number: int, state: Any, *, precision: str = "int8") -> m.WorkerHealth:
    return m.WorkerHealth(
        model="demo",
        engine="onnx",
        precision=precision,
        state=state,
        moved_ms_ago=1,
        running=1,
        waiting=0,
        replica=number,
        node="beta",
    )


def asked(state: AppState) -> list[int | None]:
    """What a load asks for now."""
    requests = sent(apply(state, e.LoadModel()), m.Load)
    state.models.loading = None
    return [request.replicas for request in requests]


def enter(state: AppState, number: int) -> None:
    apply(state, e.Enter("models", "replicas", number))


def test_a_load_asks_for_replicas_where_that_changes_their_number() -> None:
    state = ready()
    state.link.workers = []
    assert not state.loaded and state.replicas == 1 and asked(state) == [None]
    enter(state, 3)
    assert asked(state) == [3]
    enter(state, 1)
    assert asked(state) == [None], "as if nothing had been entered"
    state.link.workers = [
        replica(0, "loading"),
        replica(2, "stopping"),
        replica(1, "ready"),
        replica(0, "ready", precision="fp32"),
    ]
    assert state.loaded and state.replicas == 2 and asked(state) == [1]
    enter(state, 2)
    assert asked(state) == [None]
    enter(state, 4)
    assert asked(state) == [4]
    apply(state, e.Replied("load", NoServer("no memory"), 1))
    assert state.models.replicas == 4 and state.said("load"), "what was entered stays, to be tried again"
    loaded = {
        "model": "demo",
        "engine": "onnx",
        "precision": "int8",
        "digest": "d",
        "context": 1,
        "rows": 1,
        "threads": 1,
        "load_ms": 1,
    }
    apply(state, e.Replied("load", m.Loaded(id=1, **loaded, rss_bytes=42_000_000, already=True, replicas=4), 1))
    assert state.models.replicas is None and state.said("model") == "demo/onnx/int8 is loaded, 4 replicas of 42 MB"
    enter(state, 4)
    apply(state, e.Choose("demo", "onnx", "int8"))
    assert state.models.replicas is None, "a number is of one model"


def test_what_is_loaded_is_compiled_no_more() -> None:
    state = ready()
    assert state.link.info
    state.link.info.engines.append(m.Engine(name="onnx", precisions=["int8"], compiles=["int8"]))
    state.models.compile = True
    assert [r.compile for r in sent(apply(state, e.LoadModel()), m.Load)] == [False]
    state.models.loading, state.link.workers = None, []
    assert [r.compile for r in sent(apply(state, e.LoadModel()), m.Load)] == [True]


def test_a_cache_is_chosen_for_what_is_not_loaded() -> None:
    state = ready()
    (info,) = [info for info in state.models.known if info.name == state.models.model]
    way = next(p for p in info.precisions if (p.engine, p.precision) == state.models.way[1:])
    way.caches.update({"int8": 5, "fp16": 7})
    assert state.caches == {"int8": 5, "fp16": 7}
    apply(state, e.Enter("models", "cache", "fp16"))
    assert [r.cache for r in sent(apply(state, e.LoadModel()), m.Load)] == [None], "what is loaded stays as it is"
    state.models.loading, state.link.workers = None, []
    assert [r.cache for r in sent(apply(state, e.LoadModel()), m.Load)] == ["fp16"]
    apply(state, e.Choose(*state.models.way))
    assert state.models.cache == "", "it is chosen for one model"


def test_a_model_is_written_with_while_one_of_its_replicas_is_there() -> None:
    state = ready()
    for workers in ([replica(0, "loading"), replica(1, "ready")], [replica(1, "ready"), replica(0, "stopping")]):
        state.link.workers = workers
        apply(state, e.Edit(0, 0, "Once", "typed"))
        (request,) = sent(apply(state, e.Do("generate")), m.Generate)
        assert (request.model, request.engine, request.precision) == ("demo", "onnx", "int8")
        apply(state, e.Replied("page", RESULT, 1))


def test_replicas_are_told_where_that_says_something() -> None:
    group = [replica(1, "ready"), replica(0, "ready")]
    assert [w.replica for w in replicas.by_way(group)["demo", "onnx", "int8"]] == [0, 1]
    assert replicas.summary([], "alpha") == replicas.summary(group[:1], "beta") == ""
    assert replicas.summary(group[:1], "alpha") == "on beta"
    assert replicas.summary(group, "beta") == "in 2 replicas"
    assert replicas.summary(group, "alpha") == "in 2 replicas: 2 on beta"
    assert replicas.place(group[0], group, "beta") == "on beta" and replicas.place(WORKER, group, "beta") == ""


def test_exports_hold_what_a_server_says() -> None:
    state = ready()
    nasty = m.Generated(
        **{
            **{f: getattr(RESULT, f) for f in RESULT.__struct_fields__},
            "model": '"""\nimport os\n"""',
            "digest": '"""x',
        }
    )
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", nasty, 1))
    (entry,) = state.history.entries
    code = compile(as_python(entry), "export", "exec")
    assert "os" not in code.co_names and '"prompt"' in as_json(entry)


@given(st.text(max_size=200), st.text(max_size=200))
def test_differences_lose_nothing(text: str, other: str) -> None:
    assert "".join(part for part, _ in differences(text, other)) == text
    assert not any(differs for _, differs in differences(text, text))
    assert sum(differs for _, differs in differences(text, other)) <= 1


errors = st.sampled_from(
    [
        ConnectionLost("x"),
        KeyRefused("x"),
        NoServer("x"),
        ServerStuck("x"),
        ServerRestarted("x"),
        *(kind("x") for kind in BY_CODE.values()),
    ]
)
replies: st.SearchStrategy[Any] = st.one_of(
    errors,
    st.just(INFO),
    st.just(PONG),
    st.just(RESULT),
    st.just(m.ModelList(id=1, models=[MODEL])),
    st.just(m.ModelList(id=1, models=[])),
    st.builds(m.Tokens, id=st.just(1), text=st.text(max_size=5), ids=st.just([1]), index=st.integers(-1, 4)),
    st.builds(
        m.Progress,
        id=st.just(1),
        stage=st.text(max_size=5),
        done=st.integers(-5, 5),
        total=st.integers(-5, 5),
        unit=st.just("bytes"),
    ),
    st.just(m.Tokenized(id=1, text="ab", ids=[1], offsets=[0, 2])),
    st.just(m.Tokenized(id=1, text="", ids=[], offsets=[])),
    st.just(LOADED),
    st.just(msgspec.structs.replace(INFO, parameters=NONSENSE)),
    st.just(m.Measured(id=1, model="demo", engine="onnx", precision="int8", fidelity=FIDELITY)),
    st.just(m.Unloaded(id=1, names=["a"])),
    st.just(m.Stats(id=1, uptime_ms=1, rss_bytes=1, peers=1, open_requests=1, requests={}, errors={}, workers=[])),
)
TAGS = list(ANSWERS)


def words(hint: Any) -> list[str]:
    """The words of a Literal, or of a union of some."""
    return [word for part in get_args(hint) for word in (words(part) or [part])]


WORDS = words(get_type_hints(e.Do)["what"])
messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(e.Replied, st.sampled_from(TAGS), replies, st.floats(0, 9)),
    st.builds(e.Do, st.sampled_from(WORDS)),
    st.just(e.Connect()),
    st.just(e.Disconnect()),
    st.builds(e.Tick, st.floats(0, 1000), st.just(1e9)),
    st.builds(lambda t: e.ReplaceAll(((1, 2, t), (0, 1, t))), st.text("ab\u4e2d", max_size=3)),
    st.builds(
        e.Edit,
        st.integers(-1, 12),
        st.integers(-1, 12),
        st.text("ab\u4e2d", max_size=3),
        st.sampled_from(["typed", "deleted"]),
    ),
    st.builds(e.Select, st.integers(-1, 12), st.integers(-1, 12)),
    st.builds(e.TakeToken, st.integers(0, 5), st.integers(-2, 3), st.just(5)),
    st.builds(e.Restore, st.integers(0, 3)),
    st.builds(e.GoTo, st.integers(0, 9)),
    st.builds(e.Take, st.integers(0, 9)),
    st.builds(e.KeepNode, st.integers(0, 9)),
    st.builds(e.PruneNode, st.integers(0, 9)),
    st.just(e.LoadModel()),
    st.just(e.CancelLoad()),
    st.builds(e.Opened, st.just(Path("x")), st.builds(TextFile, st.builds(str.encode, st.text(max_size=5)))),
    st.builds(e.Saved, st.just(Path("x")), st.just(TextFile(b"a"))),
    st.just(e.DiskFailed("full")),
    st.builds(e.NotKept, st.just("the settings"), st.sampled_from(["full", ""])),
    st.builds(
        e.Choose, st.sampled_from(["demo", "gone"]), st.sampled_from(["onnx", "x"]), st.sampled_from(["int8", "y"])
    ),
    st.just(e.NotConnected("no")),
    st.builds(e.ExportEntry, st.integers(0, 3), st.sampled_from(["json", "python"])),
    st.builds(e.ChooseColumn, st.integers(0, 5), st.just({"model": "demo"})),
    st.builds(e.Enter, st.just("models"), st.just("replicas"), st.integers(1, 64)),
    st.builds(e.ChooseFile, st.just("."), st.sampled_from(["", "a"]), st.booleans()),
    st.just(e.SetSetting("temperature", 0.5)),
    st.just(e.SetSetting("max_new_tokens", 3)),
    st.builds(e.Preset, st.sampled_from(["save", "load"]), st.just("a")),
    st.just(e.SetSetting("temperature", None)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, max_size=40))
def test_any_order_of_events_leaves_a_valid_state(order: list[Any]) -> None:
    state = ready()
    for message in order:
        effects = apply(state, message)
        assert all(isinstance(effect, e.Effect) for effect in effects)
        document, going = state.page.document, state.page.generating
        assert 0 <= min(document.selection) <= max(document.selection) <= len(document.text)
        assert all(0 <= mark.start < mark.end <= len(document.text) for mark in document.marks)
        assert going is None or 0 <= going.start <= going.end <= len(document.text)
        assert going is None or state.link.status in GOES_ON
        assert all(node in state.page.tree.nodes for place in state.page.tree.places.values() for node in place.nodes)
        assert state.compare.running is None or 0 <= state.compare.running < len(state.compare.columns)
        assert 2 <= len(state.compare.columns) <= 4
        assert not state.compare.stopping or state.link.status in GOES_ON
        assert type(state.setting("max_new_tokens")) is int
        assert state.models.loading is None or state.link.status in GOES_ON
        assert state.models.measuring is None or state.link.status in GOES_ON


def test_a_folder_of_nobody_is_left_to_the_disk() -> None:
    """The home folder is looked up where files are: an error there is shown, one here would end the window."""
    state = ready()
    apply(state, e.Do("save as"))
    effects = apply(state, e.ChooseFile("~nobody-has-this-name", "a.txt", done=True))
    assert effects == [e.SaveFile(Path("~nobody-has-this-name", "a.txt"), TextFile())]
