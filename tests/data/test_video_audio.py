"""Host transforms against plain float64 references."""

import numpy as np
import pytest

from mmssl.data import audio, video


def test_centre_box_keeps_the_aspect_and_the_whole_short_side() -> None:
    for height, width, size in (
        (100, 200, (50, 50)),
        (200, 100, (32, 64)),
        (9, 9, (3, 3)),
    ):
        top, left, tall, wide = video.centre_box(height, width, size)
        assert max(tall, wide) == pytest.approx(1)
        assert (wide * width) / (tall * height) == pytest.approx(size[1] / size[0])
        assert (top, left) == pytest.approx(((1 - tall) / 2, (1 - wide) / 2))


def test_random_boxes_have_the_drawn_area_and_aspect_and_lie_inside() -> None:
    rng = np.random.default_rng(2)
    areas = []
    for _ in range(300):
        draws = video.draw_attempts(rng, area=(0.08, 1.0), aspect=(0.5, 2.0))
        top, left, tall, wide = video.random_box(draws, 90, 160, (64, 80))
        assert min(top, left) >= 0
        assert max(top + tall, left + wide) <= 1 + 1e-9
        areas.append(tall * wide)
        ratio = (wide * 160) / (tall * 90) / (80 / 64)
        assert 0.499 < ratio < 2.001
    assert min(areas) < 0.15
    assert 0.4 < np.mean(areas) < 0.6


def test_a_box_that_never_fits_becomes_the_centred_one() -> None:
    draws = ((1.0, 2.0, 0.0, 0.0),) * 3
    assert video.random_box(draws, 10, 10, (4, 4)) == video.centre_box(10, 10, (4, 4))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_unrotated_boxes_hold_the_same_pixels(turns: int) -> None:
    stored = np.arange(8 * 12).reshape(8, 12)
    upright = np.rot90(stored, turns)
    height, width = upright.shape
    box = (1 / height, 2 / width, 3 / height, 5 / width)
    top, left, tall, wide = video.unrotated(box, turns)
    rows = slice(round(top * 8), round((top + tall) * 8))
    columns = slice(round(left * 12), round((left + wide) * 12))
    np.testing.assert_array_equal(
        np.rot90(stored[rows, columns], turns), upright[1:4, 2:7]
    )


def test_noise_has_the_stated_strength_and_leaves_silence() -> None:
    rng = np.random.default_rng(3)
    wave = np.zeros(20000, np.float32)
    wave[0] = -0.8
    noise = audio.add_noise(wave, rng, strength=0.01) - wave
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.008, rel=0.05)
    assert not audio.add_noise(np.zeros(9, np.float32), rng, strength=0.01).any()


def test_a_box_within_a_region_is_a_box_of_the_frame() -> None:
    region = (0.5, 0.25, 0.4, 0.5)
    assert video.within(region, video.WHOLE) == pytest.approx(region)
    box = video.within(region, (0.5, 0.0, 0.5, 1.0))
    assert box == pytest.approx((0.7, 0.25, 0.2, 0.5))


@pytest.mark.parametrize("region", [(0, 0, 1), (0.5, 0, 0.6, 1), (0, 0, 0, 1)])
def test_a_region_outside_the_frame_is_refused(region: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions of the frame"):
        video.check_region(region)
