"""The commands' parsers: help with a worked example, errors in one message.

A command module has `add(subparsers)` and one function per command; it imports its room
inside that function.
"""

import argparse
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
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
    body = cells[bool(header) :]
    numeric = [
        all(re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)?%?|-|nan", row[i]) for row in body)
        for i in range(len(widths))
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

    Says how many a second and how long it will take. Elsewhere (a log file) a line
    every tenth of the way.
    """
    live = sys.stderr.isatty()
    started = time.monotonic()
    first = last = -1

    def show(done: int, total: int, message: str) -> None:
        nonlocal started, first, last
        if done == last == total:
            return
        if first < 0:
            first = done
        if done == first:  # what was there at the start took no time
            started = time.monotonic()
        tenth = last < 0 or done * 10 // total > last * 10 // total
        seconds = time.monotonic() - started
        rate = (done - first) / seconds if seconds > 0 else 0.0
        text = f"{done}/{total} {what}  {message}"
        if seconds > 2 and rate > 0:
            text += f"  {rate:.3g}/s, {duration((total - done) / rate)} left"
        if live:
            end = "\n" if done == total else ""
            print(f"\r{text[:79]:<79}", end=end, file=sys.stderr, flush=True)
        elif tenth:
            print(text, file=sys.stderr, flush=True)
        last = done

    return show


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h or 5.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def counts(counts: Mapping[str, Any], most: int = 8) -> str:
    """A name and a count after the other, the first few of them."""
    shown = [f"{name} {count}" for name, count in list(counts.items())[:most]]
    more = [f"{len(counts) - most} more"] if len(counts) > most else []
    return ", ".join(shown + more) or "none"


def add_overwrite(parser: Any) -> None:
    """The option that replaces a folder."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier call of this command wrote there",
    )


def add_workers(parser: Any) -> None:
    """The option of how many processes decode."""
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        default=os.cpu_count() or 1,
        help="processes that read the media (default: one per core, %(default)s here)",
    )


def positive(text: str) -> int:
    """The type of an argument that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1, found {text}"
        )
    return value


positive.__name__ = "whole number"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
