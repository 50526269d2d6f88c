"""Commands `gpt2d-client score` and `gpt2d-client generate`: a file of texts in, a table out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from client.amounts import counted
from client.corpus import continuing, scoring
from client.corpus.journal import Done, Journal, Position
from client.corpus.model import Model, choose
from client.corpus.output import ENDS, Sheet, format_of
from client.corpus.progress import Bar, say
from client.corpus.tables import Table
from protocol import Client, messages as m
from protocol.errors import Gpt2dError
from protocol.keys import DEFAULT_ENDPOINT, Address
from protocol.many import part_bytes
from protocol.parameters import read_settings
from protocol.programs import add_settings, command, printed_by, typed
from protocol.requests import request

MOST_NAMED = 20
"""Most refused texts that are named."""
FILES = """\
FILE is one of
  .txt            a text a line, or with --per a text a paragraph, a text a file; blank lines are skipped
  .csv .tsv       with the columns' names in the first line
  .jsonl          an object a line
all in UTF-8. The columns of a table are kept, and come first; then come file, where there are several, and of a .txt
line, at which a text begins.

What is done is kept, and after an interruption of any kind the same command goes on where it was: until all is done the
rows stand in OUT.part, and then in OUT. Files that were changed, other settings and another model are refused.

A text that the server refuses, as one with a character that the model does not have, ends nothing: it has a row without
values, and its file, its line and the reason are printed.

exit codes: 0 all is done; 3 all is done, but texts were refused; 1 it ended with an error, which says what to do;
2 the command is wrong; 130 Ctrl-C
"""
SCORE = """\
examples:
  gpt2d-client score sentences.txt --unit word --out surprisal.csv --model gpt2
  gpt2d-client score items.csv --column target --context-column preamble --unit word --out items-words.csv
  gpt2d-client score novel.txt --per file --unit word --stride 256 --out novel.csv --connect host

The output has a row for each word (--unit word) or token. start and end are characters of the text, from 0; texts,
words and tokens are numbered from 1.
  word    text_number, word_number, word, start, end, surprisal_bits, and of the word's first token
          first_token_entropy_bits, first_token_rank, first_token_greedy
  token   text_number, token_number, token, token_id, start, end, surprisal_bits, entropy_bits, rank, greedy, and with
          --top K: top_1, top_1_surprisal_bits, ...
Surprisals are -log2 of a probability. What a word is and how its probability is computed: docs/scoring.md. A text of no
words has one row, with nothing in our columns. A table's texts stand beside each word as long as none is longer than
2,000 characters. The space between a context and its text may be in either, or in neither. Read it with
  pandas   pandas.read_csv("surprisal.csv", keep_default_na=False, na_values=[""])
  R        read.csv("surprisal.csv", na.strings = "")
so that words like NA and null stay words.

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
    args.words = words
    if words[0] == "score" and args.unit == "word" and args.top:
        parser.error("--top tells the likeliest tokens, and words are asked for; leave it out, or ask for --unit token")
    try:
        address = find_server(args)
        args.format = format_of(args.out, args.format)
    except ValueError as e:
        parser.error(str(e))
    except (KeyboardInterrupt, EOFError):
        return 130
    try:
        if any(file.exists() and args.out.exists() and file.samefile(args.out) for file in args.files):
            raise ValueError(f"{args.out} is what is to be read; give another --out")
        table = Table(args.files, args.column, args.context_column, args.per)
        table.look()
        with Client(address.line()) as client:
            info = client.hello()
            keep(address)
            model = choose(client, args.model, args.engine, args.precision)
            if words[0] == "score":
                return score(args, client, table, model)
            return generate(args, client, table, model, {p.name: p for p in info.parameters})
    except KeyboardInterrupt:
        return 130
    except (Gpt2dError, ValueError) as e:
        say(f"gpt2d-client: {e}")
    except OSError as e:
        say(f"gpt2d-client: {e.filename or args.out}: {e.strerror or e}")
    return 1


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    scores = name == "score"
    does = "Tell how surprising every word of a file's texts is" if scores else "Continue every text of a file"
    parser = argparse.ArgumentParser(
        prog=f"gpt2d-client {name}",
        description=f"{does}, with a GPT-2 that a gpt2d-server holds.",
        epilog=(SCORE if scores else GENERATE) + FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the texts, see below")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help=f"the table to write, whose name ends in {', '.join(ENDS)}"
    )
    parser.add_argument("--format", choices=list(dict.fromkeys(ENDS.values())), help="its format, whatever its name")
    parser.add_argument("--overwrite", action="store_true", help="replace an OUT that is there already")
    parser.add_argument(
        "--column",
        default="text" if scores else "prompt",
        metavar="NAME",
        help="the column that has the texts (default: %(default)s)",
    )
    parser.add_argument(
        "--per", choices=("line", "paragraph", "file"), default="line", help="what a text is in a .txt (default: line)"
    )
    if scores:
        add_scoring(parser)
    else:
        parser.set_defaults(context_column=None)
        add_settings(parser)
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
    return parser


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add what only `score` takes."""
    parser.add_argument("--unit", choices=("token", "word"), default="token", help="what has a row (default: token)")
    parser.add_argument(
        "--context-column", metavar="NAME", help="the column with what stands before each text, unscored"
    )
    parser.add_argument(
        "--bos",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether the token that the model begins with stands before a text: where it has no context (auto, the "
        "default), always, or never; then the first token has no value",
    )
    parser.add_argument(
        "--stride",
        type=number_from(1),
        metavar="N",
        help="distance in tokens of the windows in which a text longer than the model's context is scored: smaller is "
        "slower, and gives each token more context (default: 512, or half the context where that is less)",
    )
    parser.add_argument(
        "--top", type=number_from(0), default=0, metavar="K", help="tell the K likeliest tokens, too, 20 at most"
    )


def number_from(least: int) -> Callable[[str], int]:
    """Return a type of argparse's: whole numbers of at least `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    number.__name__ = f"whole number >= {least}"  # argparse's message names it
    return number


def score(args: argparse.Namespace, client: Client, table: Table, model: Model) -> int:
    """Score the texts of a table; return the exit code. Raises: Gpt2dError, ValueError, OSError."""
    asked = scoring.Asked(args.unit, args.bos, args.stride, args.top)
    beside = scoring.kept(table)
    for name in [name for name in table.columns if name not in beside and not table.plain]:
        say(f"column {name!r} is left out: one of its texts has {table.longest:,} characters, repeated for each word")
    sheet = Sheet(args.format, {name: table.kinds.get(name, set()) for name in beside}, scoring.columns(table, asked))
    shaped = asked.settings | {"context column": args.context_column}
    if (limit := part_bytes(asked.top, asked.stride, model.context)) < part_bytes(asked.top):
        shaped["size of parts"] = limit  # one that was begun with other parts has counted others
    return write(args, table, model, sheet, shaped, lambda at: scoring.scored(client, table, model, asked, at))


def generate(
    args: argparse.Namespace, client: Client, table: Table, model: Model, there: dict[str, m.Parameter]
) -> int:
    """Continue the texts of a table; return the exit code. Raises: Gpt2dError, ValueError, OSError."""
    more = [f"max_new_tokens={args.max_new_tokens}"] if args.max_new_tokens else []
    settings = read_settings(there, args.settings + more)
    request(m.Generate, settings, prompt="")  # a wrong value is no fault of a text
    kinds = {name: table.kinds.get(name, set()) for name in table.columns}
    sheet = Sheet(args.format, kinds, continuing.columns(table, settings))
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
    if len(table.files) > 1:
        shaped["order of files"] = [str(file) for file in table.files]
    for name in sheet.renamed:
        say(f"the input has a column {name.removeprefix('gpt2d_')!r}; ours is {name!r}")
    with Journal(args.out, shaped, sheet.header, overwrite=args.overwrite) as journal:
        bar = Bar(table.count, table.characters, journal.position)
        if journal.position.done:
            say(f"going on after {bar.told()}")
        else:
            say(f"{counted(table.count, 'text')}, by {model.name}")
        try:
            with contextlib.closing(bar):
                for done in source(journal.position):
                    before = journal.position.refused
                    journal.write(done, sheet.rows(done.rows))
                    bar.add(done)
                    if before < journal.position.refused <= MOST_NAMED:
                        bar.note(done.refused)
            table.check_unchanged()
            journal.finish(sheet.convert if args.format == "parquet" else None)
        except KeyboardInterrupt:
            say(f"stopped; {kept(journal, again(args, model))}")
            return 130
        except (Gpt2dError, OSError):
            say(kept(journal, again(args, model)))
            raise
    say(f"{args.out}: {counted(table.count, 'text')}, {counted(bar.tokens, 'token')} in {bar.seconds:.1f} s")
    if refused := journal.position.refused:
        were = "was" if refused == 1 else "were"
        named = f" (the first {MOST_NAMED} were named)" if refused > MOST_NAMED else ""
        say(f"{counted(refused, 'text')} {were} refused{named}: a row without values stands for each")
        return 3
    return 0


def again(args: argparse.Namespace, model: Model) -> str:
    """Return the command that goes on: it names the model, which a restarted server has to load, and no secret."""
    server = str(args.server)
    words = [word.replace(server, "-") if "#" in server else word for word in args.words]
    named = [] if args.model else [f"--{name}={value}" for name, value in model.which.items()]
    return f"{command('gpt2d-client')} {typed(words[0], *named, *words[1:])}"


def kept(journal: Journal, line: str) -> str:
    """Return what an interruption leaves, and how to go on."""
    if not journal.position.done:
        return "nothing is done yet"
    return f"what is done is kept in {journal.part}; this goes on where it was:\n  {line}"
