"""Asks transformers about a folder, in this process or, as a program, for whoever writes lines of JSON to it.

scripts.checkpoints starts it with the Python of the judge's environment: python -m scripts.checkpoints.judge
It imports the standard library, torch and transformers alone: that environment has little else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TypedDict

NEW_TOKENS = 12
PROBE = "a"
ADAPTER = "adapter_config.json"


class Told(TypedDict):
    """A text: its tokens, the first character of each and the one after its last, and its log-probabilities."""

    ids: list[int]
    plain: list[int]
    """Its tokens where the names of special tokens are text as any other."""
    spans: list[list[int]]
    logprobs: list[float | None]


class Continued(TypedDict):
    """A prompt's greedy continuation."""

    ids: list[int]
    text: str
    ended: bool


class Answer(TypedDict):
    texts: list[Told]
    prompts: list[Continued]


def ask(folder: Path, texts: list[str], prompts: list[str]) -> Answer:
    """Return what transformers makes of a folder's model. Raises whatever it raises."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    of_tokenizer: Any = AutoTokenizer
    whole: Any = GPT2LMHeadModel
    place = folder
    if (folder / ADAPTER).is_file():
        peft: Any = importlib.import_module("peft")  # which is in the judge's environment
        whole = peft.AutoPeftModelForCausalLM
        if not (folder / "tokenizer_config.json").is_file():
            place = Path(json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"])
    tokenizer = of_tokenizer.from_pretrained(place)
    model = whole.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        told = [_text(model, tokenizer, text) for text in texts]
        return {"texts": told, "prompts": [_prompt(model, tokenizer, prompt) for prompt in prompts]}


def _encode(tokenizer: Any, text: str, *, plain: bool = False) -> tuple[list[int], list[list[int]]]:
    """Return a text's tokens without those that are put after it, and their places in it."""
    probe = tokenizer(PROBE).input_ids
    inside = tokenizer(PROBE, add_special_tokens=False).input_ids
    before = next(i for i in range(len(probe)) if probe[i : i + len(inside)] == inside)
    after = len(probe) - before - len(inside)
    found = tokenizer(text, return_offsets_mapping=True, split_special_tokens=plain)
    keep = len(found.input_ids) - after
    return list(found.input_ids[:keep]), [list(span) for span in found.offset_mapping[:keep]]


def _text(model: Any, tokenizer: Any, text: str) -> Told:
    import torch

    ids, spans = _encode(tokenizer, text)
    logprobs: list[float | None] = [None] * min(1, len(ids))
    if 1 < len(ids) <= model.config.n_positions:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])
        logprobs += chosen[:, 0].tolist()
    plain = _encode(tokenizer, text, plain=True)[0]
    return {"ids": ids, "plain": plain, "spans": spans, "logprobs": logprobs}


def _prompt(model: Any, tokenizer: Any, prompt: str) -> Continued:
    """Continue it greedily. Of the model's generation settings only the tokens that begin and end a text count."""
    import torch
    from transformers import GenerationConfig

    ids = _encode(tokenizer, prompt)[0]
    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = [end for end in ends if end is not None]
    beginning = own.bos_token_id if own.bos_token_id is not None else next(iter(ends), None)
    whole: Any = GenerationConfig
    model.generation_config = whole(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=ends or None, pad_token_id=0
    )
    fed: list[Any] = ids or [beginning]
    given = torch.tensor([fed])
    # Else it takes tokens that are the padding's for padding.
    out = model.generate(given, attention_mask=torch.ones_like(given))[0].tolist()
    model.generation_config = own
    new = out[len(fed) :]
    start = tokenizer.decode(ids, skip_special_tokens=True)
    text = tokenizer.decode(ids + new, skip_special_tokens=True)
    common = next((i for i, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), min(len(start), len(text)))
    return {"ids": new, "text": text[common:], "ended": new[-1] in ends}


def main() -> None:
    """Answer each line with one: the answer, or an error's name and message."""
    import torch

    torch.set_num_threads(1)  # the models are so small that a second one only costs
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer: object = ask(Path(order["folder"]), order["texts"], order["prompts"])
        except Exception as e:  # noqa: BLE001 - whatever transformers raises is its answer
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
