"""A part of a trained model: the towers and projections of some of its modalities."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmssl import errors, models
from mmssl.types import Params

MODALITIES = ("video", "audio", "text")


def only(
    modalities: Sequence[str],
    *,
    params: Params,
    heads: Mapping[str, tuple[Any, Any]],
    model_kwargs: Mapping[str, Any],
    heads_kwargs: Mapping[str, Mapping[str, Any]],
    data_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Leaves out the other modalities; a shared backbone stays whole.

    Args:
      modalities: what to keep.
      params: of the encoder, as are the others, for `safetensors_export.export`.
      heads: objective -> (parameters, state).
      model_kwargs: of `models.build_model`.
      heads_kwargs: objective -> arguments of `models.build_heads`; they stay, an export
        restricts what they build to its modalities.
      data_kwargs: the preprocessing.

    Returns:
      The same keyword arguments.

    Raises:
      UserError: a modality that the model lacks, or none.
    """
    known = [m for m in MODALITIES if model_kwargs.get(m) is not None]
    for name in modalities:
        if name not in known:
            raise errors.UserError(
                f"export: the model has no {name!r}{errors.nearest(name, known)}; it "
                f"has {', '.join(known)}"
            )
    if not modalities:
        raise errors.UserError(f"export: name a modality: {', '.join(known)}")
    gone = {m for m in MODALITIES if m not in modalities}
    kept = {}
    for name, (head, state) in heads.items():
        chains = models.build_heads(**heads_kwargs[name]).only(modalities).chains
        kept[name] = tuple({c: tree[c] for c in chains} for tree in (head, state))
    towers = gone | {f"{m}_encoder" for m in gone}
    settings: dict[str, Any] = {**model_kwargs, **dict.fromkeys(gone)}
    for key in ("size", "drop_token"):  # may be one for all, or by modality
        if isinstance(settings.get(key), Mapping):
            settings[key] = {k: v for k, v in settings[key].items() if k not in gone}
    return {
        "params": {name: tree for name, tree in params.items() if name not in towers},
        "heads": kept,
        "model_kwargs": settings,
        "heads_kwargs": heads_kwargs,
        "data_kwargs": {k: v for k, v in data_kwargs.items() if k not in gone},
    }
