"""Arguments of `gpt2d-client`."""

from __future__ import annotations

import argparse
import io
import os
import sys

from protocol.sockets import DEFAULT_ENDPOINT, check_endpoint

EPILOG = """\
examples:
  gpt2d-client                                      write at the prompt; /help lists the commands
  gpt2d-client --prompt "Shall I compare thee"      one generation, then exit
  echo "Shall I compare thee" | gpt2d-client --model demo --set temperature=0.8 --set seed=1

The text goes to stdout, everything else to stderr. `/set` at the prompt lists every setting with its range.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gpt2d-client",
        description="Write with a GPT-2 that a gpt2d-server holds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("endpoint", nargs="?", default=DEFAULT_ENDPOINT, help="where the server listens (default: %(default)s)")
    parser.add_argument("-p", "--prompt", help="do one generation and exit (a prompt on stdin does the same)")
    parser.add_argument("-m", "--model", help="load this model first, if it is not loaded")
    parser.add_argument("--engine", help="its engine (default: the server's)")
    parser.add_argument("--precision", help="its precision (default: the engine's)")
    parser.add_argument("-n", "--max-new-tokens", metavar="N", help="how many tokens to write at most")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a generation setting; may be repeated"
    )
    args = parser.parse_args()
    try:
        check_endpoint(args.endpoint)
    except ValueError as e:
        parser.error(str(e))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # whatever the system's code page is
    try:
        sys.exit(run(args))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the text has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; return the exit code."""
    from client.terminal import Choice, Terminal
    from protocol.errors import Gpt2dError

    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n")
    settings = [*args.settings, *([f"max_new_tokens={args.max_new_tokens}"] if args.max_new_tokens else [])]
    with Terminal(args.endpoint) as terminal:
        try:
            terminal.start(Choice(args.model, args.engine, args.precision), settings, hint=prompt is None)
            if prompt is None:
                return terminal.interact()
            if sys.stdout.isatty():
                print(prompt, end="", flush=True)
            return 0 if terminal.write(prompt) else 130
        except (Gpt2dError, ValueError) as e:
            terminal.say(f"gpt2d-client: {e}")
            return 1


if __name__ == "__main__":
    main()
