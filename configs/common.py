"""Blocks that the recipes share. Every value is a keyword argument of a constructor."""

from typing import Any

import ml_collections


def base() -> Any:
    """A ConfigDict with all top-level keys; a recipe sets what differs.

    data -> data.views.View, model -> models.build_model (the data's geometry is added),
    objectives.NAME -> objectives.OBJECTIVES[kind], harmonizer ->
    gradients.Harmonizer, optim -> optim.factory.make_optimizer,
    ema -> optim.ema.Average, init_from -> init_from.plan,
    data.limits -> data.faults.Limits, data.reads -> data.sources.Reads.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 1000
    config.batch = 64
    config.mesh = {"data": -1}  # replica, data, fsdp, tensor: see docs/sharding.md
    config.data = {
        "path": "",  # a dataset's folder, or [{"path": ..., "weight": ...}, ...]
        "split": "train",
        "tokenizer": "",  # "" = the one beside the first dataset
        "seconds": 3.2,
        "threads": None,  # None = two more than workers
        "workers": None,  # None = one decode process per CPU core
        "limits": {},
        "reads": {},  # attempts, wait, seconds: see data.sources.Reads
        "max_fault_fraction": 0.1,
        "video": None,
        "audio": None,
        "text": None,
    }
    config.model = {}
    config.objectives = {}
    config.harmonizer = {"weighting": "sum"}
    config.optim = {}
    config.ema = {}  # {"decay": 0.9999}: also average the parameters over steps
    config.init_from = {}  # {"path": a workdir or an export}: see mmssl.init_from.plan
    config.checkpoint = {"every": 1000, "keep": 3, "keep_every": 0, "best": {}}
    config.evals = {
        "split": "test",
        "train_split": "train",
        "batch": 64,
        "windows": 1,
        "knn_k": 20,
        "prompts": ["{}"],  # zero-shot classification: {} = the class
        "every": 0,  # steps between evaluations inside training; 0 = none
        "protocols": ["retrieval"],  # of those
        "clips": 1024,  # of a split, at most, for those
    }
    config.log = {
        "every": 50,
        "tensorboard": True,
        "wandb": {},  # {"project": ...}: train.trackers.Wandb
        "mlflow": {},  # {"experiment": ...}: train.trackers.Mlflow
        "profile": [],  # [first, last]: trace these steps
        "max_nonfinite": 10,
    }
    config.watchdog = {}  # seconds a part may take: train.watchdog.Watchdog
    return config


def vatt_data() -> dict[str, Any]:
    """VATT's input: 32 frames at 10 fps and 224 px, 48 kHz, 5 texts of 16 words.

    The augmentation defaults of `data.views` are the paper's (section B6 of VATT:
    random crop, flip, colour jitter, audio noise).
    """
    return {
        "seconds": 3.2,
        "video": {"frames": 32, "size": (224, 224)},
        "audio": {"rate": 48000},
        "text": {"length": 16, "candidates": 5},
    }


def vatt_objective() -> dict[str, Any]:
    """NCE for video-audio, MIL-NCE for video-text, in the official form and heads."""
    return {
        "kind": "contrastive",
        "heads": {"kind": "official"},
        "pairs": {
            "va": {"modalities": ("video", "audio"), "space": "va"},
            "vt": {"modalities": ("video", "text"), "space": "vt"},
        },
        "form": "official",
        "temperature": 0.07,
    }


def vatt_optim() -> dict[str, Any]:
    """The paper's: Adam, 10k steps of warm-up, quarter-period cosine 1e-4 -> 5e-5."""
    return {
        "name": "adam",
        "peak_lr": 1e-4,
        "schedule": "quarter_cosine",
        "warmup": 10_000,
    }


def gradient_harmonization() -> dict[str, Any]:
    """Two-sided realignment and a curriculum by conflict (Wu et al., arXiv 2211.02077).

    What we could not learn of the paper is a choice here: see
    docs/harmonization.md, "What is not known".
    """
    return {
        "weighting": "pcgrad",
        "engine": "subset",
        "group": 1,
        "curriculum": {"rule": "threshold", "start": -0.3, "end": 0.0},
    }


def vatt(**model: Any) -> Any:
    """VATT's pretraining: input, losses, optimizer, and what all its models share.

    Args:
      **model: keyword arguments of `models.build_model` beside the shared ones.
    """
    config = base()
    config.steps = 500_000
    config.batch = 2048
    config.data.update(vatt_data())
    config.model = {
        "video": {"patch": (4, 16, 16)},
        "audio": {"tokenizer": "wave", "patch": 128},
        "drop_token": 0.5,
        "dropout": 0.1,
        "word_width": 300,
        "dtype": "bfloat16",
        "scan": True,
        "remat": "none",
        **model,
    }
    config.objectives = {"vatt": vatt_objective()}
    config.optim = vatt_optim()
    config.checkpoint.update(every=10_000, keep=3, keep_every=100_000)
    return config
