"""Encoder sizes by name.

Sources: VATT (arXiv 2104.11178) for small (there the text tower), base, medium and
large, all with 64 dimensions per head. `tiny` is ours, for demos and tests.
"""

from collections.abc import Mapping

from mmssl import errors

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 4, "width": 128, "mlp": 512, "heads": 4},
    "small": {"layers": 6, "width": 512, "mlp": 2048, "heads": 8},
    "base": {"layers": 12, "width": 768, "mlp": 3072, "heads": 12},
    "medium": {"layers": 12, "width": 1024, "mlp": 4096, "heads": 16},
    "large": {"layers": 24, "width": 1024, "mlp": 4096, "heads": 16},
}

FIELDS = ("layers", "width", "mlp", "heads")

MODALITIES = ("video", "audio", "text")


def encoder_size(size: str | Mapping[str, int], *, what: str) -> dict[str, int]:
    """`"base"` or a dict of layers, width, mlp, heads -> that dict.

    Args:
      size: a name in SIZES, or the four numbers.
      what: the setting's name, for error messages.

    Raises:
      UserError: an unknown name or field, a number below 1, or a width that the
        heads do not divide.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise errors.UserError(
                f"{what}: unknown size {size!r}{errors.nearest(size, SIZES)} "
                f"(known: {', '.join(SIZES)})"
            )
        return dict(SIZES[size])
    if set(size) != set(FIELDS):
        raise errors.UserError(
            f"{what}: expected a size name or a dict of exactly {', '.join(FIELDS)}; "
            f"found {', '.join(map(str, size)) or 'nothing'}"
        )
    numbers = {field: int(size[field]) for field in FIELDS}
    if min(numbers.values()) < 1:
        raise errors.UserError(f"{what}: every number must be at least 1: {numbers}")
    width, heads = numbers["width"], numbers["heads"]
    if width % heads:
        raise errors.UserError(
            f"{what}: width {width} is not divisible by {heads} heads; nearest valid "
            f"widths: {max(width // heads, 1) * heads}, {(width // heads + 1) * heads}"
        )
    return numbers


def sizes_by_modality(
    size: str | Mapping[str, object], modalities: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """One encoder size per modality, from one for all or a dict by modality.

    Raises:
      UserError: a modality without a size, or a size for one the model lacks.
    """
    if isinstance(size, str) or not set(size) & set(MODALITIES):
        shared = encoder_size(size, what="model.size")  # pyright: ignore[reportArgumentType]
        return {m: dict(shared) for m in modalities}
    if set(size) != set(modalities):
        raise errors.UserError(
            f"model.size: expected one size for each of {', '.join(modalities)}; "
            f"found {', '.join(size)}"
        )
    return {
        m: encoder_size(size[m], what=f"model.size.{m}")  # pyright: ignore[reportArgumentType]
        for m in modalities
    }
