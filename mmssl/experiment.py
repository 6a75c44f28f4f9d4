"""A resolved config as the parts it names: the only place where they meet.

Every part is built once, when first asked for, so that `mmssl check --no-data` opens no
dataset and `mmssl eval` builds no optimizer it does not need.
"""

import functools
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from mmssl import config as config_lib
from mmssl import files, gradients, models, objectives
from mmssl.errors import UserError
from mmssl.optim import factory
from mmssl.optim.ema import Average
from mmssl.parallel import mesh as mesh_lib
from mmssl.parallel import rules
from mmssl.train import state as state_lib
from mmssl.train import step as step_lib
from mmssl.types import Objective

MODALITIES = ("video", "audio", "text")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.txt")
"""What `mmssl data tokenizer` leaves beside a dataset."""


class Experiment:
    """The parts of one run.

    Args:
      config: resolved; see `config.load`.

    Raises:
      UserError: from each part, when it is first asked for, naming the config's key.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config

    # -- data ------------------------------------------------------------------------

    @functools.cached_property
    def datasets(self) -> list[tuple[str, float]]:
        """(folder, weight) of each dataset of the mixture."""
        value = self.config["data"].get("path")
        if not value:
            raise UserError(
                "config data.path is empty: give the folder of a dataset, "
                "--config.data.path=DIR (`mmssl data build` makes one)"
            )
        if isinstance(value, str):
            return [(value, 1.0)]
        found = []
        for i, entry in enumerate(value):
            if isinstance(entry, str):
                entry = {"path": entry}
            found.append(config_lib.build(_weighted, f"data.path[{i}]", **entry))
        return found

    @functools.cached_property
    def tokenizer_path(self) -> epath.Path | None:
        """The tokenizer's file; None where the config has no text."""
        if self.view_kwargs["text"] is None:
            return None
        named = self.config["data"].get("tokenizer")
        folder = epath.Path(self.datasets[0][0])
        tried = [epath.Path(named)] if named else [folder / f for f in TOKENIZER_FILES]
        for path in tried:
            if path.is_file():
                return path
        key, where = ("data.tokenizer", tried[0]) if named else ("data.path", folder)
        if not where.is_absolute() and not where.exists():
            raise UserError(
                f"no tokenizer: {key} is {str(where)!r}, which is relative, and "
                f"{pathlib.Path.cwd()} has none: run from the folder where the run was "
                "trained, or train with an absolute path"
            )
        raise UserError(
            f"no tokenizer at {' or '.join(map(str, tried))}: train one with "
            f"`mmssl data tokenizer --data {folder}`, or set data.tokenizer"
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The loaded tokenizer, or None without text."""
        if self.tokenizer_path is None:
            return None
        from mmssl.data import text

        return text.load_tokenizer(self.tokenizer_path)

    @functools.cached_property
    def view_kwargs(self) -> dict[str, Any]:
        """`seconds` and the per-modality keyword arguments of `data.views.View`."""
        data = self.config["data"]
        kwargs = {m: _tuples(data.get(m)) for m in MODALITIES}
        if not any(kwargs.values()):
            raise UserError(f"config data: none of {', '.join(MODALITIES)} is set")
        return {"seconds": data.get("seconds", 3.2), **kwargs}

    # -- model and losses ------------------------------------------------------------

    def model_kwargs(self, *, vocab: int | None = None) -> dict[str, Any]:
        """`models.build_model`'s arguments: the config's, with the data's geometry.

        Args:
          vocab: ids of the tokenizer; None reads it from the tokenizer's file.
        """
        view = self.view_kwargs
        kwargs = dict(self.config["model"])
        kwargs |= {m: kwargs.get(m) or {} for m in MODALITIES}
        if view["video"] is not None:
            kept = {
                k: view["video"][k] for k in ("frames", "size") if k in view["video"]
            }
            kwargs["video"] = {**kept, **kwargs["video"]}
        if view["audio"] is not None:
            rate = view["audio"].get("rate", 48000)
            samples = round(view["seconds"] * rate)
            kwargs["audio"] = {"rate": rate, "samples": samples, **kwargs["audio"]}
        if view["text"] is not None:
            size = vocab or self.tokenizer.vocab_size
            kept = {k: view["text"][k] for k in ("length", "candidates")}
            kwargs["text"] = {"vocab": size, **kept, **kwargs["text"]}
        return kwargs | {m: None for m in MODALITIES if view[m] is None}

    @functools.cached_property
    def model(self) -> models.Model:
        return self.build_model()

    def build_model(self, *, vocab: int | None = None) -> models.Model:
        """The encoder; see `model_kwargs` for `vocab`."""
        kwargs = self.model_kwargs(vocab=vocab)
        return config_lib.build(models.build_model, "model", **kwargs)

    def heads_kwargs(self, name: str) -> dict[str, Any]:
        """`models.build_heads`' arguments for objective `name`."""
        entry = self.config["objectives"][name]
        present = [m for m in MODALITIES if self.view_kwargs[m] is not None]
        return {"modalities": present, **(entry.get("heads") or {})}

    @functools.cached_property
    def objectives(self) -> dict[str, Objective]:
        if not self.config["objectives"]:
            raise UserError("config objectives is empty: name at least one")
        built = {}
        for name, entry in self.config["objectives"].items():
            where = f"objectives.{name}"
            if not isinstance(entry, Mapping) or "kind" not in entry:
                raise UserError(f"config {where} needs a kind, like 'contrastive'")
            kwargs = {k: v for k, v in entry.items() if k != "kind"}
            table = objectives.OBJECTIVES
            constructor: Any = config_lib.choose(table, entry["kind"], f"{where}.kind")
            if "heads" in inspect.signature(constructor).parameters:
                kwargs["heads"] = models.build_heads(**self.heads_kwargs(name))
            built[name] = config_lib.build(constructor, where, **kwargs)
        return built

    @property
    def projecting(self) -> dict[str, Objective]:
        """Objectives with heads: those that embed a sample as one vector."""
        return {k: own for k, own in self.objectives.items() if hasattr(own, "heads")}

    @functools.cached_property
    def harmonizer(self) -> gradients.Harmonizer:
        """Weighting and engine by name, or {"kind": name, ...keyword arguments}."""
        entry = {"engine": "subset", **self.config["harmonizer"]}
        tables: dict[str, Any] = {
            "weighting": gradients.WEIGHTINGS,
            "engine": gradients.ENGINES,
        }
        for key, table in tables.items():
            if key in entry:
                entry[key] = _one_of(table, entry[key], f"harmonizer.{key}")
        filters: dict[str, Any] = {
            "curriculum": gradients.Curriculum,
            "trim": gradients.Trim,
        }
        for key, constructor in filters.items():
            if entry.get(key) is None:
                continue
            where = f"harmonizer.{key}"
            if not isinstance(entry[key], Mapping):
                raise UserError(
                    f"config {where}: expected its options, like {where}.steps=1000, "
                    f"found {entry[key]!r}"
                )
            options = {"steps": self.config["steps"], **entry[key]}
            entry[key] = config_lib.build(constructor, where, **_tuples(options))
        return config_lib.build(gradients.Harmonizer, "harmonizer", **entry)

    # -- optimisation ----------------------------------------------------------------

    @functools.cached_property
    def optimizer(self) -> factory.Optimizer:
        kwargs = {**self.config["optim"], "steps": self.config["steps"]}
        if self.config["model"].get("frozen_words") and kwargs.get("weight_decay"):
            # Decoupled decay moves what gets no gradient, too.
            rows = kwargs.get("no_decay", factory.NO_DECAY)
            kwargs["no_decay"] = [*rows, "params/text/word/embedding"]
        return config_lib.build(factory.make_optimizer, "optim", **kwargs)

    @functools.cached_property
    def ema(self) -> Average | None:
        """The running average of the parameters, or None."""
        entry = self.config.get("ema")
        return config_lib.build(Average, "ema", **entry) if entry else None

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return mesh_lib.make_mesh(self.config["mesh"])

    def check_rows(self) -> None:
        """Raises UserError where batch or micro-batch do not divide over the mesh."""
        batch, shards = self.config["batch"], mesh_lib.row_shards(self.mesh)
        mesh_lib.check_batch(batch, self.mesh)
        micro, unit = self.harmonizer.micro_batch, shards * (self.harmonizer.group or 1)
        if micro < batch and micro % unit:
            # It would compute rows on more than one device.
            raise UserError(
                f"harmonizer.micro_batch {micro} is not divisible by {unit}: the "
                f"mesh's {shards} batch shards, times harmonizer.group; it counts the "
                "rows of all devices together"
            )

    def _initial(self, key: Any) -> state_lib.TrainState:
        return state_lib.init_state(
            key,
            init_params=self.model.init,
            objectives=self.objectives,
            widths=self.model.widths,
            harmonizer=self.harmonizer,
            tx=self.optimizer.tx,
            ema=self.ema,
        )

    @functools.cached_property
    def _shapes(self) -> state_lib.TrainState:
        return jax.eval_shape(self._initial, jax.random.key(0))

    @functools.cached_property
    def state_shardings(self) -> state_lib.TrainState:
        """Like the state: parameters, and what follows them, by `parallel.rules`.

        Raises:
          UserError: a parameter, or the attention heads, do not divide over the mesh.
        """
        for name, heads in self.model.heads.items():
            rules.check("heads", heads, self.mesh, what=f"the encoder of {name}")
        return rules.state_shardings(self._shapes, self.mesh)

    def init_state(self) -> state_lib.TrainState:
        """The state before the first step: a function of `seed` alone."""
        init = jax.jit(
            mesh_lib.ambient(self.mesh, self._initial),
            out_shardings=self.state_shardings,
        )
        return init(jax.random.key(self.config["seed"]))

    def abstract_state(self) -> state_lib.TrainState:
        """Shapes, dtypes and shardings of the state, without allocating it."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            self._shapes,
            self.state_shardings,
        )

    @functools.cached_property
    def step(self) -> Any:
        """The jitted train step, the mesh ambient; donates its state.

        Raises:
          UserError: the batch does not divide, see `check_rows`.
        """
        self.check_rows()
        step = step_lib.make_step(
            prepare=self.model.prepare,
            encode=self.model.encode,
            record=self.model.record,
            objectives=self.objectives,
            harmonizer=self.harmonizer,
            tx=self.optimizer.tx,
            schedule=self.optimizer.schedule,
            ema=self.ema,
        )
        return jax.jit(
            mesh_lib.ambient(self.mesh, step),
            donate_argnums=0,
            in_shardings=(self.state_shardings, mesh_lib.batch_sharding(self.mesh)),
            out_shardings=(self.state_shardings, None),
        )

    def fingerprint(self) -> str:
        """Hash of everything in the config that a resumed run must not change."""
        fixed = {
            key: value
            for key, value in config_lib.flat(self.config).items()
            if not config_lib.may_change(key)
        }
        return files.sha256_of_json(fixed)


def _one_of(table: Mapping[str, Any], value: Any, where: str) -> Any:
    """A name, or {"kind": name, ...keyword arguments}, as what it names."""
    options = dict(value) if isinstance(value, Mapping) else {"kind": value}
    kind = options.pop("kind", None)
    return config_lib.build(
        config_lib.choose(table, kind, where), where, **_tuples(options)
    )


def _weighted(*, path: str, weight: float = 1.0) -> tuple[str, float]:
    if weight <= 0:
        raise ValueError(f"weight must be positive, found {weight}")
    return path, float(weight)


def _tuples(value: Any) -> Any:
    """Configs hold lists, the parts' frozen dataclasses tuples."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
