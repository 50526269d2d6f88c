"""The servers that this user has connected to with keys, by name: a connect line each, in files that only the user can
read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import re
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from protocol.keys import DEFAULT_ENDPOINT, Address, read_line
from protocol.messages import ServerInfo

NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
COMMANDS = ("score", "generate")
"""Words in place of a server that are commands of gpt2d-client (client.corpus), so that no server gets such a name."""


def folder() -> Path:
    return platformdirs.user_config_path("gpt2d") / "servers"


def resolve(text: str) -> Address:
    """Read the name of a saved server, an endpoint, a connect line, or a host whose server has the usual port.

    Raises: ValueError, also where others could read what is saved.
    """
    if NAME.fullmatch(text) and (folder() / text).exists():
        return Address.parse(read_line(folder() / text))
    if is_host(text):
        host = f"[{text}]" if ":" in text else text
        return Address.parse(f"{host}:{urlsplit(DEFAULT_ENDPOINT).port}")
    if not NAME.fullmatch(text):
        return Address.parse(text)
    known = ", ".join(names()) or "none yet"
    raise ValueError(
        f"no server {text!r} is saved (saved: {known}); give an endpoint like {DEFAULT_ENDPOINT}, a connect line, or "
        f"{text}:{urlsplit(DEFAULT_ENDPOINT).port} if it is a host"
    )


def is_host(text: str) -> bool:
    """Return True for what can only be a host: localhost, an IP address, a name with a dot."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return text == "localhost" or ("." in text and NAME.fullmatch(text) is not None)


def keep(address: Address) -> str:
    """Save a connect line under its host's name (and port, where that is not the default); return the name. A host that
    is called like a command is saved as NAME-server.

    Raises: OSError.
    """
    parts = urlsplit(address.endpoint)
    name = re.sub(r"[^\w.-]", "-", parts.hostname or parts.path, flags=re.ASCII).strip("-.") or "server"
    if parts.scheme == "tcp" and parts.port != urlsplit(DEFAULT_ENDPOINT).port:
        name += f"-{parts.port}"
    if name in COMMANDS:
        name += "-server"
    while name in names() and address not in kept(name):  # another host that reads the same, or another key
        name += "-2"
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, draft = tempfile.mkstemp(dir=folder(), prefix=".")  # readable by this user alone
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(address.line() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(folder() / name)
    finally:
        Path(draft).unlink(missing_ok=True)
    return name


def kept(*which: str) -> list[Address]:
    """Return the saved servers that can be read, all or those of these names."""
    found = []
    for name in which or names():
        with contextlib.suppress(ValueError):
            found.append(resolve(name))
    return found


def notices(info: ServerInfo) -> list[str]:
    """Return what a server says that its users should know, each sentence with where, if that is another machine."""
    where = "" if info.host == platform.node() else "on the server: "
    return [where + sentence for sentence in info.notices]


def names() -> list[str]:
    try:
        return sorted(p.name for p in folder().iterdir() if NAME.fullmatch(p.name) and not p.name.startswith("."))
    except OSError:
        return []
