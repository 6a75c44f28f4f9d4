"""mmssl: self-supervised pretraining from video, audio and text."""

from importlib import metadata as _metadata
from typing import Any

__version__ = "0.1.0"

# Refused here, before jax is imported, so that no command can run on it.
if _metadata.version("jax") == "0.10.2" or _metadata.version("jaxlib") == "0.10.2":
    raise ImportError(
        "mmssl refuses jax 0.10.2: it computes wrong LayerNorm gradients on CPU for "
        "batched cotangents, without a warning. Install another release, for example "
        "`pip install 'jax==0.10.1'` (Python 3.11) or `pip install 'jax>=0.12'`."
    )


def load(path: Any) -> Any:
    """Loads an exported encoder: `mmssl.load(DIR).encode_video(...)`.

    Args:
      path: a folder written by `mmssl export`.

    Returns:
      An `mmssl.export.encoder.Encoder`.
    """
    from mmssl.export import encoder  # jax and flax load only when asked for

    return encoder.load(path)
