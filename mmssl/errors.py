"""The exceptions that end a command with one message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, named: what, what was expected, what was found, what to do.

    Commands print its message without a traceback and exit with code 2.
    """


class AgainError(UserError):
    """A fault of this start: another one may well go further. Exit code 75."""


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the option nearest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
