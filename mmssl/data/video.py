"""Frame geometry and colour: crops as fractions, one draw for a whole clip."""

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]
"""(top, left, height, width) as fractions of the upright frame."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

SAME_COLOUR = (0.0, 1.0, 1.0, 0.0)
"""What `draw_colour` gives where every strength is 0."""


def centre_box(height: float, width: float, size: tuple[int, int]) -> Box:
    """The largest centred box of the aspect of `size` (h, w) in a frame.

    Cropping it and scaling equals scaling the smallest side and cropping the centre.
    """
    aspect = size[1] / size[0]
    if width >= height * aspect:
        part = height * aspect / width
        return (0.0, (1 - part) / 2, 1.0, part)
    part = width / aspect / height
    return ((1 - part) / 2, 0.0, part, 1.0)


def random_box(
    attempts: Sequence[Sequence[float]],
    height: float,
    width: float,
    size: tuple[int, int],
) -> Box:
    """The first attempt whose box fits in the frame, else the centred box.

    Args:
      attempts: rows (area fraction, aspect w/h relative to that of `size`, y, x), as
        `draw_attempts` gives; y and x in [0, 1] place the box in the free space.
      height: of the upright frame, in display units.
      width: same units, so that non-square pixels are accounted for.
      size: (h, w) of the output.
    """
    for area, aspect, y, x in attempts:
        ratio = aspect * size[1] / size[0]
        tall = (area * height * width / ratio) ** 0.5 / height
        wide = (area * height * width * ratio) ** 0.5 / width
        if tall <= 1 and wide <= 1:
            return (y * (1 - tall), x * (1 - wide), tall, wide)
    return centre_box(height, width, size)


def draw_attempts(
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    count: int = 10,
) -> tuple[tuple[float, float, float, float], ...]:
    """Draws for `random_box`: uniform area, log-uniform aspect, uniform place."""
    areas = rng.uniform(*area, size=count)
    aspects = np.exp(rng.uniform(*np.log(aspect), size=count))
    places = rng.uniform(size=(count, 2))
    rows = np.column_stack([areas, aspects, places])
    return tuple((float(a), float(r), float(y), float(x)) for a, r, y, x in rows)


def draw_colour(
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> tuple[float, float, float, float]:
    """Draws for `models.colour.jitter`; a strength of 0 leaves its property alone.

    Strengths as in VATT section B6: brightness 32/255, contrast 0.4, saturation 0.4,
    hue 0.2 (of a full turn).
    """
    b, c, s, h = rng.uniform(-1, 1, size=4)
    return (
        float(b * brightness),
        float(1 + c * contrast),
        float(1 + s * saturation),
        float(h * hue),
    )


def check_region(region: Sequence[float]) -> None:
    """Raises ValueError unless it is (top, left, height, width) inside the frame."""
    inside = len(region) == 4 and min(region) >= 0 and min(region[2:]) > 0
    # A little slack: 0.7 + 0.3 is more than 1 in floating point.
    if not inside or max(region[0] + region[2], region[1] + region[3]) > 1 + 1e-6:
        raise ValueError(
            "region must be (top, left, height, width) as fractions of the frame, "
            f"inside it; found {tuple(region)}"
        )


def within(region: Box, box: Box) -> Box:
    """A box given in fractions of a region, as fractions of the frame."""
    top, left, tall, wide = region
    return (top + box[0] * tall, left + box[1] * wide, box[2] * tall, box[3] * wide)


def unrotated(box: Box, turns: int) -> Box:
    """The box of the stored frame that `turns` quarter turns bring to `box`.

    Args:
      box: of the upright frame.
      turns: counter-clockwise quarter turns from stored to upright, as np.rot90's k.
    """
    top, left, tall, wide = box
    match turns % 4:
        case 1:
            return (left, 1 - top - tall, wide, tall)
        case 2:
            return (1 - top - tall, 1 - left - wide, tall, wide)
        case 3:
            return (1 - left - wide, top, wide, tall)
    return box
