"""A model's tensors, from its safetensors file. Used in workers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture

Report = Callable[[str, int, int, str], None]
"""progress(stage, done, total, unit), as protocol.messages.Progress has them."""
PREFIX = "transformer."


class Weights(Mapping[str, NDArray[np.float32]]):
    """GPT-2's tensors by name, without the `transformer.` prefix; each is read and made float32 when asked for.

    Raises: BadModel, at once, if a tensor is missing or has another shape than the architecture says.
    """

    def __init__(self, file: Path, arch: Architecture) -> None:
        try:
            self._tensors = safe_open(file, framework="numpy")
            stored = {name.removeprefix(PREFIX): name for name in self._tensors.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as e:
            raise BadModel(f"{file.name} cannot be read: {e}") from None
        self._shapes = expected_shapes(arch)
        # Checkpoints repeat a tied head, and old ones hold attention masks: neither is a parameter.
        if "lm_head.weight" in stored and not self._tied(stored):
            self._shapes["lm_head.weight"] = (arch.vocabulary, arch.width)
        for name, shape in self._shapes.items():
            if name not in stored:
                raise BadModel(f"{file.name} has no tensor {name}")
            found = tuple(self._tensors.get_slice(stored[name]).get_shape())
            if found != shape:
                raise BadModel(f"{file.name}: {name} has shape {list(found)}, config.json says {list(shape)}")
        self._stored = stored

    def _tied(self, stored: dict[str, str]) -> bool:
        head, table = (self._tensors.get_tensor(stored.get(n, n)) for n in ("lm_head.weight", "wte.weight"))
        return bool(np.array_equal(head, table))

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._shapes:
            raise KeyError(name)
        return np.asarray(self._tensors.get_tensor(self._stored[name])).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def expected_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return {tensor name: shape} of a GPT-2; the blocks' matrices are [inputs, outputs] (transformers' Conv1D)."""
    d, inner = arch.width, arch.inner
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (arch.vocabulary, d), "wpe.weight": (arch.context, d)}
    for i in range(arch.layers):
        h = f"h.{i}"
        for name, shape in (
            ("attn.c_attn", (d, 3 * d)),
            ("attn.c_proj", (d, d)),
            ("mlp.c_fc", (d, inner)),
            ("mlp.c_proj", (inner, d)),
        ):
            shapes[f"{h}.{name}.weight"] = shape
            shapes[f"{h}.{name}.bias"] = shape[1:]
        for norm in ("ln_1", "ln_2"):
            shapes[f"{h}.{norm}.weight"] = shapes[f"{h}.{norm}.bias"] = (d,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (d,)
    return shapes
