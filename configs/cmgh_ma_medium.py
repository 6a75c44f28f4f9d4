"""VATT-MA-Medium with cross-modality gradient harmonization (arXiv 2211.02077).

    mmssl train --config configs/cmgh_ma_medium.py --workdir W --config.data.path=DATA

Where a clip's video-audio and video-text gradients conflict, each is projected on the
other's normal plane; and clips whose cosine is at or below a threshold, which rises
over the run, are dropped. All else is `vatt_ma_medium.py`; `:base`, `:small` and
`:large` give the other sizes.

For a pod: the paper used 256 TPU v3 for 3 days. Nothing was measured here, and no
figure of the paper was available to us. Not known, so chosen: the granularity (here
per clip), the parameters compared (here the Transformer), the threshold's values (here
-0.3 to 0, linear over the run), and the scale after dropping (here a mean over what is
kept). docs/harmonization.md says how to change each.
"""

import common
import ml_collections


def get_config(size: str = "medium") -> ml_collections.ConfigDict:
    config = common.vatt(backbone="shared", size=size, pooled_width=1024)
    config.harmonizer = common.gradient_harmonization()
    return config
