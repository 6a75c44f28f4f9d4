"""What every benchmark shares: options, the machine, spread, interleaving, the JSON.

Knows nothing of what is measured. A results file names no host, no user and no folder.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from mmssl import cli, commands, doctor, files
from mmssl.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent

PACKAGES = (
    "mmssl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "grain",
    "tensorflow-datasets",
    "av",
    "numpy",
    "scikit-learn",
)

Figure = Mapping[str, Any]
"""One named figure: numbers by name ("median", "min", ...), and perhaps a "unit"."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a benchmark found.

    Attributes:
      summary: figure name to figure; what docs may quote.
      settings: what was measured: sizes, rounds, the config.
      details: anything else for the file: the single runs, the raw times.
      text: printed after the table of figures.
    """

    summary: Mapping[str, Figure]
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\nSee `{self.prog} --help`.\n")


def parser(name: str, *, about: str, example: str) -> argparse.ArgumentParser:
    """A benchmark's parser, with `--quick` and `--out`.

    Args:
      name: of the benchmark, as its file.
      about: what it measures.
      example: a worked example.
    """
    made = _Parser(
        prog=f"benchmarks/{name}.py",
        description=about,
        epilog=f"Example:\n  {example}\n\n--config.a.b=value sets a key of the config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="under a minute; shows that it runs, its figures mean nothing",
    )
    made.add_argument("--out", metavar="FILE.json", help="write the results there")
    made.add_argument(
        "--add",
        action="store_true",
        help="to the figures that --out holds already; `earlier` says how they came",
    )
    return made


Part = Callable[[bool, int], Measured]
"""(quick, rounds) -> what one part of a benchmark found."""


def add_parts(
    made: argparse.ArgumentParser,
    parts: Mapping[str, Part],
    *,
    default: str,
    rounds: str,
) -> None:
    """`--part` and `--rounds`, which `measure_parts` reads; the defaults in words."""
    made.add_argument("--part", nargs="+", choices=parts, help=f"default: {default}")
    made.add_argument("--rounds", metavar="N", type=int, help=f"default: {rounds}")


def measure_parts(
    parts: Mapping[str, Part],
    arguments: argparse.Namespace,
    *,
    names: Sequence[str],
    rounds: int,
) -> Measured:
    """The parts one after the other: those asked for, or `names`."""
    rounds = arguments.rounds or rounds
    chosen = arguments.part or names
    summary: dict[str, Figure] = {}
    settings: dict[str, Any] = {"parts": list(chosen), "rounds": rounds}
    details: dict[str, Any] = {}
    for name in chosen:
        own = parts[name](arguments.quick, rounds)
        summary |= own.summary
        settings |= own.settings
        details |= own.details
    return Measured(summary, settings, details)


def main(
    options: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Measured],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses, measures, prints the table of figures, writes `--out`.

    Args:
      options: from `parser`.
      measure: gets the parsed arguments, with `overrides` (list of str) among them.
      argv: None = the command line's.

    Returns:
      Exit code, as the command `mmssl` has them.
    """
    items = list(sys.argv[1:] if argv is None else argv)
    try:
        rest, overrides = cli.split_overrides(items)
        arguments = options.parse_args(rest)
        arguments.overrides = overrides
        out = None if arguments.out is None else pathlib.Path(arguments.out)
        if out is not None:  # found out now, not after an hour
            out.parent.mkdir(parents=True, exist_ok=True)
            probe = out.with_name(f"{out.name}.probe")
            probe.touch()
            probe.unlink()
        earlier = _earlier(arguments, out, options.prog)
        # Before anything is measured: both may change meanwhile.
        before, source = machine(), commit()
        print(f"{before['cpu']}, {before['cores']} cores; {before['devices']}")
        measured = measure(arguments)
    except Exception as error:
        message = cli.explain(error)
        if message is None or os.environ.get("MMSSL_DEBUG"):
            raise
        print(f"{options.prog}: error: {message}", file=sys.stderr)
        return cli.USAGE
    print(f"\n{table(measured.summary)}")
    if arguments.quick:
        print("\nquick: shows that it runs; quote none of these figures")
    if before["load"] > before["cores"]:
        print(f"\nthe machine was busy (load {before['load']}): quote no times")
    if measured.text:
        print(f"\n{measured.text}")
    if out is not None:
        content = document(options.prog, measured, arguments, items, before, source)
        write(out, joined(earlier, content) if earlier else content)
        print(f"\nwritten: {out}")
    return cli.OK


def document(
    name: str,
    measured: Measured,
    arguments: argparse.Namespace,
    argv: Sequence[str],
    described: Mapping[str, Any],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of a results file, JSON-able."""
    return {
        "benchmark": name,
        "quick": arguments.quick,
        "command": command(name, argv),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "git": dict(source),
        "machine": dict(described),
        "versions": versions(),
        "settings": dict(measured.settings),
        "summary": dict(measured.summary),
        **measured.details,
    }


HOW = ("command", "date", "git", "machine", "versions")


def joined(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both contents in one: new figures replace earlier ones of the same name.

    `earlier` in it lists how the rest was measured.
    """
    listed = [*earlier.get("earlier", []), {key: earlier[key] for key in HOW}]
    both = {key: {**earlier[key], **new[key]} for key in ("settings", "summary")}
    return {**earlier, **new, **both, "earlier": listed}


def _earlier(
    arguments: argparse.Namespace, out: pathlib.Path | None, name: str
) -> dict[str, Any]:
    """What the results are added to."""
    if not arguments.add:
        return {}
    if out is None:
        raise UserError("--add needs --out FILE.json: the file to add to")
    if not out.is_file():
        return {}
    found = json.loads(out.read_text())
    if (found.get("benchmark"), found.get("quick")) != (name, arguments.quick):
        raise UserError(
            f"--add: {out} holds results of {found.get('benchmark')!r} with "
            f"quick={found.get('quick')}; give another --out"
        )
    return found


def machine() -> dict[str, Any]:
    """CPU, memory, accelerators, and how busy it is; nothing that identifies it."""
    import jax

    found = jax.devices()
    kinds = [d.device_kind for d in found if d.platform != "cpu"]
    shown = ", ".join(f"{kinds.count(k)} x {k}" for k in sorted(set(kinds)))
    return {
        "cpu": _cpu_model(),
        "cores": doctor.cores(),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / doctor.GIB, 1
        ),
        "accelerators": shown,
        "devices": shown or f"{len(found)} x cpu, no accelerator",
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and the packages that matter, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> dict[str, Any]:
    """The checked-out commit, and whether tracked files differ from it."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": head, "changed": bool(changed.strip())}


def _git(*arguments: str) -> str:
    return subprocess.check_output(
        ["git", *arguments], cwd=ROOT, text=True, stderr=subprocess.DEVNULL
    )


def command(name: str, argv: Sequence[str]) -> str:
    """The command line; of absolute paths only the last part, of homes nothing."""

    def shown(item: str) -> str:
        key, equals, value = item.rpartition("=")
        if os.path.isabs(value) or value.startswith(("~", "..")):
            value = pathlib.PurePath(value).name
        return f"{key}{equals}{value}"

    return " ".join(["python", name, *map(shown, argv)])


def spread(values: Sequence[float], *, unit: str = "") -> dict[str, Any]:
    """min, median, max and number of repeats."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        **({"unit": unit} if unit else {}),
    }


def interleave(
    arms: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each arm in each round: A, B, A, B, ..., so that both see any drift.

    Args:
      arms: name to what is timed; it must not return before its work is done.
      rounds: timed calls of each.
      warmup: calls of each before them, not timed.
    """
    for _ in range(warmup):
        for arm in arms.values():
            arm()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that a slow moment of the machine cancels."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(summary: Mapping[str, Figure]) -> str:
    """The figures as text, one a line."""
    columns = list(dict.fromkeys(key for f in summary.values() for key in f))
    rows = [
        (name, *(_shown(figure.get(column)) for column in columns))
        for name, figure in summary.items()
    ]
    return commands.table(rows, header=("figure", *columns))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all; NaN and infinities become null."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    files.write(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
