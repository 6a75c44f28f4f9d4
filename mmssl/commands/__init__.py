"""The commands' parsers: help with a worked example, errors in one message.

A command module has `add(subparsers)` and one function per command; it imports its room
inside that function.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmssl.errors import nearest

Run = Callable[[argparse.Namespace], int | None]
"""A command: parsed arguments to exit code (None = 0)."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that keeps line breaks, abbreviates nothing, exits with 2."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        print(f"mmssl: error: {message}\nSee `{self.prog} --help`.", file=sys.stderr)
        sys.exit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but an unknown option is the first thing it complains about."""
        items = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:
            for item in items:
                word = item.partition("=")[0]
                if word.startswith("--") and word not in self._option_string_actions:
                    hint = nearest(word, self._option_string_actions)
                    self.error(f"unexpected argument {item!r}{hint}")
        found, unknown = super().parse_known_args(items, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"unknown {value!r}{nearest(str(value), known)}; "
                f"known: {', '.join(known)}",
            )


def subcommands(parser: argparse.ArgumentParser) -> Any:
    """Where a parser's commands are added; naming one is required."""
    return parser.add_subparsers(
        metavar="COMMAND", dest=f"command of {parser.prog}", required=True
    )


def command(
    subparsers: Any,
    name: str,
    run: Run | None = None,
    *,
    summary: str,
    about: str,
    example: str,
) -> Parser:
    """One command's parser.

    Args:
      subparsers: from `subcommands`.
      name: what the user types.
      run: the command; None for a group that holds others.
      summary: one line for the parent's list.
      about: what it does, what it writes.
      example: a worked example.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(about, 80),
        epilog=f"Example:\n{textwrap.indent(textwrap.dedent(example).strip(), '  ')}",
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def table(rows: Sequence[Sequence[Any]], *, header: Sequence[str] = ()) -> str:
    """Columns of text, aligned; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in ([header] if header else [])]
    cells += [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    body = cells[1:] if header else cells
    numeric = [
        all(re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)?%?|-|nan", cell) for cell in column)
        for column in zip(*body, strict=True)
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def counter(what: str) -> Callable[[int, int, str], None]:
    """A progress callback (done, total, message): one line on a terminal, kept short.

    Elsewhere (a log file) a line every tenth of the way.
    """
    live = sys.stderr.isatty()

    def show(done: int, total: int, message: str) -> None:
        if live:
            end = "\n" if done == total else ""
            text = f"\r{done}/{total} {what}  {message}"
            print(f"{text[:79]:<79}", end=end, file=sys.stderr, flush=True)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            print(f"{done}/{total} {what}  {message}", file=sys.stderr, flush=True)

    return show


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
