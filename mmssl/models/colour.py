"""Colour jitter of videos, on the device: the host only draws its strengths.

On the host it took as long as decoding did; see docs/loader.md.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Rec. 601 luma; YIQ is the space in which hue is a rotation.
YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
RGB = np.linalg.inv(YIQ)
"""The way to YIQ, and back."""


def jitter(
    video: UInt8[Array, "b f h w 3"], colour: Float[Array, "b 4"]
) -> UInt8[Array, "b f h w 3"]:
    """One colour change per clip, rounded and clipped to [0, 255] (VATT B6).

    Brightness adds, saturation and hue scale and rotate chroma (in YIQ), contrast
    stretches around the clip's mean colour: together one affine map of RGB. Row-wise.

    Args:
      video: RGB.
      colour: (added brightness in [-1, 1], contrast factor, saturation factor, hue in
        turns), as `data.video.draw_colour` gives; (0, 1, 1, 0) changes nothing.
    """
    brightness, contrast, saturation, hue = colour.astype(jnp.float32).T
    # A turn of the chroma plane is a sum of three fixed maps of RGB.
    chroma = np.diag([0.0, 1.0, 1.0])
    across = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    luma, same, other = (
        jnp.asarray(RGB @ part @ YIQ, jnp.float32)[None]
        for part in (np.diag([1.0, 0.0, 0.0]), chroma, across)
    )
    angle = 2 * jnp.pi * hue
    along = (saturation * jnp.cos(angle))[:, None, None]
    aside = (saturation * jnp.sin(angle))[:, None, None]
    matrix = luma + along * same + aside * other
    mean = video.mean((1, 2, 3), dtype=jnp.float32)
    mean = (matrix * mean[:, None, :]).sum(-1)
    offset = (1 - contrast)[:, None] * mean + 255 * brightness[:, None]
    matrix = contrast[:, None, None] * matrix

    def rows(x: Float[Array, "b 3"]) -> Float[Array, "b 1 1 1 3"]:
        return x[:, None, None, None, :]

    # A product of matrices would be 3 x 3: too small for what does products.
    x = video.astype(jnp.float32)
    out = sum(x[..., i : i + 1] * rows(matrix[:, :, i]) for i in range(3))
    return jnp.round(jnp.clip(out + rows(offset), 0, 255)).astype(jnp.uint8)
