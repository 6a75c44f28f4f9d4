"""What a state has learned: its embeddings of a split, judged by protocols.

With several processes each embeds its rows of every batch; all have the result, which
process 0 computes.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from mmssl import config as config_lib
from mmssl import streams
from mmssl.data import device, pipeline, sources
from mmssl.data import text as text_lib
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.evals import embeddings, evaluate, zero_shot
from mmssl.experiment import Experiment
from mmssl.parallel import distributed
from mmssl.parallel import mesh as mesh_lib
from mmssl.train.hooks import Hook, StoppedError, Told
from mmssl.train.metrics import EventLog
from mmssl.train.recorder import ProgressView
from mmssl.train.state import TrainState
from mmssl.types import RawBatch

T = TypeVar("T")

OUTAGES = ("read", "timeout", "memory", "crash")
"""Faults that say more of storage and of the machine than of the file."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The config's `evals`.

    Attributes:
      split: that judges.
      train_split: that classifiers learn from.
      batch: clips embedded at once, over all devices.
      windows: of each clip, evenly over its length; their embeddings are averaged.
      knn_k, prompts: see `evals.evaluate.Options`.
      every: steps between evaluations inside training; also after the last one. 0 = no
        such evaluations: they need the decoders and the devices that training needs,
        and a split that a dataset may not have. `mmssl eval --watch` runs beside it.
      protocols: of those.
      clips: of a split that those embed at most, evenly chosen.
    """

    split: str = "test"
    train_split: str = "train"
    batch: int = 64
    windows: int = 1
    knn_k: int = 20
    prompts: Sequence[str] = ("{}",)
    every: int = 0
    protocols: Sequence[str] = ("retrieval",)
    clips: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("batch", 1), ("windows", 1), ("clips", 1)):
            if (found := getattr(self, name)) < least:
                raise ValueError(f"{name}: must be at least {least}, found {found}")

    @property
    def options(self) -> evaluate.Options:
        return evaluate.Options(knn_k=self.knn_k, prompts=tuple(self.prompts))


def settings(config: Mapping[str, Any]) -> Settings:
    """Of a config.

    Raises:
      UserError: a value of another type, or out of range.
    """
    found = config_lib.build(Settings, "evals", **config["evals"])
    told = {"knn_k": found.knn_k, "prompts": tuple(found.prompts)}
    config_lib.build(evaluate.Options, "evals", **told)
    return found


def make_embed(experiment: Experiment) -> Any:
    """Jitted (state, raw) -> (pooled features, embeddings by space and modality).

    `raw` is this process's rows, the result those of all processes, on the host.
    """

    def embed(state: TrainState, raw: RawBatch) -> tuple[Any, Any]:
        batch = experiment.model.prepare(raw)
        pooled = experiment.model.encode(state.params, batch).pooled
        spaces = {}
        for name, objective in experiment.objectives.items():
            found = objective.project(state.heads[name], state.extras[name], pooled)
            alone = len(experiment.objectives) == 1
            spaces |= {s if alone else f"{name}/{s}": m for s, m in found.items()}
        return pooled, spaces

    sharding = mesh_lib.batch_sharding(experiment.mesh)
    jitted = jax.jit(mesh_lib.ambient(experiment.mesh, embed))

    def call(state: TrainState, raw: RawBatch) -> tuple[Any, Any]:
        found = jitted(state, device.put(raw, sharding))
        return jax.tree.map(distributed.fetch, found)

    return call


class Evaluator:
    """Embeds and judges states of one experiment; what it compiles is kept.

    Args:
      experiment: of the run.
      pool: decodes.
      path: a dataset.
      protocols: names of `evaluate.PROTOCOLS`.
      split: that judges; None = the config's.
      clips: of a split at most; None = all.

    Attributes:
      faults: split -> fault class -> samples, of the last `arms`.
      outages: whether any of those are `OUTAGES`.

    Raises:
      UserError: no such protocol, dataset or split.
    """

    def __init__(
        self,
        experiment: Experiment,
        pool: DecodePool,
        *,
        path: str,
        protocols: Sequence[str],
        split: str | None = None,
        clips: int | None = None,
    ):
        self.settings = settings(experiment.config)
        self.protocols = evaluate.check_protocols(protocols, "evals.protocols")
        self.path, self.split = path, split or self.settings.split
        wanted = [evaluate.PROTOCOLS[name] for name in self.protocols]
        self._learns = any(protocol.learns for protocol in wanted)
        self._asks = any(p.prompts for p in wanted) and experiment.tokenizer is not None
        for part in self.splits:
            sources.open_dataset(path, part)
        self._experiment, self._pool, self._clips = experiment, pool, clips
        self._embed = make_embed(experiment)
        self.faults: dict[str, dict[str, int]] = {}

    @property
    def outages(self) -> bool:
        return any(name in OUTAGES for met in self.faults.values() for name in met)

    @property
    def splits(self) -> list[str]:
        """That are read: the one that judges, first."""
        also = [self.settings.train_split] * self._learns
        return list(dict.fromkeys([self.split, *also]))

    def arms(
        self, states: Mapping[str, TrainState], told: Told = lambda: None
    ) -> dict[str, evaluate.Arm]:
        """Embeddings of every state, of the same clips; media is read once.

        All processes call it together; where one fails, all do.

        Raises:
          UserError: see `embeddings.embed`; storage cannot be opened; `OUTAGES` took
            more than data.max_fault_fraction of the samples of a split.
          StoppedError: `told`, which is asked before every batch, named a signal.
        """
        fns = {n: functools.partial(self._embed, state) for n, state in states.items()}
        found = {part: self._embedded(part, fns, told) for part in self.splits}
        return {
            name: evaluate.Arm(
                test=found[self.split][name],
                train=found[self.settings.train_split][name] if self._learns else None,
                prompts=self._prompts(state, found[self.split][name]),
            )
            for name, state in states.items()
        }

    def judge(
        self, trained: evaluate.Arm, random: evaluate.Arm | None = None
    ) -> evaluate.Evaluation:
        """Runs the protocols in this process."""
        return evaluate.evaluate(
            trained, random, protocols=self.protocols, options=self.settings.options
        )

    def _embedded(
        self, split: str, fns: Mapping[str, embeddings.EmbedFn], told: Told
    ) -> dict[str, embeddings.Embeddings]:
        batches = distributed.agreed(
            lambda: streams.eval_pipeline(
                self._experiment,
                self._pool,
                path=self.path,
                split=split,
                batch=self.settings.batch,
                windows=self.settings.windows,
                clips=self._clips,
            )
        )
        whole = whole_batch(self._experiment.mesh)
        try:
            found = embeddings.embed(until_told(batches, told), fns, whole=whole)
        finally:
            batches.close()
        self.faults[split] = dict(streams.faults(batches)[0].counts)
        self._check_outages(split, batches.samples or 0)
        return found

    def _check_outages(self, split: str, samples: int) -> None:
        # Of a smaller gallery every rank is better: nobody may choose by that.
        lost = {n: x for n, x in self.faults[split].items() if n in OUTAGES}
        most = self._experiment.config["data"].get("max_fault_fraction", 0.1)
        if sum(lost.values()) > most * samples:
            raise UserError(
                f"eval: of {samples} samples of split {split!r} of {self.path}, "
                f"{sum(lost.values())} were lost to storage or decoders ({lost}), more "
                f"than data.max_fault_fraction={most:g}: what is left is not the same "
                "test; evaluate again where storage is well and decoders have time "
                "(data.limits), or look with `mmssl data validate`"
            )

    def _prompts(
        self, state: TrainState, test: embeddings.Embeddings
    ) -> dict[str, zero_shot.Prompts]:
        if not self._asks:
            return {}
        templates, out = self.settings.options.prompts, {}
        for column in test.labels:
            names = zero_shot.classes(test, column)
            texts = zero_shot.sentences(names, templates)
            if texts:
                found = self._embed_texts(state, texts)
                out[column] = zero_shot.prompts(names, found, len(templates))
        return out

    def _embed_texts(
        self, state: TrainState, texts: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """space -> [texts, e]; texts fill the candidates of rows without media."""
        spec = self._experiment.view_kwargs["text"]
        n, batch = spec["candidates"], mesh_lib.row_shards(self._experiment.mesh)
        rows = -(-len(texts) // n)
        rows = -(-rows // batch) * batch
        tokens = np.zeros((rows * n, spec["length"]), np.int32)
        for i, words in enumerate(texts):
            tokens[i] = text_lib.encode_candidates(
                self._experiment.tokenizer, [words], count=1, length=spec["length"]
            )[0]
        tokens = tokens.reshape(rows, n, -1)
        mine, of = mesh_lib.process_rows(self._experiment.mesh)
        mine = [row for shard in mine for row in np.split(np.arange(rows), of)[shard]]
        own, ids = tokens[mine], np.zeros(len(mine), np.uint32)
        _, spaces = self._embed(
            state, _host({"text": own}, {"text": own.any((1, 2))}, ids)
        )
        return {
            space: np.asarray(x["text"]).reshape(rows * n, -1)[: len(texts)]
            for space, x in spaces.items()
            if "text" in x
        }


def _host(media: Any, present: Any, example_id: Any) -> RawBatch:
    """Of NumPy arrays; the type is that of the device."""
    return RawBatch(media=media, present=present, example_id=example_id)


def until_told(batches: Iterable[T], told: Told) -> Iterator[T]:
    """The batches, as long as every process has its own and nobody is to stop.

    Raises:
      StoppedError: `told` named a signal.
      UserError: as `distributed.agreed`.
    """
    rows = iter(batches)
    while True:
        if told():
            raise StoppedError
        batch = distributed.agreed(lambda: next(rows, None))
        if batch is None:
            return
        yield batch


def whole_batch(
    mesh: jax.sharding.Mesh,
) -> Callable[[embeddings.HostBatch], embeddings.HostBatch]:
    """This process's rows of a batch -> the same with those of all, without media."""

    def whole(batch: embeddings.HostBatch) -> embeddings.HostBatch:
        if not distributed.several():
            return batch
        shards, _ = mesh_lib.process_rows(mesh)
        size = len(np.asarray(batch.raw.example_id)) // len(shards)
        own = []
        for i, entry in enumerate(batch.info):
            nth, row = divmod(i, size)
            facts = {k: entry[k] for k in ("id", "labels", "classes") if k in entry}
            present = {m: bool(x[i]) for m, x in batch.raw.present.items()}
            text = batch.raw.media.get("text")
            tokens = None if text is None else np.asarray(text[i]).tolist()
            own.append([shards[nth] * size + row, facts, present, tokens])
        # Processes that a `tensor` group joins have the same rows.
        found = {row[0]: row[1:] for part in distributed.gather(own) for row in part}
        facts, present, tokens = zip(*(found[i] for i in sorted(found)), strict=True)
        texts = {} if tokens[0] is None else {"text": np.array(tokens, np.int32)}
        masks = {m: np.array([p[m] for p in present]) for m in present[0]}
        raw = _host(texts, masks, np.zeros(len(facts), np.uint32))
        return pipeline.HostBatch(raw, list(facts))

    return whole


def metrics(
    sections: Mapping[str, Any], faults: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """For a log: of the protocols, and `eval/faults/SPLIT/CLASS`."""
    lost = {
        f"eval/faults/{re.sub(r'[^-.0-9A-Za-z_]', '_', split)}/{name}": float(count)
        for split, met in faults.items()
        for name, count in met.items()
    }
    return evaluate.metrics(sections) | lost


def hook(
    experiment: Experiment,
    pool: DecodePool,
    events: EventLog,
    view: ProgressView,
) -> Hook | None:
    """Evaluation inside training, as the config's `evals` wants it; None = none.

    It reads the state and changes nothing of the run: no parameter, no position in the
    data, no random number.

    Raises:
      UserError: as `Evaluator`; or checkpoints are ranked by an evaluation that is off.
    """
    config, found = experiment.config, settings(experiment.config)
    best = (config["checkpoint"].get("best") or {}).get("metric", "")
    if not found.every:
        if best.startswith("eval/"):
            raise UserError(
                f"config checkpoint.best.metric {best!r} is measured by evaluations "
                "inside training, and evals.every is 0: set it to the steps between "
                "them, a divisor of checkpoint.every"
            )
        return None
    evaluator = Evaluator(
        experiment,
        pool,
        path=experiment.datasets[0][0],
        protocols=found.protocols,
        clips=found.clips,
    )

    def run(step: int, state: TrainState, told: Told) -> dict[str, float]:
        begin = time.perf_counter()
        arm = evaluator.arms({"trained": state}, told)["trained"]
        mine = distributed.agreed(
            lambda: evaluator.judge(arm).sections if distributed.first() else {}
        )
        sections = distributed.from_first(lambda: mine)
        seconds = round(time.perf_counter() - begin, 3)
        said, faults = evaluate.summary(sections), evaluator.faults
        judged = {f"{r.section} {r.case}": r.n for r in evaluate.table_rows(sections)}
        told_of = {"n": judged, "faults": faults, "message": said}
        events.write("eval", step=step, seconds=seconds, **told_of)
        view.note(f"step {step}: evaluated in {seconds:.1f} s: {said}")
        return metrics(sections, faults)

    return Hook(every=found.every, run=run)
