"""VATT-MBS: a Medium video, a Base audio and a Small text tower (VATT, Table 1).

    mmssl train --config configs/vatt_mbs.py --workdir W --config.data.path=DATA

For a pod: the paper used 256 TPU v3 for under 3 days at batch 2048 and 500k steps.
`:bbs` and `:lbs` give the other combinations. Nothing was measured here.
"""

import common
import ml_collections

SIZES = {"s": "small", "b": "base", "m": "medium", "l": "large"}


def get_config(sizes: str = "mbs") -> ml_collections.ConfigDict:
    if len(sizes) != 3 or not set(sizes) <= set(SIZES):
        raise ValueError(
            f"expected three of {'/'.join(SIZES)} such as mbs, not {sizes!r}"
        )
    config = common.base()
    config.steps = 500_000
    config.batch = 2048
    config.data.update(common.vatt_data())
    video, audio, text = (SIZES[letter] for letter in sizes)
    config.model = {
        "backbone": "specific",
        "size": {"video": video, "audio": audio, "text": text},
        "video": {"patch": (4, 16, 16)},
        "audio": {"tokenizer": "wave", "patch": 128},
        "drop_token": 0.5,
        "dropout": 0.1,
        "word_width": 300,
        "dtype": "bfloat16",
        "scan": True,
        "remat": "none",
    }
    config.objectives = {"vatt": common.vatt_objective()}
    config.optim = common.vatt_optim()
    config.checkpoint = {"every": 10_000, "keep": 50}
    return config
