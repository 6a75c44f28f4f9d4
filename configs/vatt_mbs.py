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
    video, audio, text = (SIZES[letter] for letter in sizes)
    return common.vatt(
        backbone="specific", size={"video": video, "audio": audio, "text": text}
    )
