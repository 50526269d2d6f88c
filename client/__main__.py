"""Arguments of `gpt2d-client`."""

from __future__ import annotations

import sys

try:
    import signal

    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # scripts/run.py holds it back until here
    import argparse
    import io
    import os
    import stat
    import subprocess
    import threading
    import traceback
    from pathlib import Path

    from client.libraries import what_is_missing
    from protocol.keys import DEFAULT_ENDPOINT, Address, read_secret
    from protocol.programs import VERSION, add_settings, command, given_line, needed_by, printed_by

    with needed_by("gpt2d-client"):
        from client import servers, unseen
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)

EPILOG = """\
examples:
  gpt2d-client                                      the window, or the terminal if there is no display
  gpt2d-client --terminal                           write at a prompt; /help lists the commands
  gpt2d-client --prompt "Shall I compare thee"      one generation, then exit
  gpt2d-client 'tcp://host:5757#...'                a server on another machine, by the line that it printed
  echo "Shall I compare thee" | gpt2d-client --model demo --set temperature=0.8 --set seed=1
  gpt2d-client score sentences.txt --out surprisal.csv       surprisals of every token; see score --help
  gpt2d-client generate prompts.jsonl --out written.jsonl    continues every text of a file; see generate --help

The text goes to stdout, everything else to stderr. `/set` at the prompt lists every setting with its range.
"""

PATIENCE_S = 2.0
"""Seconds to wait for the end of a prompt on stdin before the user is told that it is missing."""
NOTHING = (
    "gpt2d-client: stdin is empty, and there is no terminal to write at; give the text with --prompt or through stdin "
    "(--prompt '' writes from nothing)"
)
NOT_UTF8 = (
    "gpt2d-client: the text on stdin is not UTF-8; convert it, as with `iconv -f LATIN1 -t UTF-8`, so that the model "
    "reads what you wrote"
)
IS_COMMAND = (
    "gpt2d-client: {name} is a command (`{program} {name} --help`), and a server is saved under the same name: "
    "`{program} -- {name}` connects to it"
)
NO_XWAYLAND = (
    "this Wayland session has no XWayland, which it needs; install it (Debian, Ubuntu: `apt install xwayland`; Fedora: "
    "`dnf install xorg-x11-server-Xwayland`) and log in again"
)


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in servers.COMMANDS:
        use_utf8()
        if len(sys.argv) == 2 and sys.argv[1] in servers.names():
            sys.exit(IS_COMMAND.format(name=sys.argv[1], program=command("gpt2d-client")))
        try:
            from client.corpus import commands

            sys.exit(commands.main(sys.argv[1:], find_server, keep))
        except KeyboardInterrupt:
            sys.exit(130)
    parser = argparse.ArgumentParser(
        prog="gpt2d-client",
        description="Write with a GPT-2 that a gpt2d-server holds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "server",
        nargs="?",
        default=DEFAULT_ENDPOINT,
        help="its endpoint (HOST:PORT will do, or an address alone), the connect line that it printed, or the name of "
        "a saved server; - reads it from stdin (default: %(default)s)",
    )
    parser.add_argument("--server-key", metavar="KEY", help="the server's public key, if you have no connect line")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="the file of your own secret key, if you have no connect line"
    )
    parser.add_argument("-p", "--prompt", help="continue this text once and exit (a text on stdin does the same)")
    parser.add_argument("-m", "--model", help="load this model first, if it is not loaded")
    parser.add_argument("--engine", help="its engine (default: the server's)")
    parser.add_argument("--precision", help="its precision (default: the engine's)")
    add_settings(parser)
    parser.add_argument(
        "-t", "--terminal", action="store_true", help="write at a prompt in this terminal instead of in a window"
    )
    launcher = parser.add_mutually_exclusive_group()
    launcher.add_argument(
        "--install-launcher",
        action="store_const",
        const="install",
        dest="launcher",
        help="put the window into the system's menu of programs, for this user, and say what was written",
    )
    launcher.add_argument(
        "--remove-launcher", action="store_const", const="remove", dest="launcher", help="take it out again"
    )
    parser.add_argument(
        "--from-menu",
        action="store_true",
        help="show in a dialog what goes wrong: the system's menu starts the window with this, where no terminal is",
    )
    parser.add_argument("--version", action="version", version=f"gpt2d {VERSION}")
    with printed_by("gpt2d-client"):
        args = parser.parse_args()
    use_utf8()
    if args.launcher:
        sys.exit(launch(args.launcher))
    try:
        args.address = find_server(args)
    except ValueError as e:
        parser.error(str(e))
    except (KeyboardInterrupt, EOFError):
        sys.exit(130)
    try:
        sys.exit(run(args))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the text has closed the pipe
        drop_output()
        sys.exit(141)
    except OSError as e:
        if e.filename is not None:
            raise
        drop_output()
        print(f"gpt2d-client: the text cannot be read or written: {e.strerror}", file=sys.stderr)
        sys.exit(1)


def use_utf8() -> None:
    """Read and print UTF-8, whatever the system's code page is. A byte order mark is not part of what is read."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def launch(what: str) -> int:
    """Install or remove the launcher, and print what was written or deleted; return the exit code."""
    from client.window import launcher

    try:
        files = launcher.install() if what == "install" else launcher.remove()
    except (OSError, subprocess.SubprocessError) as e:
        print(f"gpt2d-client: the launcher cannot be {what}{'d' if what == 'remove' else 'ed'}: {e}", file=sys.stderr)
        return 1
    done = "wrote" if what == "install" else "deleted"
    print("\n".join(f"{done} {file}" for file in files) or "there was no launcher")
    if what == "install":
        print(f"the menu of programs has {launcher.NAME} now; `{command('gpt2d-client')} --remove-launcher` undoes it")
    return 0


def drop_output() -> None:
    """Send what stdout still holds nowhere: the interpreter would try again to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def find_server(args: argparse.Namespace) -> Address:
    """Return the server that the arguments mean. Raises: ValueError."""
    text = given_line(args.server)
    if args.key or args.server_key:
        return Address.parse(text, args.server_key, read_secret(args.key).secret if args.key else None)
    return servers.resolve(text)


def has_input() -> bool:
    """True if a prompt comes through a pipe or from a file; not at a terminal, or without any stdin."""
    return sys.stdin is not None and not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)


def has_display() -> bool:
    """True if there is a screen for a window."""
    if sys.platform in {"win32", "darwin"}:
        return "SSH_CONNECTION" not in os.environ  # it would open where nobody sits, if at all
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(args: argparse.Namespace) -> str:
    """Open the window and stay until it is closed. Return why none can be opened, or nothing."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        return NO_XWAYLAND
    try:
        from client.window import loop as window
    except ImportError as e:
        return what_is_missing(e)
    try:
        window.main(args.address.line() if args.server != DEFAULT_ENDPOINT else None)
    except window.NoWindow as e:
        return f"{e}; see docs/troubleshooting.md in the checkout"
    return ""


def read_prompt() -> str:
    """Read stdin to its end. Say so where that takes a while: through ssh without -t it never ends by itself.

    Raises: UnicodeDecodeError.
    """
    said = "gpt2d-client: reading the prompt from stdin, to its end (Ctrl-D); for the window or the prompt use `ssh -t`"
    waiting = threading.Timer(PATIENCE_S, print, [said], {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    waiting.start()
    try:
        return sys.stdin.read().removesuffix("\n")
    finally:
        waiting.cancel()


def keep(address: Address) -> None:
    """Save a connect line that works, for the next time."""
    if address.key and address not in servers.kept():
        try:
            again = f"{command('gpt2d-client')} {servers.keep(address)}"
            print(f"saved; next time `{again}` is enough", file=sys.stderr)
        except OSError as e:
            print(f"the connect line cannot be saved in {servers.folder()}: {e.strerror}", file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit code."""
    if args.from_menu or (not args.terminal and args.prompt is None and not has_input() and has_display()):
        try:
            trouble = show(args)
        except Exception as e:
            if args.from_menu:
                unseen.tell(f"gpt2d has ended by a fault: {type(e).__name__}: {e}", traceback.format_exc())
            raise
        if not trouble:
            return 0
        if args.from_menu:
            unseen.tell(f"The window cannot be opened: {trouble}")
        goes_on = sys.stdin is not None and sys.stdin.isatty()
        instead = "this is the terminal instead" if goes_on else "--terminal does the same work in a terminal"
        print(f"gpt2d-client: the window cannot be opened: {trouble}; {instead}", file=sys.stderr)
        if not goes_on:
            return 1
    from client.terminal import Choice, Terminal
    from protocol.errors import Gpt2dError

    prompt = args.prompt
    if prompt is None and sys.stdin is None:
        print("gpt2d-client: stdin is closed, so no text can be read from it; use --prompt", file=sys.stderr)
        return 1
    if sys.stdout is None:
        print("gpt2d-client: stdout is closed, so no text can be written to it", file=sys.stderr)
        return 1
    if prompt is None and not sys.stdin.isatty():
        try:
            prompt = read_prompt()
        except UnicodeDecodeError:
            print(NOT_UTF8, file=sys.stderr)
            return 1
        if not prompt:
            print(NOTHING, file=sys.stderr)
            return 1
    settings = list(args.settings)
    if args.max_new_tokens:
        settings.append(f"max_new_tokens={args.max_new_tokens}")
    try:
        with Terminal(args.address) as terminal:
            info = terminal.meet()
            keep(args.address)
            terminal.start(info, Choice(args.model, args.engine, args.precision), settings, hint=prompt is None)
            if prompt is None:
                return terminal.interact()
            if sys.stdout.isatty():
                print(prompt, end="", flush=True)
            return 0 if terminal.write(prompt) else 130
    except (Gpt2dError, ValueError) as e:
        print(f"gpt2d-client: {e}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    main()
