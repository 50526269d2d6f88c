"""A kind of model folder: how it is made, what it is asked, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path], None]
"""Fills an empty folder."""
TEXTS = (
    "To be, or not to be: that is the question.",
    " A leading space,  two of them,\n\n\tand a tab.\n",
    "naïve café — 東京, 🙂!",
    "<|endoftext|>Once upon a time <|endoftext|>",
    "It does n't end , does it ?",
)
"""Texts that are tokenised and scored."""
PROMPTS = ("To be, or not to be", "The quality of mercy ", "")
"""Texts that are continued."""


@dataclass(frozen=True)
class Kind:
    """What people have, as one folder."""

    name: str
    """The folder's name, which begins with what the kind is about."""
    make: Make
    refused: str = ""
    """Where it must not load: what the sentence says, as a regular expression."""
    judged: Make | None = None
    """Makes the folder that transformers is asked about, where it cannot read this one."""
    notice: str = ""
    """What a load tells, as a regular expression."""
    texts: tuple[str, ...] = TEXTS
    prompts: tuple[str, ...] = PROMPTS
    refused_texts: tuple[tuple[str, str], ...] = ()
    """Texts that must not be taken, each with what the sentence says."""
    blocks: bool = False
    """Whether int8 and int4 are compared too, since the mathematics differs."""
    engines: tuple[str, ...] = ("native", "onnx")
    gate: bool = False
    """Whether .ci/run makes and compares it."""
