"""Command gpt2d-http: arguments, the sockets, and the server's life."""

from __future__ import annotations

import sys

try:
    import argparse
    import asyncio
    import contextlib
    import ipaddress
    import logging
    import os
    import socket
    from pathlib import Path

    from protocol.aio import AsyncClient
    from protocol.errors import Gpt2dError
    from protocol.keys import DEFAULT_ENDPOINT, Address, KeyFileError, read_secret
    from protocol.programs import VERSION, given_line, needed_by, printed_by

    with needed_by("gpt2d-http", "http"):
        import uvicorn

        from client.doors.http.app import Door
        from client.doors.http.guard import Guard, read_tokens
        from client.doors.http.patience import HEAD_S, Patient
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

HOST, PORT = "127.0.0.1", 8000
CONNECTIONS = 512
SHUTDOWN_S = 10
MAX_HEADER_BYTES = 64 << 10
MEET_S = 5.0
DESCRIPTION = """\
A door for programs that speak OpenAI's HTTP: it passes their requests on to a gpt2d-server. For scripts of your own
the protocol is the shorter way (`from protocol import Client`): it has every setting, scores, places and progress.

  POST /v1/completions       prompt: a text, texts, tokens, or lists of them; stream, n, best_of, stop, seed, logprobs,
                             echo (with logprobs: those of the prompt), max_tokens (0: write nothing), logit_bias
  POST /v1/chat/completions  where the model's folder has a chat template
  GET  /v1/models            what is loaded: demo/native/int8; in requests `demo` will do
  GET  /health               200 when a model is ready
  POST /tokenize, POST /detokenize, GET /tokenizer_info
  POST /models/load, POST /models/unload   {"model": "gpt2"}, with a token of the role admin

Defaults are OpenAI's: temperature 1, top_p 1, no top_k, 16 tokens.
"""
EPILOG = """\
examples:
  gpt2d-http                                       on this machine alone, for the daemon on this machine
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Shall I"}'
  gpt2d-http 'tcp://host:5757#...'                 for a daemon elsewhere, by its connect line (- reads it from stdin)
  gpt2d-http --host 0.0.0.0 --tokens tokens.txt    for other machines

A file of tokens has a line `ROLE TOKEN` for each, and only you may read it (chmod 600). The role `generate` may use
what is loaded, `admin` may load and unload, too, where the key of this door may:

  python3 -c 'import secrets; print("generate", secrets.token_urlsafe())' >> tokens.txt

HTTP is not encrypted: whoever sees the network reads texts and tokens. Beyond one machine put a proxy with TLS before
it, or leave it on loopback and use `ssh -L 8000:127.0.0.1:8000 HOST`.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="gpt2d-http",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "server",
        nargs="?",
        default=DEFAULT_ENDPOINT,
        help="the daemon's endpoint or its connect line; - reads it from stdin (default: %(default)s)",
    )
    made.add_argument("--server-key", metavar="KEY", help="the daemon's public key, if you have no connect line")
    made.add_argument("--key", type=Path, metavar="FILE", help="the file of your own secret key, likewise")
    made.add_argument("--host", default=HOST, help="the address to listen on (default: %(default)s)")
    made.add_argument("--port", type=int, default=PORT, help="its port; 0: any (default: %(default)s)")
    made.add_argument(
        "--tokens", type=Path, metavar="FILE", help="answer only requests with one of these bearer tokens"
    )
    made.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which this is reached, as a proxy's; addresses and localhost are answered anyway",
    )
    made.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin use it, as https://example.org (default: none)",
    )
    made.add_argument("--version", action="version", version=f"gpt2d {VERSION}")
    return made


def main() -> None:
    commands = parser()
    with printed_by("gpt2d-http"):
        args = commands.parse_args()
    try:
        address = find_server(args)
        tokens = read_tokens(args.tokens) if args.tokens else {}
    except (ValueError, OSError) as e:
        commands.error(str(e))
    except (KeyboardInterrupt, EOFError):
        sys.exit(130)
    if not tokens and not is_loopback(args.host):
        commands.error(
            f"--host {args.host} is reached by other machines: give --tokens FILE (see below in --help), so that not "
            "everybody there may use it"
        )
    guard = Guard({name.lower() for name in args.host_name}, set(args.cors), tokens)
    try:
        listener = listen(args.host, args.port)
    except (OSError, OverflowError) as e:
        reason = e.strerror if isinstance(e, OSError) else "a port is 0 to 65535"
        sys.exit(f"gpt2d-http: {args.host}:{args.port} cannot be listened on: {reason}; choose another --port")
    try:
        with contextlib.closing(listener):
            asyncio.run(serve(Door(address, guard), address, listener))
    except KeyboardInterrupt:
        sys.exit(130)
    except Gpt2dError as e:
        sys.exit(f"gpt2d-http: {e}")


def find_server(args: argparse.Namespace) -> Address:
    """Return the daemon that the arguments mean. Raises: ValueError."""
    text = given_line(args.server)
    try:
        return Address.parse(text, args.server_key, read_secret(args.key).secret if args.key else None)
    except KeyFileError:
        raise
    except ValueError as e:
        raise ValueError(f"{e}; the name of a saved server is for gpt2d-client alone") from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises: OSError, OverflowError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once where a socket says that it is TCP, which socket.create_server's do not: a
    # second request of a connection would get its first piece after the 40 ms that an acknowledgement may take.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


async def serve(door: Door, address: Address, listener: socket.socket) -> None:
    """Answer until a signal comes; then what is under way has a few seconds."""
    logging.basicConfig(format="gpt2d-http: %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        door.app(),
        http=Patient,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(HEAD_S),
        timeout_graceful_shutdown=SHUTDOWN_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    told = await meet(address)
    print(f"gpt2d-http: http://{shown}:{port}/v1 for {told}", file=sys.stderr, flush=True)
    await uvicorn.Server(config).serve([listener])


async def meet(address: Address) -> str:
    """Return what is at the other end. It need not be there yet."""
    key = address.key.secret if address.key else None
    async with AsyncClient(address.endpoint, server_key=address.server_key, key=key) as client:
        try:
            info = await client.hello(timeout=MEET_S)
        except Gpt2dError as e:
            return f"{address.endpoint}, where no requests can be answered yet: {e}"
    return f"{address.endpoint} ({info.host}), as {info.role}"


if __name__ == "__main__":
    main()
