"""`mmssl COMMAND`: finds the command, runs it, and turns failures into one message.

Nothing heavy is imported here or in a command's parser: `mmssl --help` starts fast, and
a command imports its room when it runs.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence

import mmssl
from mmssl import commands
from mmssl.commands import (
    bench,
    check,
    checkpoint,
    data,
    doctor,
    evaluate,
    results,
    train,
)
from mmssl.errors import AgainError, UserError

OK, FAILED, USAGE, INTERRUPTED, RESUME = 0, 1, 2, 130, 75
"""Exit codes: 75 (EX_TEMPFAIL) = the same command again goes on."""

GROUPS = (data, train, evaluate, results, checkpoint, check, bench, doctor)

EPILOG = """\
The whole road:
  mmssl data build --folder MEDIA --out DATA     your media files to a dataset
  mmssl data tokenizer --data DATA               a tokenizer from its text
  mmssl train --config configs/demo.py --workdir RUN --config.data.path=DATA
  mmssl eval --workdir RUN                       beside its random initialisation
  mmssl export --workdir RUN --out ENCODER       safetensors; mmssl.load(ENCODER)
  mmssl report --workdir RUN                     one HTML file

`mmssl COMMAND --help` explains each, with an example. MMSSL_DEBUG=1 shows tracebacks.
Exit codes: 0 done; 1 something is broken; 2 bad input; 75 interrupted, the same
command resumes; 130 stopped from the keyboard.
"""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_WORDS = ("No space left on device", "Disk quota exceeded")
PATH_FAULTS = {
    errno.ENOENT: "does not exist",
    errno.EACCES: "permission denied; check who may read and write it",
    errno.EPERM: "permission denied; check who may read and write it",
    errno.EROFS: "is on a read-only file system; choose another folder",
    errno.ENOTDIR: "is below a file, not a folder",
    errno.EISDIR: "is a folder; a file was expected",
    errno.EEXIST: "exists already",
    errno.ENAMETOOLONG: "is too long a name for this file system",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the console script exits with what it returns."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except BaseException as error:
        code = report(error)
        if code is None:
            raise
        return code


def report(error: BaseException) -> int | None:
    """Says what went wrong. The exit code, or None where only a traceback helps."""
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) has gone; leave nothing for the exit to flush into.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    if os.environ.get("MMSSL_DEBUG"):
        return None
    if isinstance(error, KeyboardInterrupt):
        print("mmssl: stopped", file=sys.stderr)
        return INTERRUPTED
    message = explain(error)
    if message is None:
        return None
    print(f"mmssl: error: {message}", file=sys.stderr)
    return RESUME if isinstance(error, AgainError) else USAGE


def run(argv: Sequence[str]) -> int:
    """Parses and runs; lets every exception out."""
    rest, overrides = split_overrides(argv)
    # Python block-buffers a redirected stdout; progress belongs in the log at once.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    arguments = parser().parse_args(rest)
    if overrides and not hasattr(arguments, "overrides"):
        raise UserError(
            f"unexpected argument {overrides[0]!r}: only commands with a --config "
            "read overrides of it"
        )
    if overrides:
        arguments.overrides = overrides
    return arguments.run(arguments) or OK


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = commands.Parser(
        prog="mmssl",
        description="Self-supervised pretraining from video, audio and text: from a "
        "folder of media files to a pretrained, evaluated, exported encoder.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=mmssl.__version__)
    subparsers = commands.subcommands(top)
    for group in GROUPS:
        group.add(subparsers)
    return top


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of the arguments."""
    rest: list[str] = []
    overrides: list[str] = []
    items = iter(argv)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
        elif "=" in item:
            overrides.append(item)
        else:
            value = next(items, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{item} needs a value: {item}=VALUE")
            overrides.append(f"{item}={value}")
    return rest, overrides


def explain(error: BaseException) -> str | None:
    """What a user can do about it; None where only a traceback helps."""
    if isinstance(error, UserError):
        return str(error)
    for cause in chain(error):
        if disk_full(cause):
            path = getattr(cause, "filename", None)
            where = f" while writing {str(path)!r}" if path else ""
            return (
                f"the disk is full{where}; free some space or choose another folder, "
                f"then run the same command again ({cause})"
            )
    if isinstance(error, OSError) and error.errno in PATH_FAULTS and error.filename:
        return f"{str(error.filename)!r} {PATH_FAULTS[error.errno]}"
    return None


def disk_full(error: BaseException) -> bool:
    """Whether it says so: libraries wrap ENOSPC in errors of their own."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return any(words in str(error) for words in DISK_FULL_WORDS)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


if __name__ == "__main__":
    sys.exit(main())
