"""VATT-MA-Medium: one Transformer shared by video, audio and text (VATT, Table 1).

    mmssl train --config configs/vatt_ma_medium.py --workdir W --config.data.path=DATA

For a pod: the paper used 256 TPU v3 for under 3 days at batch 2048 and 500k steps.
`:base`, `:small` and `:large` give the other sizes. Nothing was measured here.
"""

import common
import ml_collections


def get_config(size: str = "medium") -> ml_collections.ConfigDict:
    return common.vatt(backbone="shared", size=size, pooled_width=1024)
