"""Describes the generation settings, so that clients need not know them beforehand."""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol import messages as m


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
        kind: Literal["int", "float"] = "int" if isinstance(info, msgspec.inspect.IntType) else "float"
        return m.Parameter(name=name, type=kind, default=default, description=description, minimum=low, maximum=info.le)
    if isinstance(info, msgspec.inspect.BoolType):
        return m.Parameter(name=name, type="bool", default=default, description=description)
    return m.Parameter(
        name=name, type="biases" if name == "logit_bias" else "strings", default=default, description=description
    )
