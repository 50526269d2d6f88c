"""The torch engine: transformers' own GPT-2, as a reference for the others. One row, its cache one that grows.

`int8` is torch's dynamic quantisation: weights of 8 bits with a scale for each output, activations quantised at each
product. Compiled, a decode step is one graph of torch.compile over a static cache, which is as long as the context
from the start.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.catalogue.engines import TRAITS

try:
    import torch
    from torch import nn
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache
    from transformers.modeling_utils import no_init_weights
    from transformers.pytorch_utils import Conv1D
except ImportError as e:
    missing = TRAITS["torch"].missing("torch", e.name)
    raise ImportError(f"{missing} (docs/install.md says how to take torch without CUDA)") from None

from protocol.errors import LoadFailed
from server.catalogue.architecture import Architecture
from server.engines.base import Hidden, Logits, Reference

Weights = Mapping[str, NDArray[np.float32]]


class TorchEngine(Reference):
    """One model in transformers."""

    def __init__(
        self,
        arch: Architecture,
        weights: Weights,
        precision: str,
        threads: int,
        *,
        compiled: bool = False,
    ) -> None:
        """As `transformers_model`. Compiled, the first `decode` takes up to a minute. Raises: OSError, RuntimeError."""
        self.context = arch.context
        self.vocabulary = arch.vocabulary
        self.width = arch.width
        self.threads = threads
        torch.set_num_threads(threads)
        model = transformers_model(arch, weights, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.quantised_share = 0.0
        if precision == "int8":
            model, self.quantised_share = quantised(model)
        self._model: GPT2LMHeadModel | None = model
        self._cache = StaticCache(model.config, max_cache_len=arch.context) if compiled else DynamicCache()
        self._prefill = model.transformer.forward
        self._decode = torch.compile(self._prefill, fullgraph=True, dynamic=False) if compiled else self._prefill

    def prefill(
        self,
        row: int,  # noqa: ARG002 - there is one
        ids: Sequence[int],
        past: int,
        wanted: Sequence[int],
        hidden: Hidden | None = None,
    ) -> Logits:
        return self._run(self._prefill, ids, past, wanted, hidden)

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        return self._run(self._decode, ids, past[0], [0], hidden)

    def warm_up(self) -> None:
        """Take a first step, which compiles. Raises: LoadFailed where that is impossible here, OSError, MemoryError."""
        self.prefill(0, [0], 0, [])  # makes the cache, which would else be made within the graph, and compiled twice
        try:
            self.decode([0], [1])
        except (OSError, MemoryError):
            raise
        except Exception as e:
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise LoadFailed(f"torch.compile failed: {reason}{_advice(str(e))}") from e

    def _run(
        self, forward: Callable[..., Any], ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None
    ) -> Logits:
        if self._model is None:
            raise RuntimeError("the engine is closed")
        if isinstance(self._cache, DynamicCache) and past < self._cache.get_seq_length():
            self._cache.crop(past)
        positions = torch.arange(past, past + len(ids))
        with torch.inference_mode():
            states = forward(
                torch.tensor([ids]), past_key_values=self._cache, cache_position=positions, use_cache=True
            ).last_hidden_state[0]
            if hidden is not None:
                hidden[:] = states.float().numpy()
            if not wanted:
                return np.empty((0, self.vocabulary), np.float32)
            logits: Logits = self._model.lm_head(states[list(wanted)]).float().numpy()
        return logits

    def close(self) -> None:
        self._model, self._cache = None, DynamicCache()
        self._prefill = self._decode = _nothing  # they would keep it


def _nothing(*_: object, **__: object) -> None:
    """Stand in for the model in a closed engine."""


def transformers_model(arch: Architecture, weights: Weights, dtype: torch.dtype) -> GPT2LMHeadModel:
    """`weights` gives float32 tensors by GPT-2's own names. Raises: RuntimeError.

    The configuration is the architecture, not config.json, which can ask for tuples instead of results by name.
    """
    config = GPT2Config(
        vocab_size=arch.vocabulary,
        n_positions=arch.context,
        n_embd=arch.width,
        n_layer=arch.layers,
        n_head=arch.heads,
        n_inner=arch.inner,
        activation_function=arch.activation,
        layer_norm_epsilon=arch.epsilon,
        scale_attn_weights=arch.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=arch.scale_attn_by_inverse_layer_idx,
        tie_word_embeddings="lm_head.weight" not in weights,
    )
    # The fused attention is up to 1.2 times as fast, and always divides by the square root of a head's width.
    plain = arch.scale_attn_weights and not arch.scale_attn_by_inverse_layer_idx
    attention = "sdpa" if plain else "eager"
    with no_init_weights():
        model: GPT2LMHeadModel = GPT2LMHeadModel._from_config(config, attn_implementation=attention, dtype=dtype).eval()
    model.tie_weights()
    parameters = dict(model.named_parameters())  # a tied head is not among them
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name.removeprefix("transformer.")])))
    return model


def quantised(model: GPT2LMHeadModel) -> tuple[GPT2LMHeadModel, float]:
    """Quantise all matrices to 8 bits; return the model and the share of their weights that is.

    GPT-2's blocks are Conv1D, which quantize_dynamic passes over in silence: they become Linear first.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape)
                linear.weight, linear.bias = nn.Parameter(child.weight.T.contiguous()), child.bias
                setattr(parent, name, linear)
    # The LM head gets weights of its own: the token table that it shares is looked up, not multiplied.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    total = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that it will go; this version has it
        result = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)  # type: ignore[no-untyped-call]
    kept = sum(layer.weight.numel() for layer in result.modules() if type(layer) is nn.Linear)
    return result, 1 - kept / total


def _advice(said: str) -> str:
    """Return what to do where torch.compile has failed and said that, as the end of a sentence."""
    if "C++ compiler" in said:
        return "; install a C++ compiler (Debian: g++), or load without `compile`"
    for path, where in (
        (torch.__file__, "move the environment"),
        (os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""), "choose another --cache-dir"),
    ):
        if " " in path:
            return f"; it cannot use a path with a space ({path}): {where}, or load without `compile`"
    return ""
