"""A small shared VATT on the demo world: the whole road on a laptop's CPU.

    mmssl data demo --out runs/demo/media --clips 400
    mmssl data build --manifest runs/demo/media/manifest.jsonl --out runs/demo/data
    mmssl data tokenizer --data runs/demo/data
    mmssl train --config configs/demo.py --workdir runs/demo \\
        --config.data.path=runs/demo/data

For 2 CPU cores; it also fits any small set of short clips. `demo.py:harmonized`
realigns conflicting gradients and filters by conflict; `demo.py:fine_grained` also
compares tokens.
"""

import common
import ml_collections


def get_config(variant: str = "plain") -> ml_collections.ConfigDict:
    known = ("plain", "harmonized", "fine_grained")
    if variant not in known:
        raise ValueError(f"expected one of {', '.join(known)}, not {variant!r}")
    config = common.base()
    if variant == "harmonized":
        config.harmonizer = common.gradient_harmonization()
    config.steps = 160
    config.batch = 32
    config.data.update(
        seconds=2.0,
        video={
            "frames": 16,
            "size": (48, 48),
            "crop_area": (0.7, 1.0),
            "crop_aspect": (0.9, 1.1),
            "flip": 0.0,  # a mirrored clip would move the other way than its words say
            "colour": 0.0,  # colour is one of the things said
        },
        audio={"rate": 16000, "noise": 0.01},
        text={"length": 12, "candidates": 2},
    )
    config.model = {
        "backbone": "shared",
        "size": "tiny",
        "video": {"patch": (4, 12, 12)},
        "audio": {"tokenizer": "log_mel", "window": 640, "hop": 320, "patch": (5, 80)},
        "drop_token": 0.25,
        "dropout": 0.0,
    }
    config.objectives = {
        "contrast": {
            "kind": "contrastive",
            "heads": {"kind": "joint", "features": 128},
            "form": "textbook",
            "temperature": 0.1,
        }
    }
    if variant == "fine_grained":
        config.objectives["fine"] = {
            "kind": "fine_grained",
            "pairs": {
                "fine_va": {"modalities": ("video", "audio"), "window": 0.5},
                "fine_vt": {"modalities": ("video", "text")},
            },
            "rates": {"video": 2.0, "audio": 10.0},  # tokens per second
            "features": 128,
        }
    config.optim = {
        "name": "adamw",
        "peak_lr": 2e-3,
        "end_lr": 0.0,
        "schedule": "half_cosine",
        "warmup": 20,
        "weight_decay": 0.05,
        "b2": 0.98,
        "eps": 1e-8,
        "grad_clip": 1.0,
    }
    config.checkpoint.update(every=80, keep=2)
    config.log.every = 10
    return config
