"""Command `gpt2d-client generate`: a file of texts in, a table out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from client.corpus import continuing
from client.corpus.journal import Done, Journal, Position
from client.corpus.model import Model, choose
from client.corpus.output import ENDS, Sheet, format_of
from client.corpus.progress import Bar, say
from client.corpus.tables import Table
from protocol import Client, messages as m
from protocol.errors import Gpt2dError
from protocol.keys import DEFAULT_ENDPOINT, Address
from protocol.parameters import read_settings
from protocol.programs import command, printed_by, typed

NAMES = ("generate",)
FILES = """\
FILE is one of
  .txt            a text a line, or with --per a text a paragraph, a text a file; blank lines are no texts
  .csv .tsv       with the columns' names in the first line
  .jsonl          an object a line
all in UTF-8. The columns of a table are kept, and come first.

What is done is kept, and after an interruption of any kind the same command goes on where it was: until all is done the
rows stand in OUT.part, and then in OUT. Files that were changed, other settings and another model are refused.

exit codes: 0 all is done; 1 it ended with an error, which says what to do; 2 the command is wrong; 130 Ctrl-C
"""
GENERATE = """\
examples:
  gpt2d-client generate prompts.jsonl --out written.jsonl --model demo
  gpt2d-client generate stories.csv --column beginning -n 60 --set temperature=0.8 --set n=3 --out stories-3.csv
  gpt2d-client generate lines.txt --connect host --set strategy=greedy --set "stop=\\n" --out lines.parquet

The output has a row for each continuation: text_number, continuation, generated, finish_reason, new_tokens,
prompt_truncated, seed. The first text is written with --set seed=N (default: 0), each of the others with the seeds that
follow, so that the same command writes the same texts. `/set` in gpt2d-client lists every setting with its range.

"""


def main(
    words: list[str], find_server: Callable[[argparse.Namespace], Address], keep: Callable[[Address], None]
) -> int:
    """Do what the words of a command say; return the exit code. `keep` saves the line of a server that answers."""
    parser = parser_of(words[0])
    with printed_by("gpt2d-client"):
        args = parser.parse_args(words[1:])
    args.again = typed(command("gpt2d-client"), *words)
    try:
        address = find_server(args)
        args.format = format_of(args.out, args.format)
    except ValueError as e:
        parser.error(str(e))
    except (KeyboardInterrupt, EOFError):
        return 130
    try:
        table = Table(args.files, args.column, None, args.per)
        table.look()
        with Client(address.line()) as client:
            info = client.hello()
            keep(address)
            model = choose(client, args.model, args.engine, args.precision)
            return generate(args, client, table, model, {p.name: p for p in info.parameters})
    except KeyboardInterrupt:
        return 130
    except (Gpt2dError, ValueError) as e:
        say(f"gpt2d-client: {e}")
    except OSError as e:
        say(f"gpt2d-client: {e.filename or args.out}: {e.strerror}")
    return 1


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    parser = argparse.ArgumentParser(
        prog=f"gpt2d-client {name}",
        description="Continue every text of a file, with a GPT-2 that a gpt2d-server holds.",
        epilog=GENERATE + FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the texts, see below")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help=f"the table to write, whose name ends in {', '.join(ENDS)}"
    )
    parser.add_argument("--format", choices=list(dict.fromkeys(ENDS.values())), help="its format, whatever its name")
    parser.add_argument("--overwrite", action="store_true", help="replace an OUT that is there already")
    parser.add_argument("--column", default="prompt", help="the column that has the texts (default: %(default)s)")
    parser.add_argument(
        "--per", choices=("line", "paragraph", "file"), default="line", help="what a text is in a .txt (default: line)"
    )
    parser.add_argument(
        "--connect",
        default=DEFAULT_ENDPOINT,
        metavar="SERVER",
        dest="server",
        help="the server: its endpoint, its connect line, or the name of a saved server; - reads it from stdin "
        "(default: %(default)s)",
    )
    parser.add_argument("--server-key", metavar="KEY", help="the server's public key, if you have no connect line")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the file of your own secret key, likewise")
    parser.add_argument(
        "-m", "--model", help="the model, which is loaded if it is not (default: the one that is loaded)"
    )
    parser.add_argument("--engine", help="its engine (default: the server's)")
    parser.add_argument("--precision", help="its precision (default: the engine's)")
    parser.add_argument("-n", "--max-new-tokens", metavar="N", help="the largest number of tokens to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a generation setting; may be repeated, and a list (stop, bad_words, logit_bias) then grows",
    )
    return parser


def generate(
    args: argparse.Namespace, client: Client, table: Table, model: Model, there: dict[str, m.Parameter]
) -> int:
    """Continue the texts of a table; return the exit code. Raises: Gpt2dError, ValueError, OSError."""
    more = [f"max_new_tokens={args.max_new_tokens}"] if args.max_new_tokens else []
    settings = read_settings(there, args.settings + more)
    sheet = Sheet(args.format, table.kinds, continuing.columns(table, settings))
    shaped = {"settings": continuing.DEFAULTS | settings}
    return write(
        args, table, model, sheet, shaped, lambda at: continuing.continued(client, table, model, settings, at.done)
    )


def write(
    args: argparse.Namespace,
    table: Table,
    model: Model,
    sheet: Sheet,
    settings: dict[str, Any],
    source: Callable[[Position], Iterator[Done]],
) -> int:
    """Write what a source yields from a position on; return the exit code. Raises: ValueError, OSError, Gpt2dError."""
    shaped = settings | {"format": args.format, "column": args.column, "per": args.per, "model": model.identity}
    shaped["files"] = table.digests
    for name in sheet.renamed:
        say(f"the input has a column {name.removeprefix('gpt2d_')!r}; ours is {name!r}")
    with Journal(args.out, shaped, sheet.header, overwrite=args.overwrite) as journal:
        bar = Bar(table.count, table.characters, journal.position)
        if journal.position.done:
            say(f"going on after {journal.position.texts:,} of {table.count:,} texts")
        else:
            say(f"{table.count:,} texts, by {model.name}")
        kept = f"what is done is kept in {journal.part}; this goes on where it was:\n  {args.again}"
        try:
            with contextlib.closing(bar):
                for done in source(journal.position):
                    journal.write(done, sheet.rows(done.rows))
                    bar.add(done)
            table.check_unchanged()
            journal.finish(sheet.convert if args.format == "parquet" else None)
        except KeyboardInterrupt:
            say(f"stopped; {kept}")
            return 130
        except (Gpt2dError, OSError):
            say(kept)
            raise
    say(f"{args.out}: {table.count:,} texts, {bar.tokens:,} tokens in {bar.seconds:.1f} s")
    return 0
