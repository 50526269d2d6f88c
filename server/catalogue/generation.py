"""Where texts begin and end, by config.json and generation_config.json, as transformers 5 reads them.

Of generation_config.json these tokens alone are used; its sampling settings are reported, but not applied. Loads no
model library: the gateway imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import BadModel
from server.catalogue.files import CONFIG_FILE, GENERATION_FILE, read_map

OLD_END = 50256
"""Token that transformers 4 ends a text with where no file names one."""
NEUTRAL: dict[str, object] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "penalty_alpha": None, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "guidance_scale": None, "watermarking_config": None, "stop_strings": None, "max_length": 20,
    "max_new_tokens": None, "min_length": 0, "min_new_tokens": None, "max_time": None, "num_return_sequences": 1,
}  # fmt: skip
"""Settings that change what transformers' `generate` writes, with the values that change nothing."""
MOST_TOLD, LONGEST_TOLD = 12, 40
"""Limits of a notice: its settings, and the characters of each one's value."""


@dataclass(frozen=True)
class Bounds:
    """Where texts begin and end."""

    ends: tuple[int, ...]
    """Tokens that end a text, in ascending order; none is possible."""
    start: int | None
    """Token that an empty prompt begins with: bos, else the first end of text, else None."""
    notices: tuple[str, ...]


def read_bounds(folder: Path, config: dict[str, Any], vocabulary: int) -> Bounds:
    """Read generation_config.json, or `config` where there is none: never some of each. Raises: BadModel."""
    file = folder / GENERATION_FILE
    found, name = (read_map(file), GENERATION_FILE) if file.is_file() else (config, CONFIG_FILE)
    ends, start = _ends(found, name), _start(found, name)
    known = [token for token in ends if 0 <= token < vocabulary]
    if start is None or not 0 <= start < vocabulary:
        start = known[0] if known else None
    notices = []
    if not known:
        outside = f"has eos_token_id {str(ends)[:LONGEST_TOLD]}, outside the vocabulary of {vocabulary}"
        why = outside if ends else "names no eos_token_id"
        old = name == CONFIG_FILE and "eos_token_id" not in config and vocabulary > OLD_END
        since = f", as in transformers 5 (4 took {OLD_END})" if old else ""
        notices.append(f"its {name} {why}: only max_new_tokens and stop strings end a text{since}")
    if settings := list(_settings(found)):
        more = ", and others" if len(settings) > MOST_TOLD else ""
        notices.append(f"its {name} suggests {', '.join(settings[:MOST_TOLD])}{more}; they are not applied")
    return Bounds(tuple(sorted(set(known))), start, tuple(notices))


def _ends(found: dict[str, Any], name: str) -> list[int]:
    value = found.get("eos_token_id")
    if value is None:
        return []
    ends: list[Any] = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ends):  # not a bool either
        raise BadModel(f"{name} has eos_token_id={str(value)[:80]}; expected a token, a list of tokens, or null")
    return ends


def _start(found: dict[str, Any], name: str) -> int | None:
    value = found.get("bos_token_id")
    if value is not None and type(value) is not int:
        raise BadModel(f"{name} has bos_token_id={str(value)[:80]}; expected a token, or null")
    return value


def _settings(found: dict[str, Any]) -> Iterator[str]:
    for key, neutral in NEUTRAL.items():
        if (value := found.get(key)) is not None and value != neutral:
            told = str(value)
            yield f"{key} {told if len(told) <= LONGEST_TOLD else told[:LONGEST_TOLD] + '...'}"
