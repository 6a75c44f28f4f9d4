"""GRID talking faces: sight, sound and words of short sentences, one speaker.

    mmssl data build --manifest GRID/manifest.jsonl --out data/grid
    mmssl data tokenizer --data data/grid --kind word
    mmssl train --config configs/grid.py --workdir runs/grid \\
        --config.data.path=data/grid

For 2 CPU cores.
"""

import common
import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = common.base()
    config.steps = 1500
    config.batch = 64
    config.data.update(
        tokenizer="",
        seconds=2.72,
        video={
            "frames": 68,
            "size": (32, 48),
            # Around the mouth: lips are ten pixels wide in a frame of 128 x 102.
            "region": (0.55, 0.27, 0.39, 0.46),
            "crop_area": (0.6, 0.9),
            "crop_aspect": (0.9, 1.1),
            "flip": 0.5,
            "colour": 0.0,
        },
        audio={"rate": 16000, "noise": 0.01},
        text={"length": 8, "candidates": 1},
    )
    config.model = {
        "backbone": "shared",
        "size": {"layers": 4, "width": 128, "mlp": 512, "heads": 4},
        "video": {"patch": (4, 16, 16), "motion": True},
        "audio": {"tokenizer": "log_mel", "window": 400, "hop": 160, "patch": (8, 80)},
        "drop_token": 0.5,
        "drop_per_sample": True,
        "dropout": 0.0,
    }
    config.objectives = {
        "contrast": {
            "kind": "contrastive",
            "heads": {"kind": "joint", "features": 128},
            "pairs": {
                "va": {"modalities": ("video", "audio"), "space": "joint"},
                "vt": {"modalities": ("video", "text"), "space": "joint"},
                "at": {"modalities": ("audio", "text"), "space": "joint"},
            },
            "form": "textbook",
            "temperature": 0.07,
        }
    }
    config.optim = {
        "name": "adamw",
        "peak_lr": 1e-3,
        "end_lr": 0.0,
        "schedule": "half_cosine",
        "warmup": 100,
        "weight_decay": 0.05,
        "eps": 1e-8,
    }
    config.checkpoint = {"every": 500, "keep": 2}
    return config
