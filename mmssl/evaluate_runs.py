"""What `mmssl eval` does with workdirs: evaluate, watch, compare."""

import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from mmssl import config as config_lib
from mmssl import evaluation, files, runs, streams
from mmssl import workdir as workdir_lib
from mmssl.data import records
from mmssl.data.pool import DecodePool
from mmssl.errors import AgainError, UserError
from mmssl.evals import compare, evaluate, retrieval
from mmssl.train import heartbeat, integrity
from mmssl.train.checkpoint import Checkpointer
from mmssl.train.metrics import JsonlWriter

OUTCOMES, HISTORY = "eval.npz", "eval.jsonl"
"""What became of each clip in the last evaluation; metrics by step, of a watch."""


class Judge:
    """Evaluates checkpoints of one workdir beside the run's random initialisation.

    What it compiles, and the embeddings of the random initialisation, are kept.

    Args:
      workdir: of the run.
      pool: decodes.
      data: another dataset than the run's (first) own.
      split: that judges; None = the config's evals.split.
      ema: the running average of the parameters.
      protocols: names of `evaluate.PROTOCOLS`; None = those of `evaluate.DEFAULT`,
        without what learns where there is no training split.

    Raises:
      UserError: no run there; no such dataset, split or protocol.
    """

    def __init__(
        self,
        workdir: str,
        pool: DecodePool,
        *,
        data: str | None = None,
        split: str | None = None,
        ema: bool = False,
        protocols: Sequence[str] | None = None,
    ):
        self.experiment, self._workdir = runs.open_run(workdir), workdir
        self._ema = ema
        path = data or self.experiment.datasets[0][0]
        wanted, self._skipped = evaluate.possible(
            protocols,
            data=path,
            splits=records.read_metadata(path)["splits"],
            train_split=evaluation.settings(self.experiment.config).train_split,
        )
        self._evaluator = evaluation.Evaluator(
            self.experiment,
            pool,
            path=path,
            protocols=wanted,
            split=split,
        )
        self._random: evaluate.Arm | None = None
        told = evaluate.told(wanted, self._evaluator.settings.options)
        self.settings = {
            "protocols": json.loads(json.dumps(told)),
            "ema": ema,
            "fingerprint": streams.fingerprint(path),
            "split": self._evaluator.split,
            "train_split": self._evaluator.settings.train_split,
            "windows": self._evaluator.settings.windows,
        }

    def __call__(self, step: int | None = None) -> dict[str, Any]:
        """Evaluates a checkpoint, None = the newest; writes eval.json and eval.npz.

        Returns:
          What eval.json holds.

        Raises:
          UserError: there is no undamaged one; the run keeps no average.
        """
        experiment, found = self.experiment, self._evaluator
        whole = runs.restore(experiment, self._workdir, step=step)
        states = {"trained": whole.averaged() if self._ema else whole}
        if self._random is None:
            states["random"] = experiment.init_state()
        arms = found.arms(states)
        if found.outages and "random" not in states:
            # Both arms are judged on the same clips.
            arms = found.arms(states | {"random": experiment.init_state()})
        random = arms.pop("random", self._random)
        self._random = None if found.outages else random
        trained = arms["trained"]
        judged = found.judge(trained, random)
        ids = trained.test.ids  # in the order of the split's rows
        ranks = {
            name.removeprefix("retrieval/"): outcome.values
            for name, outcome in judged.outcomes.items()
        }
        examples = retrieval.examples(trained.test, ranks)
        shown = {
            i for e in examples for i in (e["query"], *(r["id"] for r in e["results"]))
        }
        outcomes = compare.save(judged.outcomes, ids)
        sections = judged.sections | self._skipped
        result = sections | {
            "protocols": judged.protocols,
            "step": int(jax.device_get(whole.step)),
            "checkpoint_sha256": runs.content_hash(whole),
            "ema": self._ema,
            "seed": experiment.config["seed"],
            "data": found.path,
            "fingerprint": streams.fingerprint(found.path),
            "split": found.split,
            "train_split": found.settings.train_split,
            "windows": found.settings.windows,
            "faults": found.faults,
            "coverage": _coverage(found.path, found.split),
            "outcomes_sha256": hashlib.sha256(outcomes).hexdigest(),
            "examples": examples,
            "rows": {id: row for row, id in enumerate(ids) if id in shown},
        }
        folder = pathlib.Path(self._workdir)
        files.write(folder / OUTCOMES, outcomes)
        workdir_lib.write(folder, workdir_lib.EVAL, result)
        return result


def _coverage(path: str, split: str) -> dict[str, Any] | None:
    """Of the split that a slice such as `test[:10%]` is of; then with `slice`."""
    name = split.split("[")[0]
    found = records.coverage(path, name)
    return found and (found if name == split else {**found, "slice": split})


def evaluate_run(workdir: str, **options: Any) -> dict[str, Any]:
    """Evaluates the newest checkpoint; see `Judge` for options and result."""
    with streams.open_pool(runs.open_run(workdir)) as pool:
        return Judge(workdir, pool, **options)()


def watch(
    workdir: str, *, poll: float = 10.0, patience: float = 600.0, **options: Any
) -> Iterator[dict[str, Any]]:
    """Evaluates checkpoints of a run as they come, until its last one.

    Metrics of each go to eval.jsonl, with `settings` and the hash of the checkpoint's
    manifest, which has those of all its files. What stands there with equal ones is not
    done again. Damaged checkpoints are passed over, with a line that says so.

    Args:
      workdir: of a run, which may be training.
      poll: seconds between looks.
      patience: seconds to wait for a checkpoint of a run without a sign of life.
      **options: see `Judge`.

    Yields:
      The result of each, as eval.json held it.

    Raises:
      UserError: as `Judge`; a whole checkpoint that is still there cannot be evaluated.
      AgainError: the run gave no sign of life, and no checkpoint, for `patience`.
    """
    folder = pathlib.Path(workdir)
    history = folder / HISTORY
    with (
        streams.open_pool(runs.open_run(workdir)) as pool,
        Checkpointer(folder / "checkpoints") as checkpointer,
    ):
        judge, writer = Judge(workdir, pool, **options), JsonlWriter(history)
        last = judge.experiment.config["steps"]
        passed: set[int] = set()
        since = time.monotonic()
        while True:
            waiting, done = [], _done(history, judge.settings)
            for step in checkpointer.steps():
                mark = _mark(checkpointer, step)
                if step not in passed and mark not in done:
                    waiting.append((step, mark))
            for step, mark in waiting:
                try:
                    result = judge(step)
                except Exception:
                    if step not in checkpointer.steps():
                        # Retention takes old ones away, perhaps while they are read.
                        said = "was removed before it was evaluated"
                    elif damage := _damage(checkpointer, step):
                        passed.add(step)
                        said = f"is damaged and passed over: {damage}"
                    else:
                        raise
                    print(f"checkpoint {step} {said}", file=sys.stderr)
                    continue
                row = {"settings": judge.settings, "manifest_sha256": mark}
                found = evaluation.metrics(result, result.get("faults", {}))
                writer.write(step, found | row)
                yield result
            if _mark(checkpointer, last) in _done(history, judge.settings):
                writer.close()
                return
            if waiting or _alive(folder):
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                raise AgainError(
                    f"eval --watch: {workdir} has given no checkpoint and no sign of "
                    f"life for {patience:g} s, and ends before step {last}; continue "
                    "it and start the watch again, which goes on where it was"
                )
            if not waiting:
                time.sleep(poll)


def _mark(checkpointer: Checkpointer, step: int) -> str:
    """A hash of a checkpoint's manifest; "" where that is gone or damaged."""
    try:
        return files.sha256_of_json(checkpointer.manifest(step))
    except integrity.DamagedError:
        return ""


def _damage(checkpointer: Checkpointer, step: int) -> str:
    try:
        checkpointer.verify(step)
    except integrity.DamagedError as error:
        return str(error)
    return ""


def _alive(folder: pathlib.Path) -> bool:
    """Whether a process of the run gave a sign of life of late."""
    count = len(list((folder / heartbeat.FOLDER).glob("process_*.json")))
    beats = heartbeat.read_all(folder, count)
    return any(b.stage != heartbeat.ENDED and not b.silent for b in beats)


def _done(history: pathlib.Path, settings: Mapping[str, Any]) -> set[str]:
    """Marks of the checkpoints that a watch has evaluated with these settings."""
    if not history.is_file():
        return set()
    found = set()
    for line in history.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if row["settings"] == settings:
                found.add(row["manifest_sha256"])
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a kill
    return found


def compare_runs(workdirs: Sequence[str]) -> list[compare.Comparison]:
    """Paired comparison of the last evaluations of runs; those of one config are seeds.

    Raises:
      UserError: a workdir without an evaluation; evaluations of different data,
        clips or protocols; the same run twice.
    """
    found = [_evaluated(workdir) for workdir in workdirs]
    first, (_, ids) = found[0][0], found[0][2]
    for workdir, (result, _, (_, theirs)) in zip(workdirs, found, strict=True):
        for key in ("fingerprint", "split", "train_split", "windows"):
            if result[key] != first[key]:
                raise UserError(
                    f"eval --compare: {workdirs[0]} was evaluated with {key} "
                    f"{first[key]!r}, {workdir} with {result[key]!r}; evaluate one of "
                    "them again"
                )
        if theirs != ids:
            raise UserError(
                f"eval --compare: {workdirs[0]} and {workdir} were not judged on the "
                "same clips; evaluate one of them again"
            )
        for name in set(first["protocols"]) & set(result["protocols"]):
            one, other = first["protocols"][name], result["protocols"][name]
            if one != other:
                raise UserError(
                    f"eval --compare: {name} was {one} in {workdirs[0]}, {other} in "
                    f"{workdir}; evaluate one of them again"
                )
    groups: dict[str, dict[int, tuple[str, Any]]] = {}
    for workdir, (result, config, (outcomes, _)) in zip(workdirs, found, strict=True):
        members = groups.setdefault(_apart_from_seed(workdir, config, result), {})
        if config["seed"] in members:
            raise UserError(
                f"eval --compare: {members[config['seed']][0]} and {workdir} are the "
                f"same run: config, seed {config['seed']} and step are equal"
            )
        members[config["seed"]] = (workdir, outcomes)
    return compare.compare(
        [
            compare.Group(
                name=" ".join(name for name, _ in members.values()),
                runs=[outcomes for _, outcomes in members.values()],
            )
            for members in groups.values()
        ]
    )


def _evaluated(workdir: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """eval.json, config.json, and what eval.npz holds."""
    folder = pathlib.Path(workdir)
    remedy = f"run `mmssl eval --workdir {workdir}` first"
    result = workdir_lib.read(folder, workdir_lib.EVAL, remedy=remedy)
    config = workdir_lib.read(folder, workdir_lib.CONFIG, remedy=remedy)
    path = folder / OUTCOMES
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != result.get("outcomes_sha256"):
        raise UserError(f"{path} does not belong to {workdir_lib.EVAL}; {remedy}")
    return result, config, compare.load(data)


def _apart_from_seed(
    workdir: str, config: Mapping[str, Any], result: Mapping[str, Any]
) -> str:
    """What runs of one group have in common: config, data, step, average or not."""
    remedy = "restore the file from a copy"
    data = workdir_lib.read(pathlib.Path(workdir), workdir_lib.DATA, remedy=remedy)
    trained_on = [(d["fingerprint"], d["weight"]) for d in data["datasets"]]
    fixed = {
        key: value
        for key, value in config_lib.flat(config).items()
        if key != "seed" and not config_lib.may_change(key)
    }
    common = [fixed, trained_on, result["step"], result["ema"]]
    return json.dumps(common, sort_keys=True)
