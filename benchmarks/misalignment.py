"""Does gradient conflict find misaligned samples, and does acting on it help?

    python benchmarks/misalignment.py --workdir runs/misalignment --plan
    python benchmarks/misalignment.py --workdir runs/misalignment \\
        --out benchmarks/results/misalignment.json

In a known share of the training clips the text or the sound is another clip's. Runs
are kept in the workdir one by one: called again, it goes on where it stopped.
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
from misalignment_arms import ARMS, Setting

from mmssl import files
from mmssl.errors import UserError

CLIPS = {"demo": 3000, "grid": 800}
QUICK_CLIPS = 60
SMALL = (
    "--config.model.size={'layers': 1, 'width': 32, 'mlp': 64, 'heads': 2}",
    "--config.optim.warmup=2",
    "--config.evals.batch=16",
)
MAIN = 0.5
"""The fraction that the summary is about."""

CONTROLS = (
    "plain",
    "random",
    "loss",
    "norm_balanced",
    "fixed",
    "longer",
    "random_ramp",
    "loss_ramp",
    "loss_memory",
)
HARMONIZED = (
    "realign",
    "curriculum",
    "both",
    "agree_memory",
    "trim",
    "trim_realign",
)
FAMILIES = {
    "gradient": ("conflict", "agree", "norm"),
    "loss": ("loss",),
    "similarity": ("similarity",),
}
"""Which scores belong to which detector, by the second part of their names."""


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

    def listed(name: str, convert: Callable[[str], Any], default: Sequence) -> None:
        def read(text: str) -> list[Any]:
            return [convert(part) for part in text.split(",")]

        shown = ",".join(map(str, default))
        made.add_argument(
            f"--{name}", type=read, default=list(default), help=f"default: {shown}"
        )

    listed("worlds", str, list(data_lib.WORLDS))
    listed("kinds", str, ["text", "audio"])
    listed("fractions", float, [0.0, 0.3, 0.5, 0.7])
    listed("arms", str, list(ARMS))
    listed("seeds", int, range(5))
    listed("losses", str, ["va", "vt"])
    made.add_argument("--steps", metavar="N", type=int, help="default: the config's")
    made.add_argument("--every", metavar="N", type=int, help="steps between scorings")
    made.add_argument("--clips", metavar="N", type=int, help="default: 3000 and 800")
    made.add_argument("--data", metavar="DIR", help="GRID's folder; see grid.py")
    made.add_argument(
        "--workdir",
        metavar="W",
        help="keeps the worlds and a file per finished run (default: temporary)",
    )
    made.add_argument(
        "--plan", action="store_true", help="print what would run, and how long; stop"
    )
    return made


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a world, what is swapped in it, an arm, a seed."""

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

    Seeds are the outer loop: what is finished when time runs out is whole.

    Raises:
      UserError: an unknown name, or an arm without one that it refers to.
    """
    for option, known in (
        ("worlds", data_lib.WORLDS),
        ("kinds", ("text", "audio")),
        ("arms", ARMS),
    ):
        for name in getattr(arguments, option):
            if name not in known:
                raise UserError(
                    f"--{option}: unknown {name!r}; known: {', '.join(known)}"
                )
    chosen = [name for name in ARMS if name in arguments.arms]
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
        clips = arguments.clips or CLIPS[world]
        found += [Run(world, clips, kind, fraction, seed, arm) for arm in chosen]
    return found


def setting(run: Run, arguments: argparse.Namespace) -> Setting:
    """What the arms of a run's comparison share."""
    quick = arguments.quick
    steps = arguments.steps or (6 if quick else 400)
    share = run.fraction * 0.8  # below the truth: it is not known in practice
    return Setting(
        steps=steps,
        batch=8 if quick else 64,
        losses=tuple(arguments.losses),
        kind=run.kind,
        fraction=run.fraction,
        share=share,
        ramp=(steps // 4, steps // 2),
        every=arguments.every or max(1, steps // 4),
        overrides=(*(SMALL if quick else ()), *arguments.overrides),
    )


def result_file(work: pathlib.Path, run: Run) -> pathlib.Path:
    return work / "runs" / f"{run.name}.json"


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
        scored=run.arm == "plain" or "/" in arm.gate,
        engines=engines,
        progress=lambda text: print(f"{run.name}: {text}", flush=True),
    )
    found |= {"run": dataclasses.asdict(run), "setting": dataclasses.asdict(shared)}
    path = result_file(work, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found) + "\n")
    return found


def _over(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def by_seed(
    results: Sequence[Mapping[str, Any]], value: Callable[[Mapping], float]
) -> dict[int, float]:
    """seed -> mean over worlds and kinds, at the main fraction."""
    found: dict[int, list[float]] = {}
    for result in results:
        if result["run"]["fraction"] == MAIN:
            found.setdefault(result["run"]["seed"], []).append(value(result))
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def by_role(result: Mapping[str, Any]) -> dict[str, float]:
    """The last AUROCs, the loss that reads what was swapped being called `pair`.

    What is in doubt is known: the texts, say, and not which.
    """
    run, losses = result["run"], result["setting"]["losses"]
    hit = [name for name in losses if run["kind"][0] in name]
    found = result["rows"][-1]["auroc"]
    if len(hit) != 1:
        return found

    def role(score: str) -> str:
        *rest, last = score.split("/")
        named = {hit[0]: "pair", f"{hit[0]}_{hit[0]}": "pair_pair"}
        return "/".join([*rest, named.get(last, last)])

    return {role(name): area for name, area in found.items()}


def detectors(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list]]:
    """family -> (its best score by mean AUROC at the end, that AUROC by seed).

    Of the plain arm, so that no detector profits from what it did to the training.
    """
    plain = [r for r in results if r["run"]["arm"] == "plain"]
    areas = [by_role(r) for r in plain if r["run"]["fraction"] == MAIN]
    if not areas:
        return {}
    shared = set.intersection(*(set(a) for a in areas))
    best = {}
    for family, kinds in FAMILIES.items():
        names = [n for n in sorted(shared) if n.split("/")[1] in kinds]
        mean = {n: statistics.fmean(a[n] for a in areas) for n in names}
        name = max(mean, key=lambda n: mean[n])
        seeds = by_seed(plain, lambda r, name=name: by_role(r)[name])
        best[family] = (name, list(seeds.values()))
    return best


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures; those whose arms have not run are left out."""
    summary: dict[str, dict[str, Any]] = {}
    for family, (_, values) in detectors(results).items():
        summary[f"auroc_{family}"] = _over(values)
    recall = {
        arm: by_seed(
            [r for r in results if r["run"]["arm"] == arm],
            lambda r: r["eval"]["mean"]["R@10"],
        )
        for arm in ARMS
    }
    mean = {arm: statistics.fmean(v.values()) for arm, v in recall.items() if v}
    ours = [arm for arm in HARMONIZED if arm in mean]
    others = [arm for arm in CONTROLS if arm in mean]
    if ours and "plain" in mean:
        best = max(ours, key=lambda arm: mean[arm])
        control = max(others, key=lambda arm: mean[arm])
        for name, arm in (("plain", "plain"), ("best_control", control)):
            both = sorted(set(recall[best]) & set(recall[arm]))
            gains = [recall[best][s] - recall[arm][s] for s in both]
            summary[f"gain_over_{name}"] = _over(gains)
    seeds = len({r["run"]["seed"] for r in results})
    return summary | {"seeds": {"n": seeds}}


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Per world, kind and fraction: arms and the best detectors."""
    lines = []
    cells: dict[tuple, list[Mapping[str, Any]]] = {}
    for result in results:
        run = result["run"]
        key = (f"{run['world']}, {run['clips']} clips", run["kind"], run["fraction"])
        cells.setdefault(key, []).append(result)
    for (world, kind, fraction), own in cells.items():
        lines += [
            f"{world}, {fraction:.0%} of the {kind}s swapped:",
            "",
            "| arm | seeds | R@10 | median rank | probe: video | audio |",
            "|---|---|---|---|---|---|",
        ]
        for arm in ARMS:
            found = [r["eval"] for r in own if r["run"]["arm"] == arm]
            if found:
                mean = [
                    statistics.fmean(e["mean"]["R@10"] for e in found),
                    statistics.fmean(e["mean"]["median_rank"] for e in found),
                    *(
                        statistics.fmean(e["probe"][m] for e in found)
                        for m in ("video", "audio")
                    ),
                ]
                shown = f"{mean[0]:.1%} | {mean[1]:.1f} | {mean[2]:.1%} | {mean[3]:.1%}"
                lines.append(f"| {arm} | {len(found)} | {shown} |")
        lines.append("")
    for family, (name, values) in detectors(results).items():
        area = statistics.fmean(values)
        lines.append(f"best {family} score at {MAIN:.0%}: {name}, AUROC {area:.3f}")
    return "\n".join(lines)


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
        arguments.fractions, arguments.seeds = [MAIN], [0]
        arguments.arms = ["plain", "curriculum"]
        arguments.clips = QUICK_CLIPS
    runs = plan(arguments)
    with _workdir(arguments) as work:
        if arguments.quick:
            work /= "quick"
        print(described(runs, arguments, work), flush=True)
        if arguments.plan:
            return harness.Measured({}, {}, text="\n".join(run.name for run in runs))
        results = []
        for run in runs:
            results.append(execute(run, arguments, work))
    shown = setting(runs[0], arguments)
    return harness.Measured(
        summary=summarise(results),
        settings={"setting": dataclasses.asdict(shared_part(shown))},
        details={
            "detectors": {k: name for k, (name, _) in detectors(results).items()},
            "runs": [{k: v for k, v in r.items() if k != "dropped"} for r in results],
        },
        text=markdown(results),
    )


def shared_part(shown: Setting) -> Setting:
    """Without what differs between runs."""
    return dataclasses.replace(shown, kind="", fraction=0.0, share=0.0)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
