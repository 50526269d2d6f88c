"""The Config that is in force: from the flags, else from a TOML file, else the defaults of server/config.py."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from protocol.errors import RequestError
from protocol.keys import KeyFileError, read_secret
from protocol.sockets import is_loopback
from server.catalogue.catalogue import Catalogue
from server.config import Config, Option
from server.gateway.auth import Keyring

NEEDS_KEYS = """{endpoint} can be reached from other machines, so the server needs keys to know who may talk to it. Make them:
  .venv/bin/python scripts/keygen.py server
  .venv/bin/python scripts/keygen.py client NAME --endpoint tcp://HOST:PORT
and start it with the --key and --authorised-keys that these print; or let `python3 scripts/run.py --serve` do all of it.
Without keys, listen on tcp://127.0.0.1:PORT and reach it with `ssh -L PORT:127.0.0.1:PORT HOST`."""
KINDS = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts",
}


class SettingsError(ValueError):
    """A setting that cannot be: says where it was given, and what is allowed."""


@dataclass(frozen=True)
class Setting:
    """One option: its name is Config's field, its flag --name, its key in a file name."""

    name: str
    kind: type
    choices: tuple[str, ...]
    option: Option

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        if self.kind not in {int, float}:
            return KINDS[self.kind]
        most = "" if self.option.most == math.inf else f" and at most {self.option.most:g}"
        return f"{KINDS[self.kind]} of at least {self.option.least:g}{most}"

    def check(self, value: object) -> Any:
        """The value as Config has it. Raises: ValueError, which says what is allowed."""
        if self.kind is float and type(value) is int:
            with contextlib.suppress(OverflowError):
                value = float(value)
        if self.kind is tuple:
            good = isinstance(value, list) and all(map(_is_text, value))
        elif self.kind in {str, Path}:
            good = _is_text(value) and (not self.choices or value in self.choices)
        else:
            good = type(value) is self.kind
        if isinstance(value, int | float):
            good = good and self.option.least <= value <= self.option.most and value != math.inf
        if not good:
            raise ValueError(f"{value!r} is not allowed: {self.allowed} is")
        if self.option.check:
            for one in value if isinstance(value, list) else [value]:
                self.option.check(str(one))
        if self.kind is Path:
            try:
                return Path(str(value)).expanduser()
            except RuntimeError:
                raise ValueError(f"{value!r} is not allowed: there is no such home folder") from None
        return tuple(value) if isinstance(value, list) else value

    def read(self, text: str) -> Any:
        """The value of a flag, or one of its values. Raises: argparse.ArgumentTypeError, which says what is allowed."""
        value: object = text
        with contextlib.suppress(ValueError):
            value = self.kind(text) if self.kind in {int, float} else text
        try:
            return self.check([text])[0] if self.kind is tuple else self.check(value)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None


@cache
def settings() -> dict[str, Setting]:
    """The options by name, as Config's fields declare them."""
    found = {}
    for name, hint in get_type_hints(Config, include_extras=True).items():
        if get_origin(hint) is Annotated:
            declared, option = get_args(hint)
            plain, *_ = get_args(declared) if NoneType in get_args(declared) else (declared,)
            choices = get_args(plain) if get_origin(plain) is Literal else ()
            found[name] = Setting(name, str if choices else get_origin(plain) or plain, choices, option)
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; those that are not given are absent from the namespace."""
    defaults, group = Config(), parser.add_argument_group("settings")
    for setting in settings().values():
        option, default = setting.option, getattr(defaults, setting.name)
        told = option.unset or (
            "none" if default == () else f"{default:g}" if isinstance(default, float) else str(default)
        )
        words = f"{option.help} (default: {told})".replace("%", "%%")
        if setting.kind is bool:
            group.add_argument(
                setting.flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=option.help.replace("%", "%%"),
            )
        elif setting.kind is tuple:
            group.add_argument(
                setting.flag,
                type=setting.read,
                nargs="+",
                action="extend",
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=words,
            )
        else:
            metavar = option.metavar or ("|".join(setting.choices) or None)
            group.add_argument(setting.flag, type=setting.read, default=argparse.SUPPRESS, metavar=metavar, help=words)


def resolve(arguments: dict[str, Any], file: Path | None) -> Config:
    """The Config of what the parser found, which wins, and of a file. Raises: SettingsError."""
    flags = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
        if name in settings()
    }
    config = Config(**((_read_file(file) if file else {}) | flags))
    where = f"{file}: " if file else ""
    if (config.key is None) != (config.authorised_keys is None):
        raise SettingsError(
            f"{where}--key and --authorised-keys are given together: the server's own key, and the keys of those who may talk to it"
        )
    if config.key is None and not is_loopback(config.endpoint):
        raise SettingsError(where + NEEDS_KEYS.format(endpoint=config.endpoint))
    if urlsplit(config.worker_address).hostname in {"0.0.0.0", "::"}:  # noqa: S104 - refused
        raise SettingsError(
            f"{where}--worker-address: name the address by which the nodes reach this machine, not {config.worker_address}"
        )
    return config


def _read_file(file: Path) -> dict[str, Any]:
    """Raises: SettingsError."""
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as e:
        raise SettingsError(f"{file} cannot be read: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SettingsError(f"{file} is no TOML: {e}") from None
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
            checked = setting.check(value)
        except ValueError as e:
            raise SettingsError(f"{file}: {key}: {e}") from None
        found[setting.name] = file.absolute().parent / checked if setting.kind is Path else checked
    return found


def check(config: Config) -> None:
    """Find out without a start what would hinder one: keys, preloads, folders. Raises: SettingsError."""
    if config.key and config.authorised_keys:
        with _about("key"):
            read_secret(config.key)
        with _about("authorised_keys"):
            Keyring(config.authorised_keys)
    with _about("preload"):
        catalogue = Catalogue(config.models_dir, config.hub_cache, allow_hub=config.allow_hub)
        for name in config.preload:
            catalogue.parse(name)
    # Neither need be there yet: models come later, and the cache is made when something is built.
    with _about("models_dir"):
        if config.models_dir.exists():
            next(config.models_dir.iterdir(), None)
    with _about("cache_dir"):
        folder = next(p for p in (config.cache_dir.absolute(), *config.cache_dir.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyFileError, RequestError, OSError) as e:
        raise SettingsError(f"{name}: {e}") from None


def to_toml(config: Config) -> str:
    """A file that says what this Config says: TOML, one line for each setting; comments stand for those that are not set."""
    return "".join(f"{line}\n" for line in _lines(config))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _lines(config: Config) -> Iterator[str]:
    for name, setting in settings().items():
        value = getattr(config, name)
        yield f"# {name}: {setting.option.unset}" if value is None else f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value.absolute())
    if isinstance(value, str):  # as JSON writes it, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
