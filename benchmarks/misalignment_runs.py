"""One run of the misalignment benchmark: trains an arm with a seed, and judges it."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from misalignment_arms import Arm, Gate, Gated, Setting
from misalignment_data import Clips, order, swapped
from misalignment_scores import Scorer, auroc, ceiling

from mmssl import config as config_lib
from mmssl import evaluation
from mmssl.evals import embeddings, probe, retrieval
from mmssl.experiment import Experiment
from mmssl.gradients import statistics

MODALITIES = {"v": "video", "a": "audio", "t": "text"}


def experiment(
    recipe: str, dataset: pathlib.Path, setting: Setting, arm: Arm, seed: int, n: int
) -> Experiment:
    """The recipe with the arm's harmonizer and gate, n training clips."""
    config = config_lib.load(recipe, list(setting.overrides))
    config["data"] |= {
        "path": str(dataset),
        "tokenizer": str(dataset / "tokenizer.txt"),
    }
    config |= {"steps": setting.steps, "batch": setting.batch, "seed": seed}
    config["harmonizer"] = {"weighting": "sum", **arm.harmonizer}
    if arm.trim:
        begin, end = setting.ramp
        # Which modality is in doubt is known: speech, say, not which clip's.
        share = {n: setting.share for n in setting.losses if setting.kind[0] in n}
        trim = {"share": share, "begin": begin, "steps": end - begin}
        config["harmonizer"]["trim"] = trim
    config["objectives"]["contrast"]["pairs"] = {
        name: {"modalities": [MODALITIES[m] for m in name], "space": "joint"}
        for name in setting.losses
    }
    made = Experiment(config)
    inner = made.objectives["contrast"]
    made.objectives = {"contrast": Gated(inner, clips=n, batch=setting.batch)}
    return made


def run(
    recipe: str,
    dataset: pathlib.Path,
    clips: Mapping[str, Clips],
    setting: Setting,
    arm: Arm,
    *,
    seed: int,
    reference: Mapping[str, Any] | None = None,
    scored: bool = False,
    engines: Sequence[tuple[str, int]] = (),
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains one arm with one seed and judges it on clean clips.

    Args:
      recipe: path of the config.
      dataset: its tokenizer's folder.
      clips: by split.
      setting: of the comparison.
      arm: what to train.
      seed: of the swap, the weights and the order.
      reference: the result of the arm that this one refers to.
      scored: score the whole training set every `setting.every` steps; gates by a
        score need it.
      engines: that are scored beside the definition.
      progress: told how far it is.

    Returns:
      JSON-able: "eval", "rows" (per scoring: step and each score's AUROC), "dropped"
      and "weights" by step or loss, "seconds_per_step" (CPU time), "steps".
    """
    train = clips["train"]
    if arm.like and reference is not None:
        setting, arm = _like(setting, arm, reference)
    made = experiment(recipe, dataset, setting, arm, seed, len(train))
    rng = np.random.default_rng([seed, 3])
    partner, wrong = swapped(setting.fraction, train.labels, rng)
    source = {setting.kind: partner}
    gate = Gate(arm.gate, setting, wrong, seed, reference if arm.rate else None)
    gated = made.objectives["contrast"]
    assert isinstance(gated, Gated)
    scorer = Scorer(made.model, gated.inner, batch=setting.batch, engines=engines)
    state = made.init_state()
    visits = Visits(len(train))
    rows: list[dict[str, Any]] = []
    dropped: list[float] = []
    weights: list[list[float]] = []
    compiled, spent, wall = None, 0.0, time.time()
    stream = order(len(train), setting.batch, rng)
    for step in range(setting.steps):
        chosen = next(stream)
        raw = train.batch(chosen, rng, source)
        extras = state.extras["contrast"] | gate.inputs(step, chosen)
        state = dataclasses.replace(state, extras={"contrast": extras})
        if compiled is None:
            compiled = made.step.lower(state, raw).compile()
        begin = time.process_time()
        state, out = compiled(state, raw)
        metrics = {k: float(v) for k, v in out.metrics.items()}
        spent += time.process_time() - begin
        loss = np.asarray(state.extras["contrast"]["loss"])
        visits.add(chosen, {"loss": loss.sum(1), **_conflicts(out)})
        dropped.append(metrics.get("conflict/dropped", gate.share))
        weights.append([metrics.get(f"conflict/weight/{n}", 1.0) for n in out.losses])
        last = step + 1 == setting.steps
        if last or (step + 1) % setting.every == 0:
            found = {}
            if scored:
                extra = state.extras["contrast"]["inner"]
                heads = state.heads["contrast"]
                found = scorer(state.params, heads, extra, train, source, seed)
            gate.learn(found)
            rows.append(_row(step + 1, found, gate.memory, visits, wrong, metrics))
            shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if "loss" in k)
            progress(f"step {step + 1}: {shown}, {time.time() - wall:.0f} s")
    return {
        "eval": judge(made, state, clips, probes=True),
        "rows": rows,
        "dropped": [round(x, 4) for x in dropped],
        "weights": dict(zip(out.losses, np.mean(weights, 0).tolist(), strict=True)),
        "seconds_per_step": spent / setting.steps,
        "wall_seconds": time.time() - wall,
        "steps": setting.steps,
    }


def _like(
    setting: Setting, arm: Arm, reference: Mapping[str, Any]
) -> tuple[Setting, Arm]:
    """The settings that `fixed` and `longer` take from another arm's run."""
    if arm.like == "realign":
        fixed = {"kind": "fixed", "weights": reference["weights"]}
        return setting, Arm({"weighting": fixed})
    more = reference["seconds_per_step"] / reference["plain_seconds_per_step"]
    steps = round(setting.steps * max(more, 1.0))
    return dataclasses.replace(setting, steps=steps), Arm()


class Visits:
    """What training itself saw of each clip, at its visits."""

    def __init__(self, clips: int) -> None:
        self._clips = clips
        self._last: dict[str, np.ndarray] = {}
        self._mean: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, scores: Mapping[str, np.ndarray]) -> None:
        for name, x in scores.items():
            if name not in self._last:
                self._last[name] = np.full(self._clips, np.nan)
                self._mean[name] = np.full(self._clips, np.nan)
            self._last[name][rows] = x
            before = self._mean[name][rows]
            before = np.where(np.isnan(before), x, before)
            self._mean[name][rows] = before + 0.3 * (x - before)

    def scores(self) -> dict[str, np.ndarray]:
        """The last visit's, and the running mean over visits."""
        found = {f"visit/{k}": x for k, x in self._last.items()}
        return found | {f"visits/{k}": x for k, x in self._mean.items()}


def _conflicts(out: Any) -> dict[str, np.ndarray]:
    """Per pair, minus the cosine of a step's Gramians, where it has any per sample."""
    if out.gram is None:
        return {}
    cos = np.asarray(statistics.cosines(out.gram)[0])
    pairs = statistics.pairs(out.losses)
    return {f"conflict/{label}": -cos[:, i, j] for i, j, label in pairs}


def _row(
    step: int,
    found: Mapping[str, np.ndarray],
    memory: Mapping[str, np.ndarray],
    visits: Visits,
    wrong: np.ndarray,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """AUROC of every score, now, by memory over scorings, and at training's visits."""
    scores = {
        **{f"now/{k}": x for k, x in found.items()},
        **{f"memory/{k}": x for k, x in memory.items()},
        **visits.scores(),
    }
    areas = {}
    for name, x in scores.items():
        there = np.isfinite(x)
        areas[name] = round(auroc(x[there], wrong[there]), 4)
    losses = {k: round(v, 4) for k, v in metrics.items() if k.startswith("loss")}
    row: dict[str, Any] = {"step": step, "auroc": areas, "train": losses}
    if found and wrong.any():
        row["ceiling"] = round(ceiling(dict(found), wrong), 4)
    return row


def judge(
    made: Experiment, state: Any, clips: Mapping[str, Clips], *, probes: bool
) -> dict[str, Any]:
    """Retrieval between the modalities of each loss, and probes, on clean clips."""
    embed = evaluation.make_embed(made)
    size = made.config["evals"]["batch"]

    def of(split: str) -> embeddings.Embeddings:
        fns = {"": lambda raw: embed(state, raw)}
        return embeddings.embed(clips[split].batches(size), fns)[""]

    test = of("test")
    scores = {k: v.scores for k, v in retrieval.retrieval(test).items()}
    gated: Any = made.objectives["contrast"]
    trained = [p.modalities for p in gated.inner.terms()]
    both = [f"{a}->{b}" for one in trained for a, b in (one, one[::-1])]
    mean = {
        name: float(np.mean([scores[pair][name] for pair in both]))
        for name in ("R@1", "R@10", "median_rank", "mrr")
    }
    result: dict[str, Any] = {"retrieval": scores, "mean": mean}
    if probes:
        result["probe"] = _probes(of("train"), test)
    return result


def _probes(train: Any, test: Any) -> dict[str, float]:
    """Accuracy of a linear probe by modality, mean over the label columns."""
    columns: Sequence[str] = sorted(train.labels)
    return {
        m: float(
            np.mean(
                [
                    np.mean(
                        probe.probe(
                            train.features(m),
                            train.labels[column],
                            test.features(m),
                            grid=(0.01,),
                        )[0]
                        == test.labels[column]
                    )
                    for column in columns
                ]
            )
        )
        for m in ("video", "audio")
    }
