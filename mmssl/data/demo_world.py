"""A generated world in which video, audio and text share their content.

A clip shows one coloured shape in one motion over a noisy, tinted background, sometimes
with a second, still shape for a while. The sound is a function of the same content:
pitch by colour, overtones by shape, modulation by motion, plus noise. The text names
it in varying words. Pure NumPy; a scene is a function of its generator alone.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Float32, UInt8

HEIGHT, WIDTH, FPS, SECONDS, RATE = 64, 80, 12.5, 2.4, 16_000
FRAMES, SAMPLES = 30, 38_400

COLORS = {
    "red": ((225, 50, 45), 200.0, ("red", "crimson", "scarlet")),
    "green": ((45, 185, 70), 300.0, ("green", "emerald")),
    "blue": ((45, 85, 230), 450.0, ("blue", "navy")),
    "yellow": ((235, 215, 45), 675.0, ("yellow", "golden")),
    "purple": ((190, 55, 205), 1012.0, ("purple", "violet")),
    "cyan": ((50, 205, 215), 1519.0, ("cyan", "turquoise")),
}
"""Name -> RGB, pitch in Hz, words."""

SHAPES = {
    "circle": ((1.0, 1.0),),
    "square": ((1.0, 1.0), (3.0, 0.6), (5.0, 0.4), (7.0, 0.3)),
    "triangle": ((1.0, 0.5), (2.0, 1.0), (4.0, 0.7)),
    "cross": ((1.0, 1.0), (1.41, 0.8), (2.76, 0.6)),
}
"""Name -> (frequency ratio, amplitude) of each partial of its sound."""

SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
}

MOTIONS = {
    "left": ("moves left", "slides to the left", "drifts leftwards"),
    "right": ("moves right", "slides to the right", "drifts rightwards"),
    "up": ("moves up", "rises", "climbs upwards"),
    "down": ("moves down", "sinks", "falls downwards"),
    "pulse": ("pulses", "grows and shrinks", "swells again and again"),
}
"""Name -> words."""

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_BEFORE = ("", "", "look", "here", "you can see how", "and now", "okay so")
_AFTER = ("", "", "on the screen", "once more", "as we said", "in this video")


@dataclasses.dataclass(frozen=True)
class Content:
    """What a clip is about: its labels, and the still shape that comes and goes.

    Attributes:
      extra: (shape, color) of the second shape, or None.
      interval: seconds during which the second shape is seen and heard.
    """

    shape: str
    color: str
    motion: str
    extra: tuple[str, str] | None = None
    interval: tuple[float, float] = (0.0, 0.0)

    @property
    def labels(self) -> dict[str, str]:
        return {"shape": self.shape, "color": self.color, "motion": self.motion}


def draw(rng: np.random.Generator) -> Content:
    """A content, uniform over shapes, colours and motions."""
    shapes, colors = list(SHAPES), list(COLORS)
    shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
    motion = str(rng.choice(list(MOTIONS)))
    if rng.random() > 0.3:
        return Content(shape, color, motion)
    extra = (str(rng.choice(shapes)), str(rng.choice(colors)))
    start = float(rng.uniform(0.2, 1.2))
    end = start + float(rng.uniform(0.8, 1.2))
    return Content(shape, color, motion, extra, (round(start, 2), round(end, 2)))


def _coverage(
    shape: str,
    dx: Float[np.ndarray, "*any h w"],
    dy: Float[np.ndarray, "*any h w"],
    radius: Float[np.ndarray, "*any 1 1"],
) -> Float[np.ndarray, "*any h w"]:
    """How much of each pixel the shape covers, from its signed distance."""
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.88 * radius
    elif shape == "triangle":
        distance = np.maximum(0.866 * abs(dx) - 0.5 * dy, dy) - 0.62 * radius
    else:
        bar = np.maximum(abs(dx) - 1.1 * radius, abs(dy) - 0.38 * radius)
        post = np.maximum(abs(dy) - 1.1 * radius, abs(dx) - 0.38 * radius)
        distance = np.minimum(bar, post)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _background(rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    image = np.full((HEIGHT, WIDTH, 3), rng.uniform(60, 170))
    for _ in range(3):
        u, v = rng.uniform(-1.5, 1.5, 2)
        wave = np.cos(2 * np.pi * (u * x + v * y + rng.random()))
        image += wave[..., None] * rng.uniform(-18, 18, 3)
    return (image + rng.normal(0, 5, image.shape)).astype(np.float32)


def render_video(
    content: Content, rng: np.random.Generator
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames at `FPS`. Positions wrap around, so no place gives the motion away."""
    time = (np.arange(FRAMES, dtype=np.float32) / FPS)[:, None, None]
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    frames = np.repeat(_background(rng)[None], FRAMES, axis=0)

    def place(
        shape: str, color: str, motion: str, radius: float, shown: np.ndarray
    ) -> None:
        u, v = _DIRECTIONS.get(motion, (0, 0))
        speed, angle = rng.uniform(22, 38), rng.uniform(-0.25, 0.25)
        cx = rng.uniform(0, WIDTH) + u * speed * time
        cy = rng.uniform(0, HEIGHT) + v * speed * time
        dx = (x - cx + WIDTH / 2) % WIDTH - WIDTH / 2
        dy = (y - cy + HEIGHT / 2) % HEIGHT - HEIGHT / 2
        dx, dy = (
            dx * math.cos(angle) + dy * math.sin(angle),
            dy * math.cos(angle) - dx * math.sin(angle),
        )
        beat = 0.4 * np.sin(2 * np.pi * (1.25 * time + rng.random()))
        size = radius * (1 + (beat if motion == "pulse" else 0 * time))
        paint = np.array(COLORS[color][0]) + rng.uniform(-22, 22, 3)
        paint = paint.astype(np.float32)
        cover = (_coverage(shape, dx, dy, size) * shown)[..., None]
        frames[:] += (paint - frames) * cover

    if content.extra:
        start, end = content.interval
        shown = ((time >= start) & (time < end)).astype(np.float32)
        place(*content.extra, "still", rng.uniform(5, 6.5), shown)
    always = np.ones_like(time)
    radius = rng.uniform(10, 14)
    place(content.shape, content.color, content.motion, radius, always)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _tone(
    shape: str, color: str, motion: str, rng: np.random.Generator
) -> Float[np.ndarray, "s"]:
    time = np.arange(SAMPLES) / RATE
    phase = rng.random()
    pitch = np.full(SAMPLES, COLORS[color][1] * rng.uniform(0.98, 1.02))
    level = np.ones(SAMPLES)
    if motion in ("left", "right"):
        glide = 0.3 * ((time / 0.6 + phase) % 1 - 0.5)
        pitch *= 1 + (glide if motion == "right" else -glide)
    elif motion in ("up", "down"):
        speed = 11.0 if motion == "up" else 3.5
        level = 0.55 + 0.45 * np.sin(2 * np.pi * (speed * time + phase))
    elif motion == "pulse":
        level = ((time * 1.25 + phase) % 1 < 0.5).astype(float)
        level = np.convolve(level, np.ones(160) / 160, mode="same")  # no clicks
    angle = 2 * np.pi * np.cumsum(pitch) / RATE
    wave = np.zeros(SAMPLES)
    for ratio, amplitude in SHAPES[shape]:
        audible = pitch * ratio < 0.47 * RATE
        wave += amplitude * audible * np.sin(ratio * angle + rng.uniform(0, 2 * np.pi))
    return level * wave / np.sqrt(sum(a * a for _, a in SHAPES[shape]))


def render_audio(
    content: Content, rng: np.random.Generator
) -> Float32[np.ndarray, "s"]:
    """Mono sound at `RATE`, noise 12 to 25 dB below it."""
    wave = _tone(content.shape, content.color, content.motion, rng)
    if content.extra:
        start, end = (round(t * RATE) for t in content.interval)
        wave[start:end] += 0.35 * _tone(*content.extra, "still", rng)[start:end]
    noise = rng.normal(0, 1, SAMPLES) * 10 ** (-rng.uniform(12, 25) / 20)
    wave = (wave + noise) * rng.uniform(0.08, 0.2)
    return np.clip(wave, -1, 1).astype(np.float32)


def _phrase(shape: str, color: str, rng: np.random.Generator) -> str:
    words = [rng.choice(COLORS[color][2]), rng.choice(SHAPE_WORDS[shape])]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([str(rng.choice([article, "the"])), *words])


def sentence(content: Content, rng: np.random.Generator) -> str:
    """The content in one of many wordings, with words that mean nothing around it."""
    main = _phrase(content.shape, content.color, rng)
    parts = [_BEFORE[rng.integers(len(_BEFORE))], main]
    parts += [str(rng.choice(MOTIONS[content.motion]))]
    parts += [_AFTER[rng.integers(len(_AFTER))]]
    return " ".join(part for part in parts if part)


def describe(
    content: Content, rng: np.random.Generator
) -> list[tuple[float, float, str]]:
    """Timed segments: two wordings of the main shape, one of the second shape."""
    middle = round(float(rng.uniform(0.9, 1.5)), 2)
    segments = [
        (0.0, middle, sentence(content, rng)),
        (middle, SECONDS, sentence(content, rng)),
    ]
    if content.extra:
        start, end = content.interval
        seen = f"{_phrase(*content.extra, rng)} appears"
        segments.append((start, min(end, SECONDS), f"for a moment {seen}"))
    return sorted(segments)
