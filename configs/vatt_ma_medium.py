"""VATT-MA-Medium: one Transformer shared by video, audio and text (VATT, Table 1).

    mmssl train --config configs/vatt_ma_medium.py --workdir W --config.data.path=DATA

For a pod: the paper used 256 TPU v3 for under 3 days at batch 2048 and 500k steps.
`:base`, `:small` and `:large` give the other sizes. Nothing was measured here.
"""

import common
import ml_collections


def get_config(size: str = "medium") -> ml_collections.ConfigDict:
    config = common.base()
    config.steps = 500_000
    config.batch = 2048
    config.data.update(common.vatt_data())
    config.model = {
        "backbone": "shared",
        "size": size,
        "video": {"patch": (4, 16, 16)},
        "audio": {"tokenizer": "wave", "patch": 128},
        "drop_token": 0.5,
        "dropout": 0.1,
        "pooled_width": 1024,
        "word_width": 300,
        "dtype": "bfloat16",
        "scan": True,
        "remat": "none",
    }
    config.objectives = {"vatt": common.vatt_objective()}
    config.optim = common.vatt_optim()
    config.checkpoint = {"every": 10_000, "keep": 50}
    return config
