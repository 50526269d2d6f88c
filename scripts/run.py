#!/usr/bin/env python3
"""Try gpt2d: install it into .venv, start the daemon with the embedded model, open the window.

    python3 scripts/run.py                                   the window; without a display, a prompt in the terminal
    python3 scripts/run.py --terminal                        a prompt in the terminal
    python3 scripts/run.py --prompt "Shall I compare thee"   one generation
    python3 scripts/run.py --no-client                       only the daemon, in the foreground
    python3 scripts/run.py --serve                           a daemon for other machines, with keys; prints the line
                                                             to paste there
    python3 scripts/run.py --connect 'tcp://host:5757#...'   that line: installs the client, keeps the key, connects

A daemon that already answers on the endpoint is used. One that is started here for a window, a terminal or a text goes
on for whoever joins it, and ends once nobody has been connected for a minute; --no-client and --serve end with Ctrl-C.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import contextlib
    import ipaddress
    import re
    import shutil
    import signal
    import subprocess
    import time
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import ending
    import environment
    import shared_daemon
    from own_addresses import own_addresses
    from shared_daemon import START_S, listening
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

PORT = 5757
DEFAULT_ENDPOINT = f"tcp://127.0.0.1:{PORT}"
ANY = "*"
"""Every address of this machine, of both families, and only ever with keys."""
EVERY = {ANY, "0.0.0.0", "[::]"}  # noqa: S104
ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that end this command and its client: somebody asked for it, or its terminal was closed."""
PASTE = """
{where}:

{lines}

It is a secret: whoever has it may use this server, and load and unload its models.
Somebody else gets a key that may only generate, with
`{keygen} client NAME --role generate --endpoint tcp://HOST:PORT`.
Take a key back by deleting its file in the folder of authorised keys. Ctrl-C stops the server.
"""
LINE = "  python3 scripts/run.py --connect '{line}'"
ONE = "On the other machine, in a checkout of gpt2d, paste this line"
SEVERAL = "On the other machine, in a checkout of gpt2d, paste the line whose address it can reach"
NONE = "This machine has no address that others reach, so this line works here alone (and through `ssh -L`)"
AFTER_THE_TEXT = """
the window:  {run}
a terminal:  {run} --terminal
a script:    {python} -c "{script}"  # within {seconds} s
"""
"""Printed after the first text, while the daemon that was started for it goes on. It can be pasted: a shell that knows
no such comment hands the words to the script."""
SCRIPT = "from protocol import Client; print(Client({}).generate('To be').text)"


def run_in_foreground(
    command: list[str | Path], when_started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None
) -> int:
    """Run a program that handles Ctrl-C itself, which the terminal sends to both; what ends this is passed on.

    It begins with Ctrl-C held back, since no interpreter is ready for it, and lets it through in its first lines.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the program would inherit
    with held_back():
        child = subprocess.Popen(command, env=environment.surroundings())
    for number in ENDING:
        signal.signal(number, lambda number, _: child.send_signal(number))
    try:
        when_started(child)
        return child.wait()
    except OSError:  # what it had to say cannot be written
        shared_daemon.stop(child)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold Ctrl-C back from this process and those that it starts meanwhile, where the system has that."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def address_of(text: str) -> tuple[str, int]:
    """Read HOST, HOST:PORT or tcp://HOST:PORT, of IPv6 [HOST]:PORT or HOST; * is every address of this machine.

    Raises: ValueError.
    """
    text = text.removeprefix("tcp://")
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    found = re.fullmatch(r"([^][/@:]+|\[[\da-fA-F:.]+(?:%[\w.-]+)?\])(?::0*([1-9][0-9]{0,4}))?", text)
    try:
        if not found:
            raise ValueError
        if found[1].startswith("["):
            ipaddress.IPv6Address(found[1][1:-1])
    except ValueError:
        raise ValueError(
            f"{text!r}: an address looks like 192.168.1.5, 192.168.1.5:5757, [fd00::1]:5757 or tcp://192.168.1.5:5757"
        ) from None
    return found[1], int(found[2] or PORT)


def keygen(*words: str) -> str:
    """Run gpt2d-keygen and return what it printed; exit with what it says if it fails."""
    command: list[str | Path] = [environment.PYTHON, "-P", "-m", "server.keygen", *words]
    done = subprocess.run(
        command, env=environment.surroundings(), capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        sys.exit(done.stderr.strip())
    return done.stdout.strip()


def more_of_it(endpoint: str) -> str:
    """Return the commands that somebody may want who has just seen the first text, to be pasted where he is."""
    words = [sys.executable, sys.argv[0]]
    name = Path(sys.executable).name
    if shutil.which(name) == sys.executable:
        words[0] = name
    elsewhere = endpoint != DEFAULT_ENDPOINT
    return AFTER_THE_TEXT.format(
        run=shared_daemon.quoted(*words, *(["--endpoint", endpoint] if elsewhere else [])),
        python=shared_daemon.quoted(shared_daemon.shown(environment.PYTHON)),
        script=SCRIPT.format(repr(endpoint) if elsewhere else ""),
        seconds=shared_daemon.IDLE_S,
    ).rstrip()


def serve(address: tuple[str, int], preload: str) -> int:
    """Run a daemon with keys in the foreground, and say how another machine connects."""
    host, port = address
    reach, here = [host], f"tcp://{host}:{port}"
    if host in EVERY:
        reach, here = own_addresses(), "tcp://[::1]" if host == "[::]" else "tcp://127.0.0.1"
        reach, here = [f"[{a}]" if ":" in a else a for a in reach], f"{here}:{port}"
    if listening(here):
        found = shared_daemon.look(here)
        end = "stop it" if found.trouble else found.how_to_end()
        sys.exit(f"something listens on port {port} already: {end}, or choose another: --serve {host}:PORT")
    keys = Path(keygen("folder"))
    lines = [keygen("client", "owner", "--endpoint", f"tcp://{address}:{port}") for address in reach or ["127.0.0.1"]]
    where = {0: NONE, 1: ONE}.get(len(reach), SEVERAL)
    command: list[str | Path] = [environment.PYTHON, "-P", "-m", "server"]
    command += [f"--endpoint=tcp://{host}:{port}", f"--preload={preload}"]
    command += [f"--key={keys / 'server.key'}", f"--authorised-keys={keys / 'authorised'}"]

    def print_line(daemon: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + START_S
        while daemon.poll() is None and time.monotonic() < give_up:
            if listening(here):
                program = shared_daemon.quoted(shared_daemon.shown(environment.BIN / "gpt2d-keygen"))
                shown = "\n".join(LINE.format(line=line) for line in lines)
                print(PASTE.format(where=where, lines=shown, keygen=program), flush=True)
                return
            time.sleep(0.05)

    return run_in_foreground(command, print_line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", metavar="TEXT", help="do one generation and exit")
    parser.add_argument("--seed", type=int, metavar="N", help="write the same text each time")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="how many tokens to write at most")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="which model to load (default: demo; with --connect: what the server has loaded)",
    )
    parser.add_argument("--precision", metavar="P", help="int8, int4 or fp32 (default: int8)")
    parser.add_argument("--endpoint", default=DEFAULT_ENDPOINT, help="where the daemon listens (default: %(default)s)")
    parser.add_argument(
        "-t", "--terminal", action="store_true", help="write at a prompt in this terminal instead of in a window"
    )
    parser.add_argument(
        "--no-compiler",
        action="store_true",
        help="never fetch a C++ compiler where there is none: use the slower engine onnx (remembered)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--no-client", action="store_true", help="only the daemon, in the foreground")
    what.add_argument(
        "--serve",
        nargs="?",
        const=f"{ANY}:{PORT}",
        metavar="ADDRESS",
        help="a daemon that other machines reach, on all addresses or this one; makes keys where there are none",
    )
    what.add_argument(
        "--connect",
        metavar="LINE",
        help="the line that --serve printed, the name of a server that was kept, or - to type it",
    )
    args = parser.parse_args()

    try:
        address = address_of(args.serve) if args.serve is not None else ("", 0)
    except ValueError as e:
        parser.error(str(e))
    if not re.fullmatch(r"tcp://[^/@]+:[1-9][0-9]*", args.endpoint):
        parser.error(f"{args.endpoint!r}: an endpoint looks like tcp://127.0.0.1:5757")
    if args.connect is None:
        args.model = args.model or "demo"
    names = ("model", "precision", "max_new_tokens", "prompt")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    options += ["--terminal"] if args.terminal else []
    options += [f"--set=seed={args.seed}"] if args.seed is not None else []
    if args.connect is not None:
        environment.prepare(environment.CLIENT)
        return run_in_foreground([environment.PYTHON, "-P", "-m", "client", args.connect, *options])
    environment.prepare(environment.LIGHT, ziglang=not args.no_compiler)
    preload = f"{args.model}//{args.precision}" if args.precision else args.model
    if args.serve is not None:
        return serve(address, preload)
    if args.no_client:
        if found := shared_daemon.find(args.endpoint):
            sys.exit(f"a daemon runs on {args.endpoint} already: {found.how_to_end()}, or choose another --endpoint")
        return run_in_foreground(
            [environment.PYTHON, "-P", "-m", "server", f"--endpoint={args.endpoint}", f"--preload={preload}"]
        )
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(143))
    started = shared_daemon.join_or_start(args.endpoint, preload)
    code = run_in_foreground([environment.PYTHON, "-P", "-m", "client", args.endpoint, *options])
    if started and args.prompt is not None and code == 0:
        print(more_of_it(args.endpoint), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    ending.run(main)
