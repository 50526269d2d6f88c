"""Describes the generation settings, so that clients need not know them beforehand; reads what people type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from protocol import messages as m
from protocol.programs import VERSION

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "on or off",
    "biases": "of the form TOKEN:BIAS,TOKEN:BIAS",
    "strings": "a text with escapes as Python has them",
}
"""What a setting's value must be, by its type."""


def parameters() -> list[m.Parameter]:
    """Describe the generation settings from the fields of Generate: name, type, range, default."""
    fields = {f.name: f for f in msgspec.structs.fields(m.Generate)}
    return [_parameter(name, fields[name]) for name in m.SETTINGS]


def _parameter(name: str, field: msgspec.structs.FieldInfo) -> m.Parameter:
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    info = msgspec.inspect.type_info(field.type)
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(t for t in info.types if not isinstance(t, msgspec.inspect.NoneType))
    description = ""
    if isinstance(info, msgspec.inspect.Metadata):
        description = (info.extra_json_schema or {}).get("description", "")
        info = info.type
    if isinstance(info, msgspec.inspect.LiteralType):
        choices = [str(v) for v in info.values]
        # The default first, as for precisions.
        choices.sort(key=lambda c: c != default)
        return m.Parameter(name=name, type="choice", default=default, description=description, choices=choices)
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        low = info.ge if info.ge is not None else info.gt
        kind = "int" if isinstance(info, msgspec.inspect.IntType) else "float"
        return m.Parameter(name=name, type=kind, default=default, description=description, minimum=low, maximum=info.le)
    if isinstance(info, msgspec.inspect.BoolType):
        return m.Parameter(name=name, type="bool", default=default, description=description)
    return m.Parameter(
        name=name, type="biases" if name == "logit_bias" else "strings", default=default, description=description
    )


def missing(there: Iterable[m.Parameter]) -> dict[str, Any]:
    """Return the settings that are not among those of a server, as one of an earlier version, and their defaults."""
    lacking = {*m.SETTINGS} - {parameter.name for parameter in there}
    if not lacking:  # as of the same version: to describe them takes as long as a connection does
        return {}
    return {parameter.name: parameter.default for parameter in parameters() if parameter.name in lacking}


def find_parameter(there: Mapping[str, m.Parameter], name: str) -> m.Parameter:
    """Return the parameter of that name. Raises: ValueError, which names one that is likely meant."""
    if name not in there:
        likely = difflib.get_close_matches(name, there, 1)
        hint = f"did you mean {likely[0]}?" if likely else f"the settings are: {', '.join(there)}"
        raise ValueError(f"there is no setting {name!r}; {hint}")
    return there[name]


def read_settings(there: Mapping[str, m.Parameter], typed: Iterable[str]) -> dict[str, Any]:
    """Read settings of the form NAME=VALUE; a list that is given again grows. Raises: ValueError."""
    settings: dict[str, Any] = {}
    for setting in typed:
        if "=" not in setting:
            raise ValueError(f"a setting must be NAME=VALUE, got {setting!r}")
        name, text = setting.split("=", 1)
        value = read_value(find_parameter(there, name), text)
        settings[name] = settings.get(name, []) + value if isinstance(value, list) else value
    return settings


def read_value(parameter: m.Parameter, text: str) -> Any:
    """Read a setting's value; the server checks its range. Raises: ValueError for one of another type."""
    if parameter.type not in {*KINDS, "choice"}:
        raise ValueError(f"{parameter.name} is a setting of a later version than {VERSION}, which this program has")
    try:
        match parameter.type:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"true": True, "false": False, "on": True, "off": False}[text.lower()]
            case "biases":
                pairs = (pair.split(":") for pair in text.split(","))
                return [(int(token), float(bias)) for token, bias in pairs]
            case "strings":
                if "\\" in text:
                    text = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
                return [text]
            case _:
                return text
    except (ValueError, KeyError):
        raise ValueError(f"{parameter.name} must be {KINDS[parameter.type]}, got {text!r}") from None
