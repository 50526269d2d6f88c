"""What a caller gives -> a request: values as scripts have them are taken, all others are refused before sending."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Set as AbstractSet
from typing import Any, TypeVar

import msgspec

from protocol import messages as m
from protocol.codec import ERRORS, sentence
from protocol.errors import BadRequest

R = TypeVar("R", bound=m.Request)

LISTS = frozenset({"prompt_ids", "ids", "context_ids", "texts", "logit_bias", "stop", "bad_words"})
IN_ORDER = frozenset({"prompt_ids", "ids", "context_ids", "texts"})
WORDS = frozenset({"stop", "bad_words"})
"""Lists of texts, of which one may be given by itself."""
OURS = {"id": "", "deadline_ms": "; give timeout, in seconds", "stream": "; call stream() for one"}
"""Fields that are not a caller's to give, and what is instead."""
MANY = {"generate": "generate_many", "score": "score_many"}
"""What is called for several texts."""


def request(kind: type[R], settings: Mapping[str, Any], **fields: Any) -> R:
    """Make a request of a caller's settings and other fields.

    A number may be anything with `__index__` or `__float__`, a list any sequence or array; `logit_bias` may be a
    mapping, and `stop` and `bad_words` one text.

    Raises: BadRequest, which names the field.
    """
    name = str(kind.__struct_config__.tag)
    for field in settings:
        if field in OURS or field in fields or field not in kind.__struct_fields__:
            known = {*kind.__struct_fields__} - {*OURS} - {*fields}
            raise BadRequest(f"{name} has no setting {field!r}{_instead(field, known, name)}")
    plain: dict[str, Any] = {}
    try:
        for field, value in {**settings, **fields}.items():
            plain[field] = _plain(field, value)
        return msgspec.convert(plain, kind)
    except UnicodeEncodeError as e:
        raise BadRequest(f"{name}: {field} cannot be encoded in UTF-8: lone surrogate at character {e.start}") from None
    except ERRORS as e:
        raise BadRequest(f"{name}: {sentence(e, kind)}") from None


def _instead(field: str, known: Collection[str], request_type: str = "") -> str:
    if field in OURS:
        return OURS[field]
    if field == "texts" and request_type in MANY:
        return f"; call {MANY[request_type]}() for several"
    likely = difflib.get_close_matches(field, known, 1)
    return f"; did you mean {likely[0]}?" if likely else f"; there are: {', '.join(sorted(known))}"


def _plain(field: str, value: Any) -> Any:
    """Return a field's value made of Python's own types, as far as it is something that may be sent."""
    if isinstance(value, m.Passage):
        value = {name: getattr(value, name) for name in m.Passage.__struct_fields__}
    if isinstance(value, Mapping) and field == "texts":
        for name in value:
            if name not in m.Passage.__struct_fields__:
                raise ValueError(f"a text has no field {name!r}{_instead(name, m.Passage.__struct_fields__)}")
        return {name: _plain(name, part) for name, part in value.items()}
    if field == "texts" and isinstance(value, list | tuple):
        return [{"text": _scalar(text)} if isinstance(text, str) else _plain(field, text) for text in value]
    if isinstance(value, str) and field in WORDS:
        return [_scalar(value)]
    if isinstance(value, Mapping) and field in LISTS:
        return [[_token(token), _scalar(bias)] for token, bias in value.items()]
    return _listed(field, value) if field in LISTS else _scalar(value)


def _listed(field: str, value: Any) -> Any:
    """Return a list where the value is a sequence or an array. Raises: ValueError for a named tuple, or a set of
    tokens.
    """
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if type(value) is list and all(type(item) is int for item in value):  # most prompts
        return value
    if hasattr(value, "_fields"):
        raise ValueError(f"{field} must be a list, got {type(value).__name__}")
    if field in IN_ORDER and isinstance(value, AbstractSet):
        raise ValueError(f"{field} must be a list, got {type(value).__name__}, which has no order")
    if isinstance(value, str | bytes | bytearray) or not hasattr(value, "__getitem__"):
        return _scalar(value)
    return [_listed(field, item) for item in value]


def _scalar(value: Any) -> Any:
    """Return a number or a text as one of Python's own types; anything else as it is, which is then refused.

    Raises: UnicodeEncodeError for a text that cannot be sent.
    """
    if isinstance(value, str):
        text = str.__str__(value)
        if not text.isascii():
            text.encode()
        return text
    if hasattr(value, "tolist"):  # NumPy's numbers, which are no numbers of Python's: a bool would be 1.0 below
        value = value.tolist()
    if value is None or type(value) in (bool, int, float):
        return value
    for number, method in ((int, "__index__"), (float, "__float__")):
        if hasattr(value, method):
            try:
                return number(getattr(value, method)())
            except (TypeError, ValueError, OverflowError):
                continue
    return value


def _token(key: Any) -> Any:
    """Return a token that is a mapping's key; in JSON it is a text."""
    return int(key) if isinstance(key, str) and key.isdecimal() else _scalar(key)
