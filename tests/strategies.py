"""Messages for Hypothesis: every type of the wire, with values over the range of each field."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from protocol import messages as m
from protocol.errors import BY_CODE
from protocol.ledger import ledger
from protocol.parameters import parameters

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_./", min_size=1, max_size=40)
ids = st.integers(0, 2**63 - 1)
floats = st.floats(0, 1e9)
counts = st.integers(0, 2**40)
deadlines = st.none() | st.integers(1, 86_400_000)
ledgers = st.builds(
    ledger,
    queue_ms=floats,
    tokenise_ms=floats,
    prefill_ms=floats,
    decode_ms=floats,
    prompt_tokens=counts,
    new_tokens=counts,
)
head: dict[str, Any] = {"id": ids, "deadline_ms": deadlines}
which: dict[str, Any] = {"engine": st.none() | names, "precision": st.none() | names}
prompts = st.one_of(
    st.fixed_dictionaries({"prompt": texts}),
    st.fixed_dictionaries({"prompt_ids": st.lists(st.integers(0, 2**31 - 1), max_size=20)}),
)
generations = st.builds(
    lambda prompt, **fields: m.Generate(**prompt, **fields),
    **head,
    **which,
    prompt=prompts,
    n=st.integers(1, 16),
    deterministic=st.booleans(),
    model=st.none() | names,
    stream=st.booleans(),
    max_new_tokens=st.integers(1, 65_536),
    truncate=st.sampled_from(["error", "left"]),
    ignore_eos=st.booleans(),
    strategy=st.sampled_from(["sample", "greedy", "mirostat"]),  # searches bind other fields
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1_000_000),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=9), max_size=4),
    seed=st.none() | ids,
)
tokenizations = st.builds(
    lambda kind, what, **fields: kind(**what, **fields),
    kind=st.sampled_from([m.Tokenize, m.Score]),
    what=st.fixed_dictionaries({"text": texts}) | st.fixed_dictionaries({"ids": st.lists(st.integers(0, 99))}),
    **head,
    **which,
) | st.builds(
    m.Score,
    texts=st.lists(st.builds(m.Passage, text=texts, context=st.none() | texts), min_size=1, max_size=3),
    bos=st.sampled_from(["auto", "always", "never"]),
    unit=st.sampled_from(["token", "word"]),
    **head,
    **which,
)
requests = st.one_of(
    tokenizations,
    st.builds(m.Hello, **head, client=texts),
    st.builds(m.Ping, **head),
    st.builds(m.Models, **head),
    st.builds(m.GetStats, **head),
    st.builds(
        m.Load,
        **head,
        **which,
        model=names,
        compile=st.booleans(),
        cache=st.none() | names,
        replicas=st.none() | st.integers(1, 64),
        stream=st.booleans(),
    ),
    st.builds(
        m.Measure,
        **head,
        **which,
        model=names,
        text=st.none() | st.text(min_size=1, max_size=9),
        cache=st.none() | names,
        stream=st.booleans(),
    ),
    st.builds(m.Calibrate, **head, model=names, text=st.none() | st.text(min_size=1, max_size=9), stream=st.booleans()),
    st.builds(m.Unload, **head, **which, model=names),
    st.builds(m.Cancel, **head, target=ids),
    generations,
)
reply: dict[str, Any] = {"id": ids, "seq": counts}
model: dict[str, Any] = {"model": names, "engine": names, "precision": names}
fidelities = st.builds(
    m.Fidelity,
    quantised_share=floats,
    disk_bytes=counts,
    memory_bytes=counts,
    perplexity=floats,
    perplexity_change_pct=floats,
    top1_agreement=floats,
    kl_mean=floats,
    kl_p99=floats,
    greedy_tokens=floats,
    greedy_limit=counts,
    tok_s=floats,
    tokens=counts,
    threads=counts,
    held_out=st.booleans(),
    calibrated=st.booleans(),
)
healths = st.builds(
    m.WorkerHealth,
    **model,
    state=st.sampled_from(["loading", "ready", "stopping"]),
    moved_ms_ago=floats,
    running=counts,
    waiting=counts,
    replica=counts,
    node=texts,
    byte_level=st.booleans(),
    calibrated=st.booleans(),
    instruction_set=texts,
)
scores: dict[str, Any] = {
    **dict.fromkeys(("ids", "offsets"), st.lists(counts, max_size=3)),
    "logprobs": st.lists(st.none() | st.floats(-9, 0)),
    "ranks": st.lists(st.none() | counts),
    "entropies": st.lists(st.none() | floats),
    "greedy": st.lists(st.none() | counts),
    **dict.fromkeys(("sum", "mean", "perplexity", "bits_per_byte"), floats),
    "words": st.none()
    | st.builds(
        m.Words,
        texts=st.lists(texts, max_size=2),
        **dict.fromkeys(("starts", "ends", "tokens"), st.lists(counts, max_size=2)),
        logprobs=st.lists(st.none() | st.floats(-9, 0), max_size=2),
    ),
}
replies = st.one_of(
    st.builds(m.Progress, **reply, stage=texts, done=counts, total=counts, unit=texts),
    st.builds(m.Tokens, **reply, text=texts, ids=st.lists(counts, max_size=9)),
    st.builds(m.Failure, **reply, code=st.sampled_from(sorted(BY_CODE)), message=texts),
    st.builds(m.ScoredText, **reply, **scores, index=counts),
    st.builds(m.Scored, **reply, **scores, tokens=counts, computed=counts, elapsed_ms=floats),
    st.builds(m.Tokenized, **reply, text=texts, ids=st.lists(counts, max_size=3), offsets=st.lists(counts, max_size=3)),
    st.builds(m.Unloaded, **reply, names=st.lists(texts, max_size=3)),
    st.builds(m.CancelSent, **reply, found=st.booleans()),
    st.builds(
        m.ModelList,
        **reply,
        models=st.lists(
            st.builds(
                m.ModelInfo,
                name=names,
                parameters=counts,
                context=counts,
                file_bytes=counts,
                on_disk=st.booleans(),
                calibrate_s=counts,
                problem=texts,
                precisions=st.lists(
                    st.builds(
                        m.Precision,
                        engine=names,
                        precision=names,
                        memory_bytes=counts,
                        loaded=st.booleans(),
                        fidelity=st.none() | fidelities,
                        replicas=st.lists(healths, max_size=2),
                    ),
                    max_size=2,
                ),
            ),
            max_size=2,
        ),
    ),
    st.builds(
        m.Pong,
        **reply,
        server_id=texts,
        uptime_ms=floats,
        draining=st.booleans(),
        workers=st.lists(healths, max_size=2),
    ),
    st.builds(
        m.Stats,
        **reply,
        uptime_ms=floats,
        rss_bytes=counts,
        peers=counts,
        open_requests=counts,
        requests=st.dictionaries(texts, counts, max_size=3),
        errors=st.dictionaries(texts, counts, max_size=3),
        workers=st.lists(
            st.builds(
                m.WorkerStats,
                **model,
                rss_bytes=counts,
                requests=counts,
                prompt_tokens=counts,
                new_tokens=counts,
                busy_ms=floats,
                replica=counts,
                node=texts,
            ),
            max_size=2,
        ),
    ),
    st.builds(
        m.Loaded,
        **reply,
        **model,
        digest=texts,
        context=counts,
        rows=counts,
        threads=counts,
        rss_bytes=counts,
        load_ms=floats,
        already=st.booleans(),
        quantised_share=floats,
        disk_bytes=counts,
        replicas=counts,
        cache=names,
    ),
    st.builds(m.Measured, **reply, **model, fidelity=fidelities, cache=names),
    st.builds(m.Calibrated, **reply, **model, digest=texts, disk_bytes=counts, elapsed_ms=floats),
    st.builds(
        m.Generated,
        **reply,
        **model,
        text=texts,
        ids=st.lists(counts, max_size=9),
        prompt_truncated=counts,
        finish_reason=st.sampled_from(["eos", "length", "stop", "cancelled", "deadline"]),
        settings=st.dictionaries(texts, texts | counts | st.booleans() | st.none(), max_size=3),
        digest=texts,
        threads=counts,
        threads_used=floats,
        cache=names,
        ledger=ledgers,
    ),
    st.just(
        m.ServerInfo(
            id=1,
            protocol="1.0",
            server_id="a",
            version="1",
            host="h",
            cpu="c",
            cores=2,
            memory_bytes=3,
            engines=[m.Engine(name="onnx", precisions=["int8"])],
            parameters=parameters(),
        )
    ),
)
