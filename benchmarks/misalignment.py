"""Does gradient conflict find misaligned samples, and does acting on it help?

    python benchmarks/misalignment.py --workdir runs/misalignment --plan
    python benchmarks/misalignment.py --workdir runs/misalignment \\
        --out benchmarks/results/misalignment.json

In a known share of the training clips the text or the sound is another clip's. The
first question is the part `detection`, the second the part `use`. Runs are kept in the
workdir one by one: called again, it goes on where it stopped.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import harness
import jax
import misalignment_data as data_lib
import misalignment_runs as runs_lib
import misalignment_scores as scores_lib
import misalignment_summary as summary_lib
from misalignment_arms import ARMS, Setting

from mmssl import files
from mmssl.errors import UserError

QUICK_CLIPS = 60
SMALL = (
    "--config.model.size={'layers': 1, 'width': 32, 'mlp': 64, 'heads': 2}",
    "--config.optim.warmup=2",
    "--config.evals.batch=16",
)
MODEL = ("--config.model.size={'layers': 2, 'width': 64, 'mlp': 256, 'heads': 4}",)


@dataclasses.dataclass(frozen=True)
class Part:
    """What one of the questions runs, where the options do not say.

    Attributes:
      clips: by world.
      steps: of training.
      every: steps between scorings.
      ramp: see `Setting`.
      arms: names in `ARMS`.
    """

    clips: Mapping[str, int]
    steps: int
    every: int
    ramp: tuple[int, int]
    arms: tuple[str, ...]


PARTS = {
    # Few passes: what is swapped is not yet learned by heart.
    "detection": Part({"demo": 3000, "grid": 800}, 160, 80, (40, 80), ("plain",)),
    # So many that it is: without a filter noise costs something.
    "use": Part({"demo": 1000, "grid": 800}, 500, 250, (30, 80), tuple(ARMS)),
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "misalignment",
        about="Swaps the text or the sound of a known share of the training clips, and "
        "asks which\nper-sample score finds them and which way of training is best on "
        "clean clips.",
        example="python benchmarks/misalignment.py --workdir runs/misalignment "
        "--worlds grid --fractions 0.5 --out misalignment.json",
    )

    def listed(
        name: str, convert: Callable[[str], Any], default: Sequence | None
    ) -> None:
        def read(text: str) -> list[Any]:
            return [convert(part) for part in text.split(",")]

        shown = "the part's" if default is None else ",".join(map(str, default))
        made.add_argument(
            f"--{name}", type=read, default=default, help=f"default: {shown}"
        )

    made.add_argument(
        "--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: both"
    )
    listed("worlds", str, list(data_lib.WORLDS))
    listed("kinds", str, ["text", "audio"])
    listed("fractions", float, [0.0, 0.3, 0.5, 0.7])
    listed("seeds", int, range(5))
    listed("losses", str, ["va", "vt"])
    listed("arms", str, None)
    listed("ramp", int, None)
    for name in ("steps", "every", "clips"):
        made.add_argument(f"--{name}", metavar="N", type=int, help="the part's")
    made.add_argument("--data", metavar="DIR", help="GRID's folder; see grid.py")
    made.add_argument(
        "--workdir",
        metavar="W",
        help="keeps the worlds and a file per finished run (default: temporary)",
    )
    made.add_argument(
        "--plan", action="store_true", help="print what would run, and how long; stop"
    )
    made.add_argument(
        "--finished", action="store_true", help="judge finished runs, train nothing"
    )
    return made


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: of a part, a world, what is swapped in it, an arm, a seed."""

    part: str
    world: str
    clips: int
    kind: str
    fraction: float
    seed: int
    arm: str

    @property
    def name(self) -> str:
        share = f"{100 * self.fraction:.0f}"
        world = f"{self.world}{self.clips}"
        return f"{world}-{self.kind}-{share}-seed{self.seed}-{self.arm}"

    def other(self, arm: str) -> "Run":
        return dataclasses.replace(self, arm=arm)


def plan(arguments: argparse.Namespace) -> list[Run]:
    """All runs, in an order in which every arm follows those it refers to.

    Seeds are the outer loop of a part: what is finished when time runs out is whole.

    Raises:
      UserError: an unknown name, or an arm without one that it refers to.
    """
    if arguments.ramp is not None and len(arguments.ramp) != 2:
        raise UserError(f"--ramp: expected FROM,TO, found {arguments.ramp}")
    for option, known in (
        ("worlds", data_lib.WORLDS),
        ("kinds", ("text", "audio")),
        ("arms", ARMS),
    ):
        for name in getattr(arguments, option) or ():
            if name not in known:
                raise UserError(
                    f"--{option}: unknown {name!r}; known: {', '.join(known)}"
                )
    return [run for part in arguments.part for run in _runs(part, arguments)]


def _runs(part: str, arguments: argparse.Namespace) -> list[Run]:
    names = arguments.arms or PARTS[part].arms
    chosen = [name for name in ARMS if name in names]
    for name in chosen:
        for needed in (ARMS[name].rate, ARMS[name].like):
            if needed and needed not in chosen:
                raise UserError(f"--arms: {name!r} follows {needed!r}; name it, too")
    found = []
    for seed, world, kind, fraction in itertools.product(
        arguments.seeds, arguments.worlds, arguments.kinds, arguments.fractions
    ):
        if fraction == 0 and kind != arguments.kinds[0]:
            continue  # nothing is swapped: the kinds are the same
        clips = arguments.clips or PARTS[part].clips[world]
        found += [Run(part, world, clips, kind, fraction, seed, arm) for arm in chosen]
    return found


def setting(run: Run, arguments: argparse.Namespace) -> Setting:
    """What the arms of a run's comparison share."""
    part, quick = PARTS[run.part], arguments.quick
    first, last = arguments.ramp or part.ramp
    return Setting(
        steps=arguments.steps or part.steps,
        batch=8 if quick else 64,
        losses=tuple(arguments.losses),
        kind=run.kind,
        fraction=run.fraction,
        share=run.fraction * 0.8,  # below the truth: it is not known in practice
        ramp=(first, last),
        every=arguments.every or part.every,
        overrides=(*(SMALL if quick else MODEL), *arguments.overrides),
    )


def result_file(work: pathlib.Path, run: Run) -> pathlib.Path:
    return work / run.part / f"{run.name}.json"


def finished(work: pathlib.Path, run: Run, shared: Setting) -> dict[str, Any] | None:
    """The result of a run, if it is there.

    Raises:
      UserError: it was made with another setting.
    """
    path = result_file(work, run)
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    if found["setting"] != json.loads(json.dumps(dataclasses.asdict(shared))):
        raise UserError(
            f"{path} was made with another setting; give another --workdir, or remove "
            "the file"
        )
    return found


def described(runs: Sequence[Run], arguments: argparse.Namespace, work: Any) -> str:
    """The plan in words, with the time that is left as far as known."""
    done = [finished(work, run, setting(run, arguments)) for run in runs]
    known = [d["wall_seconds"] / d["steps"] for d in done if d]
    left = [run for run, d in zip(runs, done, strict=True) if d is None]
    steps = sum(setting(run, arguments).steps for run in left)
    text = f"{len(runs)} runs, {len(runs) - len(left)} finished; {steps} steps are left"
    if not known:
        return f"{text}; the first run will tell how long they take"
    each = statistics.median(known)
    return f"{text}: about {steps * each / 3600:.1f} h at {each:.2f} s a step"


def execute(run: Run, arguments: argparse.Namespace, work: pathlib.Path) -> dict:
    """A finished run's result, from the workdir or by training now."""
    shared = setting(run, arguments)
    found = finished(work, run, shared)
    if found is not None:
        return found
    arm = ARMS[run.arm]
    reference = None
    for needed in (arm.rate, arm.like):
        if needed:
            reference = execute(run.other(needed), arguments, work)
            plain = execute(run.other("plain"), arguments, work)
            reference["plain_seconds_per_step"] = plain["seconds_per_step"]
    clips, dataset = data_lib.load(
        run.world,
        work,
        clips=run.clips,
        data=arguments.data,
    )
    recipe = data_lib.CONFIGS / data_lib.WORLDS[run.world].config
    first = run.seed == arguments.seeds[0]
    compared = run.arm == "plain" and first and not arguments.quick
    engines = scores_lib.ENGINE_GROUPS if compared else ()
    found = runs_lib.run(
        str(recipe),
        dataset,
        clips,
        shared,
        arm,
        seed=run.seed,
        reference=reference,
        scored=run.arm == "plain",
        engines=engines,
        progress=lambda text: print(f"{run.name}: {text}", flush=True),
    )
    found |= {"run": dataclasses.asdict(run), "setting": dataclasses.asdict(shared)}
    path = result_file(work, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found) + "\n")
    return found


@contextlib.contextmanager
def _workdir(arguments: argparse.Namespace) -> Iterator[pathlib.Path]:
    if arguments.workdir is not None:
        yield pathlib.Path(arguments.workdir)
        return
    with tempfile.TemporaryDirectory(prefix="mmssl-") as folder:
        yield pathlib.Path(folder)


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """All runs of the plan."""
    if arguments.quick:
        # Compiling is all that a quick run does.
        jax.config.update("jax_disable_most_optimizations", True)
        arguments.worlds, arguments.kinds = ["demo"], ["text"]
        arguments.fractions, arguments.seeds = [summary_lib.MAIN], [0]
        arguments.part, arguments.arms = ["use"], ["plain", "curriculum"]
        arguments.clips, arguments.steps = QUICK_CLIPS, 6
        arguments.every, arguments.ramp = 3, [1, 3]
    runs = plan(arguments)
    with _workdir(arguments) as work:
        if arguments.quick:
            work /= "quick"
        print(described(runs, arguments, work), flush=True)
        if arguments.plan:
            return harness.Measured({}, {}, text="\n".join(run.name for run in runs))
        if arguments.finished:
            there = (finished(work, run, setting(run, arguments)) for run in runs)
            results = [found for found in there if found is not None]
        else:
            results = [execute(run, arguments, work) for run in runs]
    return summary_lib.measured(results)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
