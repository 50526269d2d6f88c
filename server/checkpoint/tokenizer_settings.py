"""What a folder's JSON files say about its tokenizer: its class, special and added tokens, and options.

As transformers 5 reads tokenizer_config.json, special_tokens_map.json, added_tokens.json and the added tokens of
tokenizer.json, in this order, which decides between files that contradict each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken

from protocol.errors import BadModel
from server.catalogue.files import CHAT_FILE, CONFIG_FILE

Token: TypeAlias = str | AddedToken
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_TOKENIZER_BYTES = 32 << 20
"""Largest file of a tokenizer. A vocabulary of 250,000 tokens takes 17 MB as JSON."""
MAX_SETTINGS_BYTES = 4 << 20
MAX_TEMPLATE_BYTES = 1 << 20
GPT2_ROWS = 50257
TOKENIZER_JSON = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
FLAGS = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
INTERNAL = {
    "vocab", "merges", "tokenizer_object", "gguf_file", "post_processor", "tokenizer_padding", "tokenizer_truncation",
    "_json_truncation", "_json_padding", "_spm_precompiled_charsmap", "unk_id", "model_specific_special_tokens",
    "fast_tokenizer_files",
}  # fmt: skip
"""Options by which transformers' classes pass parts of a tokenizer to each other; no file has a reason to."""
NOT_READ = {"split_special_tokens": False, "fix_mistral_regex": False, "backend": "tokenizers", "init_inputs": []}
"""Options that are read only where they have the value that they have anyway."""


@dataclass(frozen=True)
class Settings:
    """What the files say, before the class has added its defaults."""

    class_name: str | None
    whole: dict[str, Any] | None
    """The content of tokenizer.json."""
    options: dict[str, Any]
    named: dict[str, Token | None]
    """bos_token, eos_token and so on; None where a file says that there is none."""
    specific: dict[str, Token]
    """Special tokens under names of the model's own."""
    extra: list[Token] | None
    """Special tokens without a name; None where no file lists any."""
    added: dict[int, AddedToken]
    own: list[AddedToken]
    """The added tokens of tokenizer.json."""
    rows: int
    """Tokens that the model has, by config.json."""


def read_settings(folder: Path) -> Settings:
    """Return what the files say. Raises: BadModel, naming what cannot be read or is not understood."""
    config = read_json(folder / CONFIG_FILE) or {}
    options = read_json(folder / SETTINGS_FILE) or {}
    whole = read_json(folder / TOKENIZER_JSON, MAX_TOKENIZER_BYTES)
    class_name = options.pop("tokenizer_class", None) or config.get("tokenizer_class")
    _refuse(options)
    if whole is not None:
        for option in ("add_bos_token", "add_eos_token"):
            options.pop(option, None)
    if "additional_special_tokens" in options and not options.get("extra_special_tokens"):
        options["extra_special_tokens"] = options.pop("additional_special_tokens")
    specific = {key: options.pop(key) for key in [key for key in options if _own_name(key, options[key])]}
    if isinstance(options.get("extra_special_tokens"), dict):
        specific |= options.pop("extra_special_tokens")
    own = [(int(token["id"]), _added_token(token)) for token in (whole or {}).get("added_tokens") or []]
    listed = _listed(folder, options, specific, own)
    options, specific = _tokens_of(options), _tokens_of(specific)
    by_text = {token.content: token for _, token in listed}
    named = {}
    for key in NAMES:
        if key in options:
            token = options.pop(key)
            named[key] = by_text.get(str(token), token) if token is not None else None
    specific = {key: options.pop(key) for key in [key for key in options if _own_name(key, options[key])]} | specific
    extra = list(options.pop("extra_special_tokens") or []) if "extra_special_tokens" in options else None
    for token in (*named.values(), *specific.values(), *(extra or [])):
        if token is not None and not isinstance(token, Token):
            raise BadModel(f"{SETTINGS_FILE} has a special token that is not understood: {token!r:.60}")
    rows = config.get("vocab_size", GPT2_ROWS)
    rows = rows if isinstance(rows, int) else 0
    return Settings(class_name, whole, options, named, specific, extra, dict(listed), [token for _, token in own], rows)


def read_json(file: Path, most: int = MAX_SETTINGS_BYTES) -> dict[str, Any] | None:
    """Return a file's object, or None where there is no such file. Raises: BadModel, OSError."""
    if not file.is_file():
        return None
    if (size := file.stat().st_size) > most:
        raise BadModel(f"{file.name} has {size} bytes, more than the {most} that such a file may have")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise BadModel(f"the tokenizer cannot be read: {file.name}: {e or type(e).__name__}") from None
    if not isinstance(content, dict):
        raise BadModel(f"the tokenizer cannot be read: {file.name} must hold an object")
    return content


def read_chat_template(folder: Path, settings: Settings) -> str:
    """Return the template of conversations, which a file of its own holds or the options; of several the default.

    It is handed on as it is. Raises: BadModel, OSError.
    """
    file = folder / CHAT_FILE
    if file.is_file():
        if (size := file.stat().st_size) > MAX_TEMPLATE_BYTES:
            raise BadModel(
                f"{file.name} has {size} bytes, more than the {MAX_TEMPLATE_BYTES} that such a file may have"
            )
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadModel(f"{file.name} is not UTF-8 text") from None
    found = settings.options.get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    template = found if isinstance(found, str) else ""
    if any("\ud800" <= c <= "\udfff" for c in template):
        raise BadModel(f"{SETTINGS_FILE} has a chat_template with halves of characters, which are not text")
    return template


def _refuse(options: dict[str, Any]) -> None:
    """Raise BadModel for options that would change tokens and are not read."""
    mapped = options.get("auto_map")
    if isinstance(mapped, list) or (isinstance(mapped, dict) and "AutoTokenizer" in mapped):
        raise BadModel(
            f"its tokenizer is a program of its own (auto_map in {SETTINGS_FILE}), and code of a model is not run: "
            f"where a {TOKENIZER_JSON} holds the same tokenizer, remove auto_map and set tokenizer_class to "
            "PreTrainedTokenizerFast"
        )
    unread = sorted(key for key in options if key in INTERNAL or key.endswith("remote_code"))
    unread += [key for key, value in NOT_READ.items() if key in options and options[key] not in (value, None)]
    if unread:
        raise BadModel(f"{SETTINGS_FILE} has {unread[0]}, which is not read: remove it if the tokens do not need it")


def _own_name(key: str, token: object) -> bool:
    return key not in NAMES and key.endswith("_token") and isinstance(token, Token)


def _listed(
    folder: Path, options: dict[str, Any], specific: dict[str, Any], own: list[tuple[int, AddedToken]]
) -> list[tuple[int, AddedToken]]:
    """Return the added tokens, of one number the last of which counts; put special_tokens_map.json's among the rest."""
    if "added_tokens_decoder" in options:
        listed = options.pop("added_tokens_decoder")
        return [(int(index), _added_token(token)) for index, token in listed.items()]
    for key, value in (read_json(folder / "special_tokens_map.json") or {}).items():
        token = value
        if key == "extra_special_tokens" and isinstance(value, list):
            token = list(options.get(key) or [])
            token += [made for made in map(_special, value) if made not in token]
        elif key == "extra_special_tokens" and isinstance(value, dict):
            specific |= value
            options.pop(key, None)
            continue
        elif isinstance(value, dict):
            token = _special(value)
        options[key] = token
    special = {str(options[key]) for key in NAMES if options.get(key)}
    special |= {str(token) for token in options.get("extra_special_tokens") or []}
    added = [
        (int(index), AddedToken(text, normalized=text not in special, special=text in special))
        for text, index in (read_json(folder / "added_tokens.json") or {}).items()
    ]
    return added + own


def _special(token: Any) -> Any:
    return _added_token(token | {"special": True}) if isinstance(token, dict) else token


def _added_token(token: dict[str, Any]) -> AddedToken:
    """Return an added token. Raises: BadModel for a flag that is not known, which the library would pass over."""
    flags = {key: value for key, value in token.items() if key not in {"__type", "id"}}
    if unknown := flags.keys() - FLAGS:
        raise BadModel(f"the added token {flags.get('content')!r:.60} has {min(unknown)!r:.40}, which is not known")
    return AddedToken(**flags)


def _tokens_of(value: Any) -> Any:
    """Return the value with an AddedToken in the place of each object that describes one."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return _added_token(value)
    if isinstance(value, dict):
        return {key: _tokens_of(part) for key, part in value.items()}
    return [_tokens_of(part) for part in value] if isinstance(value, list) else value
