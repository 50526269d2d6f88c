"""What tokenizer.json holds: read by the library, with everything refused that the library does not know."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from protocol.errors import BadModel
from server.checkpoint.spiece import check_charsmap

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
KEYS = {"version", "truncation", "padding", "added_tokens", "model", *PARTS}
MODEL_KEYS = {
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges", "max_input_chars_per_word", "unk_id", "vocab", "merges",
}  # fmt: skip
OLDER = {"add_prefix_space", "str_rep"}
"""Keys that Metaspace had in older files; the library reads them and writes others."""
CHANGING = ("continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges", "max_input_chars_per_word")
"""Settings of a model that change its tokens."""


def read_whole(file: Path, content: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a file's content, without its added tokens.

    Raises: BadModel for what the library ignores.
    """
    if not isinstance(content.get("model"), dict):
        raise BadModel(
            f"the tokenizer cannot be read: {file.name} is not of the library `tokenizers` (miditok and others write "
            "files of this name)"
        )
    _refuse(file, [*(content.keys() - KEYS), *(f"model.{key}" for key in content["model"].keys() - MODEL_KEYS)])
    read = Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
    for part in PARTS:
        _refuse(file, [f"{part}.{key}" for key in _lost(content.get(part), _state(getattr(read, part)))])
    if content["model"].get("dropout"):
        raise BadModel(f"{file.name} has a dropout, by which a text gets other tokens each time: set it to null")
    for charsmap in charsmaps(content.get("normalizer")):
        check_charsmap(charsmap)
    return read


def _refuse(file: Path, unknown: list[str]) -> None:
    if unknown:
        raise BadModel(f"{file.name} has the setting {min(unknown):.60}, which is not known, and may change tokens")


def charsmaps(normalizer: Any) -> Iterator[bytes]:
    """Yield the tables of characters in a normalizer."""
    if isinstance(normalizer, dict):
        if normalizer.get("type") == "Precompiled" and normalizer.get("precompiled_charsmap"):
            yield base64.b64decode(normalizer["precompiled_charsmap"])
        for part in normalizer.get("normalizers") or []:
            yield from charsmaps(part)


class Written:
    """What of a tokenizer.json a class may replace, noted before it does."""

    def __init__(self, read: Tokenizer) -> None:
        self._parts = {part: _state(getattr(read, part)) for part in ("normalizer", "pre_tokenizer")}
        self._model = {key: getattr(read.model, key, None) or None for key in CHANGING}
        self._before = before_text(read.post_processor)

    def differences(self, made: Tokenizer, name: str, other: str, *, prefix: bool, as_it_is: bool) -> list[str]:
        """Say what transformers 4 took from the file where transformers 5, and so this, takes the class's own."""
        notices = []
        for part, state in self._parts.items():
            if _without_prefix(state) != _without_prefix(_state(getattr(made, part))):
                notices.append(
                    f"tokenizer.json's {part} is not used: as in transformers 5, {name} has its own (tokenizer_class "
                    f"{other} would use it)"
                )
        changed = [key for key, value in self._model.items() if (getattr(made.model, key, None) or None) != value]
        if changed:
            notices.append(f"tokenizer.json's {changed[0]} is not used, as in transformers 5")
        has = (self._parts["pre_tokenizer"] or {}).get("add_prefix_space", prefix)
        if as_it_is and has != prefix:
            notices.append(f"add_prefix_space is {has}, as in tokenizer.json and transformers 5")
        if self._before != before_text(made.post_processor):
            notices.append(f"what stands before each text is {name}'s, as in transformers 5")
        return notices


def before_text(processor: Any) -> tuple[int, ...]:
    """Return the tokens that a post-processor puts before a text. Raises: BadModel for what is not understood."""
    return _before(_state(processor)) if processor is not None else ()


def _before(state: dict[str, Any]) -> tuple[int, ...]:
    match state["type"]:
        case "Sequence":
            found: tuple[int, ...] = ()
            for part in state["processors"]:
                found = _before(part) + found
            return found
        case "BertProcessing" | "RobertaProcessing":
            return (state["cls"][1],)
        case "ByteLevel":
            return ()
        case "TemplateProcessing":
            parts = state["single"]
            texts = [index for index, part in enumerate(parts) if "Sequence" in part]
            if len(texts) != 1 or parts[texts[0]]["Sequence"]["id"] != "A":
                raise BadModel("its tokenizer's template does not have the text once, so it is not read")
            names = [part["SpecialToken"]["id"] for part in parts[: texts[0]]]
            return tuple(index for name in names for index in state["special_tokens"][name]["ids"])
    raise BadModel(f"its tokenizer's post-processor {state['type']} is not read")


def _state(part: Any) -> Any:
    return json.loads(part.__getstate__()) if part is not None else None


def _without_prefix(state: Any) -> Any:
    """Return what a part says without add_prefix_space, which every version takes from tokenizer_config.json."""
    return {key: value for key, value in state.items() if key != "add_prefix_space"} if state is not None else None


def _lost(written: Any, read: Any) -> Iterator[str]:
    """Yield the keys of a file that are not in what the library made of it."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key in read:
                yield from _lost(value, read[key])
            elif read.get("type") != "Metaspace" or key not in OLDER:
                yield key
    elif isinstance(written, list) and isinstance(read, list):
        for one, other in zip(written, read, strict=False):
            yield from _lost(one, other)
