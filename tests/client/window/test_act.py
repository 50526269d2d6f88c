"""Writing is one act: the chosen model is loaded by it, nothing else answers, and what is said ends when it is over."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from client.window import events as e
from client.window.state import AppState
from client.window.update.apply import apply
from client.window.update.generation import BEAT_S
from client.window.views.connection import condition
from client.window.writing import MAX_LATE, STOP_S
from protocol import messages as m
from protocol.errors import Cancelled, ConnectionLost, LoadFailed, NoServer, NotLoaded, ServerStuck, Unauthorised
from tests.client.window.test_update import INFO, LOADED, MODEL, PONG, RESULT, WORKER, ready, sent

WAY = ("demo", "onnx", "int8")
NEEDED = replace(MODEL, name="gpt2-xl", on_disk=False, file_bytes=6_400_000_000)
FOUR_BITS = m.Precision(engine="onnx", precision="int4", memory_bytes=1, loaded=False)


def unloaded(*models: m.ModelInfo, role: Any = "admin") -> AppState:
    """A server that holds nothing, and a page with a beginning."""
    state = AppState()
    apply(state, e.Tick(1.0, 1e9))
    apply(state, e.Connect())
    apply(state, e.Replied("look", replace(INFO, role=role), 1))
    apply(state, e.Replied("models", m.ModelList(id=1, models=list(models) or [MODEL]), 1))
    apply(state, e.Replied("look", replace(PONG, workers=[]), 1))
    apply(state, e.Edit(0, 0, "Once", "typed"))
    return state


def way(request: m.Generate | m.Load) -> tuple[str | None, ...]:
    return request.model, request.engine, request.precision


def test_generate_loads_what_is_chosen_and_begins_by_itself() -> None:
    state = unloaded()
    effects = apply(state, e.Do("generate"))
    assert [way(r) for r in sent(effects, m.Load)] == [WAY] and not sent(effects, m.Generate)
    assert state.page.busy and state.models.loading
    apply(state, e.Replied("load", m.Progress(id=1, stage="build", done=2, total=12, unit="layers"), 1))
    assert state.models.loading.done == 2
    assert apply(state, e.Do("generate")) == [], "once is enough"
    (request,) = sent(apply(state, e.Replied("load", LOADED, 1)), m.Generate)
    assert way(request) == WAY and request.prompt == "Once" and state.page.generating and not state.page.wanted


def test_a_start_that_is_too_early_waits_for_the_server() -> None:
    state = AppState()
    for message in (e.Tick(1.0, 1e9), e.Connect(), e.Edit(0, 0, "Once", "typed")):
        apply(state, message)
    assert apply(state, e.Do("generate")) == [] and state.page.busy
    apply(state, e.Replied("look", INFO, 1))
    effects = apply(state, e.Replied("models", m.ModelList(id=1, models=[MODEL]), 1))
    assert [way(r) for r in sent(effects, m.Load)] == [WAY]
    nobody = AppState()
    for then in (e.Tick(1.0, 1e9), e.Connect(), e.Do("generate"), e.Replied("look", NoServer("nobody"), 1)):
        apply(nobody, then)
    assert not nobody.page.busy and nobody.said("link") == "nobody"
    assert apply(nobody, e.Do("generate")) == [] and nobody.notices[0].action == e.Connect()
    apply(nobody, e.Replied("look", INFO, 1))
    assert nobody.notices == [], "there is one now"


@pytest.mark.parametrize("while_loading", [True, False])
def test_stop_ends_the_wait_too(while_loading: bool) -> None:
    state = unloaded()
    apply(state, e.Do("generate"))
    assert apply(state, e.Do("stop")) == [e.Cancel("load")] and not state.page.busy
    effects = apply(state, e.Replied("load", Cancelled("cancelled") if while_loading else LOADED, 1))
    assert not sent(effects, m.Generate) and not any(n.kind == "failed" for n in state.notices)


def test_what_waits_for_its_model_is_not_written_into_another_page() -> None:
    state = unloaded()
    assert sent(apply(state, e.Do("generate")), m.Load)
    assert apply(state, e.Do("new")) == [] and state.page.busy, "the page is still there, and asks"
    assert e.Cancel("load") in apply(state, e.Do("confirmed")) and not state.page.busy
    assert not sent(apply(state, e.Replied("load", LOADED, 1)), m.Generate)


def test_another_precision_chosen_meanwhile_is_the_one_that_writes() -> None:
    state = unloaded(replace(MODEL, precisions=[*MODEL.precisions, FOUR_BITS]))
    apply(state, e.Do("generate"))
    apply(state, e.Choose("demo", "onnx", "int4"))
    effects = apply(state, e.Replied("load", LOADED, 1))
    assert [way(r) for r in sent(effects, m.Load)] == [("demo", "onnx", "int4")]
    assert state.models.way == ("demo", "onnx", "int4"), "a load's end chooses nothing"


def test_a_loaded_precision_never_stands_in_for_the_chosen_one() -> None:
    state = ready()
    apply(state, e.Replied("models", m.ModelList(id=1, models=[replace(MODEL, precisions=[FOUR_BITS])]), 1))
    assert state.models.way == ("demo", "onnx", "int4")
    effects = apply(state, e.Do("generate"))
    assert [way(r) for r in sent(effects, m.Load)] == [("demo", "onnx", "int4")]
    apply(state, e.Tick(9.0, 1e9))
    assert not sent(apply(state, e.Tick(10.0, 1e9)), m.Tokenize), "another model's tokens are not counted either"


def test_a_download_is_asked_for() -> None:
    state = unloaded(NEEDED)
    assert apply(state, e.Do("generate")) == [] and state.asking and not state.page.busy
    assert state.asking.downloads == [NEEDED]
    assert apply(state, e.Do("decline")) == [] and state.asking is None and not state.page.busy
    apply(state, e.LoadModel())
    assert state.asking
    apply(state, e.Do("stop"))
    assert state.asking is None
    apply(state, e.Do("generate"))
    effects = apply(state, e.Do("agree"))
    assert [r.model for r in sent(effects, m.Load)] == ["gpt2-xl"] and state.page.busy
    apply(state, e.Replied("load", LoadFailed("no internet"), 1))
    assert not state.page.busy and state.said("load") == "no internet"
    assert state.notices[-1].label == "Load gpt2-xl/onnx/int8 again"
    assert sent(apply(state, state.notices[-1].action), m.Load), "whoever agreed is not asked again"
    assert state.said("load") == ""


def test_what_another_client_has_unloaded_is_loaded_again_once() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    effects = apply(state, e.Replied("page", NotLoaded("demo is not loaded"), 1))
    assert sent(effects, m.Load) and state.notices == []
    assert sent(apply(state, e.Replied("load", LOADED, 1)), m.Generate)
    assert not sent(apply(state, e.Replied("page", NotLoaded("demo is not loaded"), 1)), m.Load)
    assert state.said("page") == "demo is not loaded" and not state.page.busy


def test_a_key_that_may_not_load_says_what_can_be_used() -> None:
    state = unloaded(replace(MODEL, precisions=[*MODEL.precisions, FOUR_BITS]), role="generate")
    four = replace(WORKER, precision="int4")
    apply(state, e.Tick(9.0, 1e9))
    apply(state, e.Replied("look", replace(PONG, workers=[four]), 1))
    assert sent(apply(state, e.Do("generate")), m.Generate) and state.models.way == WAY
    assert not sent(apply(state, e.Replied("page", NotLoaded("demo/onnx/int8 is not loaded"), 1)), m.Load)
    assert state.said("page") == "demo/onnx/int8 is not loaded, and this key may not load it"
    assert state.notices[-1].label == "Use demo/onnx/int4"
    apply(state, state.notices[-1].action)
    assert state.models.way == ("demo", "onnx", "int4") and state.notices == []


def test_stop_works_where_the_worker_stands_still() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", m.Tokens(id=1, text=" upon", ids=[1]), 1))
    assert apply(state, e.Do("stop")) == [e.Cancel("page")]
    assert state.due == 1.0 + STOP_S
    apply(state, e.Tick(1.0 + STOP_S / 2, 1e9))
    assert state.page.busy, "the last words are waited for"
    apply(state, e.Tick(1.0 + STOP_S, 1e9))
    assert not state.page.busy and state.page.document.text == "Once upon" and state.notices == []
    apply(state, e.Replied("page", RESULT, 1))
    assert state.page.document.text == "Once upon"


def test_a_model_that_is_unloaded_while_it_writes() -> None:
    """What was written stays, and nothing loads the model again; where that is refused, the page goes on."""
    for refused in (False, True):
        state = ready()
        apply(state, e.Edit(0, 0, "Once", "typed"))
        apply(state, e.Do("generate"))
        apply(state, e.Replied("page", m.Tokens(id=1, ids=[5], text=" upon"), 1, state.page.asked))
        apply(state, e.UnloadModel(*WAY))
        if refused:
            apply(state, e.Replied("unload", Unauthorised("this key may generate, but not unload"), 1))
            apply(state, e.Tick(state.now + 2 * STOP_S, 1e9))
            apply(state, e.Replied("page", m.Tokens(id=1, ids=[6], text=" a time"), 1, state.page.asked))
            assert state.page.document.text == "Once upon a time" and state.page.busy
            assert "may generate, but not unload" in state.said("model")
            apply(state, e.Replied("page", NotLoaded("demo was unloaded"), 1, state.page.asked))
            assert state.said("page") == "demo was unloaded", "by somebody else"
        else:
            effects = apply(state, e.Replied("page", NotLoaded("demo was unloaded"), 1, state.page.asked))
            assert not state.page.busy and not state.said("page") and not sent(effects, m.Load)
            assert state.page.document.text == "Once upon"


@pytest.mark.parametrize("error", [Cancelled("cancelled"), ConnectionLost("gone"), NotLoaded("it was unloaded")])
def test_what_the_user_did_is_no_fault(error: Exception) -> None:
    state = ready()
    apply(state, e.Do("generate"))
    apply(state, e.UnloadModel(*WAY) if isinstance(error, NotLoaded) else e.Do("stop"))
    effects = apply(state, e.Replied("page", error, 1))  # type: ignore[arg-type]  # any error
    assert state.notices == [] and not state.page.busy and not sent(effects, m.Load)
    apply(state, e.Do("generate"))
    apply(state, e.Disconnect())
    assert state.notices == [] and not state.page.busy


@pytest.mark.parametrize("then", ["nothing", "the next", "another page"])
def test_a_stop_that_takes_the_server_long_has_its_entry_in_the_history(then: str) -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    (first,) = (effect for effect in apply(state, e.Do("generate")) if isinstance(effect, e.Send))
    apply(state, e.Replied("page", m.Tokens(id=1, text=" x", ids=[3]), 1, first.number))
    apply(state, e.Do("stop"))
    apply(state, e.Tick(1.0 + STOP_S, 1e9))
    assert state.page.generating is None and not state.history.entries
    (take,) = state.page.tree.nodes
    if then == "another page":
        apply(state, e.Do("new"))
        apply(state, e.Do("confirmed"))
    elif then == "the next":
        (second,) = (effect for effect in apply(state, e.Do("continue")) if isinstance(effect, e.Send))
        assert second.number != first.number
        apply(state, e.Replied("page", m.Tokens(id=1, text=" y", ids=[4]), 1, second.number))
        apply(state, e.Replied("page", m.Tokens(id=1, text="late", ids=[5]), 1, first.number))
    text = state.page.document.text
    apply(state, e.Replied("page", replace(RESULT, finish_reason="cancelled"), 400.0, first.number))
    (entry,) = state.history.entries
    assert (entry.prompt, entry.result.finish_reason) == ("Once", "cancelled")
    assert state.page.document.text == text == {"nothing": "Once x", "the next": "Once x y"}.get(then, "")
    assert (state.ledgers.last is None) == (then == "the next"), "figures are not those of an earlier one"
    if then == "another page":
        assert not state.page.tree.nodes
    else:
        assert state.page.tree.nodes[take].entry == entry.number
    assert (state.page.generating is not None) == (then == "the next")
    if then == "the next":
        apply(state, e.Replied("page", RESULT, 1, second.number))
        assert state.page.generating is None and len(state.history.entries) == 2


def test_a_page_that_is_left_while_it_is_written_leaves_its_entry_too() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    (sent_,) = (effect for effect in apply(state, e.Do("generate")) if isinstance(effect, e.Send))
    apply(state, e.Replied("page", m.Tokens(id=1, text=" x", ids=[3]), 1, sent_.number))
    apply(state, e.Do("new"))
    apply(state, e.Do("confirmed"))
    assert state.page.document.text == ""
    apply(state, e.Replied("page", RESULT, 1, sent_.number))
    assert [entry.prompt for entry in state.history.entries] == ["Once"] and not state.page.tree.nodes
    for _ in range(2 * MAX_LATE):
        apply(state, e.Do("generate"))
        apply(state, e.Do("stop"))
        apply(state, e.Tick(state.now + STOP_S, 1e9))
    assert len(state.page.late) == MAX_LATE
    apply(state, e.NotConnected("gone"))
    assert not state.page.late


def test_a_stopped_regeneration_says_how_the_earlier_text_comes_back() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    for text in (" upon a time", " the"):
        apply(state, e.Do("regenerate" if state.page.document.marks else "generate"))
        apply(state, e.Replied("page", m.Tokens(id=1, text=text, ids=[3]), 1))
        if text == " the":
            apply(state, e.Do("stop"))
        apply(state, e.Replied("page", RESULT, 1))
    assert state.page.document.text == "Once the", "what is written stays, as a take"
    (notice,) = (notice for notice in state.notices if notice.key == "page")
    apply(state, notice.action)
    assert state.page.document.text == "Once upon a time"
    apply(state, e.Do("later"))
    assert state.page.document.text == "Once the", "both are there"
    apply(state, e.Do("undo"))
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once the"
    apply(state, e.Do("undo"))
    assert state.page.document.text == "Once upon a time", "one step back"
    apply(state, e.Do("regenerate"))
    assert not state.said("page")
    apply(state, e.Do("stop"))
    apply(state, e.Replied("page", RESULT, 1))
    assert not state.said("page"), "nothing was written: the earlier text is there"


def test_the_page_alone_says_for_a_moment_how_it_is_left() -> None:
    state = ready()
    apply(state, e.Do("focus mode"))
    assert state.focus_mode and state.said("focus mode") == "page alone: F11 leaves it"
    assert state.now < state.due < state.now + 10
    apply(state, e.Tick(state.due, 1e9))
    assert state.focus_mode and not state.notices
    for leave in ("focus mode", "menus"):
        state.focus_mode = False
        apply(state, e.Do("focus mode"))
        assert state.focus_mode and state.said("focus mode")
        apply(state, e.Do(leave))
        assert not state.focus_mode and not state.said("focus mode"), leave


def test_statements_end_when_they_stop_being_true() -> None:
    state = ready()
    apply(state, e.Do("generate"))
    apply(state, e.Broken())
    assert [(n.key, n.kind) for n in state.notices] == [("link", "failed")]
    apply(state, e.Replied("look", INFO, 1))
    assert [(n.text, n.kind) for n in state.notices] == [("connected again", "info")]
    apply(state, e.Broken())
    assert [n.text for n in state.notices] == ["the connection broke; reconnecting"]
    apply(state, e.Replied("look", INFO, 1))
    apply(state, e.Tick(100.0, 1e9))
    assert state.notices == []
    apply(state, e.Replied("models", Unauthorised("not you"), 1))
    assert state.said("models")
    apply(state, e.Replied("models", m.ModelList(id=1, models=[MODEL]), 1))
    assert state.said("models") == ""


def test_the_last_figures_and_counts_end_where_the_next_text_begins() -> None:
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", RESULT, 1))
    assert state.ledgers.last
    assert sent(apply(state, e.Tick(state.now + BEAT_S, 1e9)), m.Ping), "no worker is said to be busy any longer"
    apply(state, e.Replied("count", m.Tokenized(id=1, text="Once", ids=[1], offsets=[0, 4]), 1))
    apply(state, e.Do("regenerate"))
    assert state.ledgers.last is None and state.page.counted == -1
    for now, ids in ((2.0, [1]), (2.5, [1, 2]), (3.0, [1, 2])):
        apply(state, e.Tick(now, 1e9))
        apply(state, e.Replied("page", m.Tokens(id=1, text=" x", ids=ids), 1))
    going = state.page.generating
    assert going and (going.tokens, going.asked, going.rate) == (5, state.setting("max_new_tokens"), 4.0)


def test_spaces_at_the_end_of_a_prompt_stay_on_the_page_and_are_not_sent() -> None:
    state = ready()
    apply(state, e.Replied("look", replace(PONG, workers=[replace(WORKER, byte_level=True)]), 1))
    apply(state, e.Edit(0, 0, "What is the  ", "typed"))
    assert state.unsent_spaces == 2
    (request,) = sent(apply(state, e.Do("generate")), m.Generate)
    assert request.prompt == "What is the"
    texts = (" ", "  me", "  aning")
    for text in texts:
        apply(state, e.Replied("page", m.Tokens(id=1, text=text, ids=[1]), 1))
    assert state.page.document.text == "What is the   me  aning", "two of three leading ones are there already"
    told = [m.TokenLogprobs(text=text, logprob=-1.0, top=[]) for text in texts]
    apply(state, e.Replied("page", replace(RESULT, ids=[1, 2, 3], logprobs=told), 1))
    assert state.history.entries[0].prompt == "What is the"
    asked = sent(apply(state, e.TakeToken(13, 2, 5)), m.Tokenize)
    assert [r.text or r.ids for r in asked] == ["What is the", [1, 2, 5]]


@pytest.mark.parametrize(
    "why", ["the tokenizer has spaces of their own", "the setting is off", "there is nothing else"]
)
def test_spaces_are_sent_where_that_is_right(why: str) -> None:
    state = ready()
    apply(state, e.Replied("look", replace(PONG, workers=[replace(WORKER, byte_level="own" not in why)]), 1))
    if "setting" in why:
        apply(state, e.Prefer("spare_spaces", False))
    text = "  " if "nothing" in why else "What is the "
    apply(state, e.Edit(0, len(state.page.document.text), text, "typed"))
    assert state.unsent_spaces == 0
    assert [r.prompt for r in sent(apply(state, e.Do("generate")), m.Generate)] == [text]


def test_what_was_chosen_is_chosen_again_after_a_restart() -> None:
    models = [MODEL, replace(MODEL, name="mine", precisions=[*MODEL.precisions, FOUR_BITS])]
    state = unloaded(*models)
    assert state.models.way == WAY
    apply(state, e.Choose("mine", "onnx", "int4"))
    for role, way in (("admin", ("mine", "onnx", "int4")), ("generate", WAY)):
        again = AppState(preferences=state.preferences)
        info = replace(INFO, role=role)
        for message in (
            e.Connect(),
            e.Replied("look", info, 1),
            e.Replied("models", m.ModelList(id=1, models=models), 1),
        ):
            apply(again, message)
        assert again.models.way == way, role


def test_a_count_is_of_the_text_that_is_there() -> None:
    state = ready()
    for text, now in (("Once", 2.0), ("Once upon", 3.0)):
        apply(state, e.Edit(0, len(state.page.document.text), text, "typed"))
        apply(state, e.Tick(now, 1e9))
        if text == "Once":
            assert [r.text for r in sent(apply(state, e.Tick(now + 1, 1e9)), m.Tokenize)] == []
    assert state.page.counting
    apply(state, e.Edit(0, len(state.page.document.text), "Twice", "typed"))
    apply(state, e.Replied("count", m.Tokenized(id=1, text="Once upon", ids=[1, 2], offsets=[0, 4, 9]), 1))
    assert (state.page.counted, state.page.tokens, state.page.exact) == (-1, 0, False)
    assert [r.text for r in sent(apply(state, e.Tick(9.0, 1e9)), m.Tokenize)] == ["Twice"]
    apply(state, e.Replied("count", m.Tokenized(id=1, text="Twice", ids=[1], offsets=[0, 5]), 1))
    assert (state.page.tokens, state.page.exact) == (1, True)


def test_models_that_could_not_be_listed_are_asked_for_again() -> None:
    state = AppState()
    for message in (e.Connect(), e.Replied("look", INFO, 1), e.Replied("models", Unauthorised("not now"), 1)):
        apply(state, message)
    assert sent(apply(state, e.Do("generate")), m.Models)
    apply(state, e.Replied("models", Unauthorised("not now"), 1))
    assert not state.page.busy and state.said("models") == "the models could not be listed: not now"
    apply(state, e.Do("generate"))
    assert sent(apply(state, e.Replied("models", m.ModelList(id=1, models=[MODEL]), 1)), m.Load)


def test_a_key_that_may_not_load_is_not_sent_to_the_server_for_it() -> None:
    state = unloaded(role="generate")
    assert apply(state, e.LoadModel()) == [] and state.said("load") == "this key may not load models"


def test_a_key_that_may_not_load_waits_for_whoever_does() -> None:
    state = unloaded(role="generate")
    for holder, begins in ((replace(WORKER, state="loading"), False), (WORKER, True)):
        apply(state, e.Tick(state.now + 9, 1e9))
        effects = apply(state, e.Replied("look", replace(PONG, workers=[holder]), 1))
        if not begins:
            effects = apply(state, e.Do("generate"))
        assert bool(sent(effects, m.Generate)) == begins and state.page.busy and not sent(effects, m.Load)


def test_what_is_said_of_the_connection_ends_with_it() -> None:
    """A generation that a stuck server ended is no fault of the page: what is said of it is over once it answers."""
    state = ready()
    apply(state, e.Edit(0, 0, "Once", "typed"))
    apply(state, e.Do("generate"))
    apply(state, e.Replied("page", ServerStuck("it does not answer"), 1))
    apply(state, e.Replied("look", ServerStuck("it does not answer"), 1))
    assert [notice.text for notice in state.notices] == ["it does not answer"]
    apply(state, e.Replied("look", NoServer("nobody listens"), 1))
    assert [notice.text for notice in state.notices] == ["nobody listens"], "what is said is what is so"
    apply(state, e.Replied("look", INFO, 1))
    assert [notice.text for notice in state.notices] == ["connected again"]


def test_what_is_chosen_is_called_ready_only_where_it_is_loaded() -> None:
    state = unloaded()
    assert condition(state) == ("not loaded", "dim")
    apply(state, e.Do("generate"))
    apply(state, e.Replied("load", m.Progress(id=1, stage="build", done=3, total=12, unit="layers"), 1))
    assert condition(state) == ("loading 25%", "warn")
    for holder, word in ((replace(WORKER, state="loading"), "loading"), (WORKER, "ready")):
        state = unloaded(replace(MODEL, precisions=[*MODEL.precisions, FOUR_BITS]))
        apply(state, e.Tick(9.0, 1e9))
        apply(state, e.Replied("look", replace(PONG, workers=[holder]), 1))
        assert condition(state)[0] == word
    apply(state, e.Choose("demo", "onnx", "int4"))
    assert condition(state) == ("not loaded", "dim")
    apply(state, e.Broken())
    assert condition(state) == ("Connection lost", "bad")
