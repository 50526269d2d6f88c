"""Command gpt2d-keygen: makes the keys of a daemon that is reached over a network, and of its clients."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from protocol.keys import (
    Address,
    CurveKeys,
    KeyFileError,
    Role,
    check_endpoint,
    read_public,
    read_secret,
    write_public,
    write_secret,
)
from protocol.programs import VERSION, command, needed_by, printed_by, typed

with needed_by("gpt2d-keygen"):
    import platformdirs

DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)
"""Names that Windows keeps for devices, whatever follows after a dot: a file of that name swallows what is written."""
EVERY = {"*", "0.0.0.0", "::"}  # noqa: S104 - refused
"""Hosts of an endpoint by which a server listens on every address: whoever connects there means its own machine."""
KEYS = platformdirs.user_config_path("gpt2d") / "keys"
DESCRIPTION = """\
Make the keys of a daemon that is reached over a network, and of its clients.

  gpt2d-keygen server                                    the server's own key, if there is none yet
  gpt2d-keygen client laptop --endpoint tcp://HOST:5757  a key with all rights, and its connect line
  gpt2d-keygen client guest --role generate              one that may not load, measure, calibrate or unload
  gpt2d-keygen folder                                    where the keys are

The keys are in one folder that only you can read: server.key, and for each client NAME.key (its secret) and
authorised/NAME.pub. To revoke a client, delete its .pub: the daemon notices at once. A client that makes its own key
sends you only the .pub.
"""


def server_keys(folder: Path) -> CurveKeys:
    """Return the server's keys, made if there are none. Raises: KeyFileError, OSError."""
    file = folder / "server.key"
    if not file.exists():
        with contextlib.suppress(FileExistsError):  # another command made them meanwhile
            write_secret(file, CurveKeys.new())
    return read_secret(file)


def client_keys(folder: Path, name: str, role: Role) -> CurveKeys:
    """Return a client's keys, made and authorised if it is not yet. Raises: KeyFileError, OSError, ValueError."""
    if name.lower() == "server":  # on many disks of macOS and Windows, Server.key is server.key
        raise ValueError("the name 'server' belongs to the server's own key; choose another one")
    if not re.fullmatch(r"[\w-][\w.-]{0,99}", name, re.ASCII):
        raise ValueError(f"a client's name must consist of letters, digits, dots, dashes and underscores, got {name!r}")
    if DEVICES.fullmatch(name):
        raise ValueError(
            f"{name!r} is the name of a device on Windows, where it cannot be a file's; choose another one"
        )
    secret, public = folder / f"{name}.key", folder / "authorised" / f"{name}.pub"
    if not public.exists():  # new, or revoked: an old secret is never authorised again
        secret.unlink(missing_ok=True)
        keys = CurveKeys.new()
        write_secret(secret, keys)
        write_public(public, keys.public, role)
        return keys
    keys = read_secret(secret)
    if read_public(public) != (role, keys.public):
        raise ValueError(f"{public} exists already, with another role or another key; delete it first")
    return keys


def check_reached(endpoint: str) -> None:
    """Check that a client can connect to an endpoint. Raises: ValueError."""
    parts = urlsplit(check_endpoint(endpoint))
    if parts.hostname in EVERY or parts.port == 0:
        raise ValueError(
            f"{endpoint} says where a server listens; give the address at which this client reaches it, as "
            "tcp://192.168.1.5:5757"
        )


@printed_by("gpt2d-keygen")
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gpt2d-keygen", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"gpt2d {VERSION}")
    parser.add_argument("--keys", type=Path, default=KEYS, metavar="FOLDER", help="default: %(default)s")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="server | client NAME | folder")
    kinds.add_parser("folder", help="print where the keys are")
    kinds.add_parser("server", help="make the server's key")
    client = kinds.add_parser("client", help="make a client's key and authorise it")
    client.add_argument("name", help="the client's name")
    client.add_argument(
        "--role",
        choices=get_args(Role),
        default="admin",
        help="generate: may not load, measure, calibrate or unload models (default: %(default)s)",
    )
    client.add_argument(
        "--endpoint",
        metavar="tcp://HOST:PORT",
        help="the address of the server for that client; prints its connect line",
    )
    args = parser.parse_args()
    if args.kind == "folder":
        print(args.keys)
        return
    try:
        if args.kind == "client" and args.endpoint:
            check_reached(args.endpoint)
        server = server_keys(args.keys)
        if args.kind == "server":
            print(f"the server's public key: {server.public}")
            flags = ["--key", str(args.keys / "server.key"), "--authorised-keys", str(args.keys / "authorised")]
            print(f"start it with: {command('gpt2d-server')} --endpoint tcp://0.0.0.0:5757 {typed(*flags)}")
            return
        keys = client_keys(args.keys, args.name, args.role)
        if args.endpoint:
            print(Address(args.endpoint, server.public, keys).line())
        else:
            print(
                f"{args.name} may {'do everything' if args.role == 'admin' else 'generate'}; "
                f"its secret key is {args.keys / args.name}.key",
                file=sys.stderr,
            )
            print(
                "for its connect line, give the address where it will reach the server: --endpoint tcp://HOST:5757",
                file=sys.stderr,
            )
    except OSError as e:
        other = "gpt2d-keygen --keys FOLDER"
        if sys.platform == "linux":
            other = f"XDG_CONFIG_HOME=FOLDER in front of the command, or {other}"
        sys.exit(f"gpt2d-keygen: {e.filename}: {e.strerror}; to keep the keys in another folder: {other}")
    except (KeyFileError, ValueError) as e:
        sys.exit(f"gpt2d-keygen: {e}")


if __name__ == "__main__":
    main()
