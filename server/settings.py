"""Settings in force: from the flags, else from a TOML file, else the defaults of server/config.py.

msgspec says whether a value is valid; the message for a person is made here.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect
from msgspec.inspect import BoolType, CustomType, FloatType, IntType, LiteralType, NoneType, UnionType, VarTupleType

from protocol.programs import command
from protocol.sockets import is_loopback
from server.config import Config, Text

NEEDS_KEYS = """{endpoint} can be reached from other machines, so the server needs keys to know who may talk to it.
Make them:
  {keygen} server
  {keygen} client NAME --endpoint tcp://HOST:PORT
and start it with the --key and --authorised-keys that the first prints; in a checkout, `python3 scripts/run.py --serve`
does all of it. Without keys, listen on tcp://127.0.0.1:PORT and reach it with `ssh -L PORT:127.0.0.1:PORT HOST`."""


class SettingsError(ValueError):
    """Error for a wrong setting: says where it was given, and what it must be."""


@dataclass(frozen=True)
class Setting:
    """Field of Config: its flag is --name, its key in a file `name`."""

    name: str
    form: Any
    """Type as Config declares it."""
    kind: inspect.Type
    """Type as msgspec describes it, without None."""
    help: str
    metavar: str | None
    unset: str
    check: Callable[[str], object] | None
    """Like the three before, an argument of server/config.py's `setting`."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def must(self) -> str:
        """Description of what it must be."""
        match self.kind:
            case LiteralType(values):
                return " or ".join(map(repr, values))
            case IntType() | FloatType():
                noun = "a whole number" if isinstance(self.kind, IntType) else "a number"
                least, most = self.kind.ge, self.kind.le
                unbounded = most is None or most == sys.float_info.max
                return f"{noun} >= {least:g}" if unbounded else f"{noun} from {least:g} to {most:g}"
            case BoolType():
                return "true or false"
            case CustomType():
                return "a path"
            case VarTupleType():
                return "a list of texts"
            case _:
                return "a text of one line"

    def convert(self, value: object) -> Any:
        """Return the value as Config has it. Raises: ValueError, which says what it must be."""
        try:
            found = msgspec.convert(value, self.form, dec_hook=_path)
        except msgspec.ValidationError:
            raise ValueError(f"must be {self.must}, got {value!r}") from None
        except RuntimeError:  # expanduser's
            raise ValueError(f"there is no home folder for {value!r}") from None
        if self.check:
            for text in found if isinstance(found, tuple) else [found]:
                self.check(text)
        return found

    def read(self, text: str) -> Any:
        """Return the value of a flag, or one of its values.

        Raises: argparse.ArgumentTypeError, which says what it must be.
        """
        value: object = text
        with contextlib.suppress(ValueError):
            if isinstance(self.kind, IntType | FloatType):
                value = int(text) if isinstance(self.kind, IntType) else float(text)
        try:
            return self.convert([text])[0] if isinstance(self.kind, VarTupleType) else self.convert(value)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None


def _path(_: type, value: object) -> Path:
    """Return a path. Raises: msgspec.ValidationError, RuntimeError if there is no such home folder."""
    return Path(msgspec.convert(value, Text)).expanduser()


@cache
def settings() -> dict[str, Setting]:
    """Return the settings by name, as Config's fields declare them."""
    found = {}
    for name, hint in get_type_hints(Config, include_extras=True).items():
        described = inspect.type_info(hint)
        if isinstance(described, inspect.Metadata) and described.extra:
            kind = described.type
            if isinstance(kind, UnionType):
                kind = next(one for one in kind.types if not isinstance(one, NoneType))
            found[name] = Setting(name, hint, kind, **described.extra)
    return found


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add a flag for each setting, or for these alone; those that are not given are absent from the namespace."""
    group = parser.add_argument_group("settings")
    defaults = Config()
    for setting in [settings()[name] for name in names or settings()]:
        words = f"{setting.help} (default: {_default(setting, defaults)})"
        more: dict[str, Any]
        if isinstance(setting.kind, BoolType):
            words = setting.help
            more = {"action": argparse.BooleanOptionalAction}
        elif isinstance(setting.kind, VarTupleType):
            more = {"type": setting.read, "nargs": "+", "action": "extend", "metavar": setting.metavar}
        elif isinstance(setting.kind, LiteralType):
            more = {"type": setting.read, "metavar": "|".join(map(str, setting.kind.values))}
        else:
            more = {"type": setting.read, "metavar": setting.metavar}
        group.add_argument(setting.flag, default=argparse.SUPPRESS, help=words.replace("%", "%%"), **more)


def _default(setting: Setting, defaults: Config) -> str:
    default = getattr(defaults, setting.name)
    if setting.unset:
        return setting.unset
    if default == ():
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


def resolve(arguments: dict[str, Any], file: Path | None) -> Config:
    """Return the Config from the arguments and a file; the arguments win. Raises: SettingsError."""
    flags = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
        if name in settings()
    }
    config = Config(**((_read_file(file) if file else {}) | flags))
    where = f"{file}: " if file else ""
    if (config.key is None) != (config.authorised_keys is None):
        raise SettingsError(
            f"{where}--key and --authorised-keys must be given together: the server's own key, and the keys of those "
            "who may talk to it"
        )
    if config.key is None and not is_loopback(config.endpoint):
        raise SettingsError(where + NEEDS_KEYS.format(endpoint=config.endpoint, keygen=command("gpt2d-keygen")))
    if urlsplit(config.worker_address).hostname in {"0.0.0.0", "::"}:  # noqa: S104 - refused
        raise SettingsError(
            f"{where}--worker-address: must be the address by which the nodes reach this machine, "
            f"got {config.worker_address}"
        )
    return config


def _read_file(file: Path) -> dict[str, Any]:
    """Return the settings of a file by name. Raises: SettingsError."""
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as e:
        raise SettingsError(f"{file} cannot be read: {e.strerror}") from None
    except ValueError as e:  # wrong syntax or bytes, or a number with more digits than Python reads
        raise SettingsError(f"{file} is not valid TOML: {e}") from None
    found: dict[str, Any] = {}
    for key, value in table.items():
        setting = settings().get(key.replace("-", "_"))
        if setting is None:
            near = difflib.get_close_matches(key.replace("-", "_"), settings(), 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise SettingsError(f"{file}: there is no setting {key!r}; {meant}there are: {', '.join(settings())}")
        if setting.name in found:
            raise SettingsError(f"{file}: {key} is given twice, as {setting.name} and with dashes")
        try:
            converted = setting.convert(value)
        except ValueError as e:
            raise SettingsError(f"{file}: {key}: {e}") from None
        found[setting.name] = file.absolute().parent / converted if isinstance(converted, Path) else converted
    return found


def to_toml(config: Config) -> str:
    """Return a TOML file that says what this Config says, one line for each setting; those not set are comments."""
    return "".join(f"{line}\n" for line in _lines(config))


def _lines(config: Config) -> Iterator[str]:
    for name, setting in settings().items():
        value = getattr(config, name)
        yield f"# {name}: {setting.unset}" if value is None else f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value.absolute())
    if isinstance(value, str):  # as JSON writes it, except for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
