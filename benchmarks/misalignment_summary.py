"""What the runs of the misalignment benchmark come to: figures and tables."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
from misalignment_arms import ARMS

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
)
HARMONIZED = ("realign", "curriculum", "both", "trim", "trim_realign")
FAMILIES = {
    "gradient": ("conflict", "agree", "norm"),
    "loss": ("loss",),
    "similarity": ("similarity",),
}
"""Which scores belong to which detector, by the second part of their names."""

Result = Mapping[str, Any]
"""What a run left behind."""


def measured(results: Sequence[Result]) -> harness.Measured:
    """Figures and tables of finished runs.

    Detection is judged by the part of that name, use by the other.
    """
    by_part = {
        part: [r for r in results if r["run"]["part"] == part]
        for part in ("detection", "use")
    }
    by_part = {part: own for part, own in by_part.items() if own}
    best = detectors(by_part.get("detection", ()))
    summary = {f"auroc_{family}": _over(values) for family, (_, values) in best.items()}
    details: dict[str, Any] = {}
    if best:
        details["detectors"] = {family: name for family, (name, _) in best.items()}
    if "use" in by_part:
        found, details["gains"] = gains(by_part["use"])
        summary |= found
    for part, own in by_part.items():
        details[part] = [{k: v for k, v in r.items() if k != "dropped"} for r in own]
    return harness.Measured(
        summary=summary,
        settings={part: _shared(own[0]) for part, own in by_part.items()},
        details=details,
        text=markdown(results),
    )


def _shared(result: Result) -> dict[str, Any]:
    """The setting, without what differs between the runs of a part."""
    own = ("kind", "fraction", "share")
    return {k: v for k, v in result["setting"].items() if k not in own}


def _over(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def by_seed(
    results: Sequence[Result], value: Callable[[Result], float]
) -> dict[int, float]:
    """seed -> mean over worlds and kinds, at the main fraction."""
    found: dict[int, list[float]] = {}
    for result in results:
        if result["run"]["fraction"] == MAIN:
            found.setdefault(result["run"]["seed"], []).append(value(result))
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def by_role(result: Result) -> dict[str, float]:
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


def detectors(results: Sequence[Result]) -> dict[str, tuple[str, list]]:
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


def recalls(results: Sequence[Result]) -> dict[str, dict[int, float]]:
    """Arm to R@10 on held-out clips by seed, mean over directions, worlds and kinds."""
    found = {
        arm: by_seed(
            [r for r in results if r["run"]["arm"] == arm],
            lambda r: r["eval"]["mean"]["R@10"],
        )
        for arm in ARMS
    }
    return {arm: values for arm, values in found.items() if values}


def gains(
    results: Sequence[Result],
) -> tuple[dict[str, harness.Figure], dict[str, str]]:
    """The best harmonized arm's gain, and which arms are compared.

    Within seeds, at the main fraction.
    """
    recall = recalls(results)
    mean = {arm: statistics.fmean(values.values()) for arm, values in recall.items()}
    ours = [arm for arm in HARMONIZED if arm in mean]
    others = [arm for arm in CONTROLS if arm in mean]
    if not ours or "plain" not in mean:
        return {}, {}
    best = max(ours, key=lambda arm: mean[arm])
    arms = {"plain": "plain", "best_control": max(others, key=lambda arm: mean[arm])}
    summary = {}
    for name, arm in arms.items():
        both = sorted(set(recall[best]) & set(recall[arm]))
        summary[f"gain_over_{name}"] = _over(
            [recall[best][seed] - recall[arm][seed] for seed in both]
        )
    summary["seeds"] = {"n": len(recall[best])}
    return summary, {"best": best} | arms


def markdown(results: Sequence[Result]) -> str:
    """Per world, kind and fraction: arms and the best detectors."""
    lines = []
    cells: dict[tuple, list[Result]] = {}
    for result in results:
        run = result["run"]
        steps = result["setting"]["steps"]
        world = f"{run['world']}, {run['clips']} clips, {steps} steps"
        key = (world, run["kind"], run["fraction"])
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
    own = [r for r in results if r["run"]["part"] == "detection"]
    for family, (name, values) in detectors(own).items():
        area = statistics.fmean(values)
        lines.append(f"best {family} score at {MAIN:.0%}: {name}, AUROC {area:.3f}")
    return "\n".join(lines)
