"""Health metrics against NumPy in float64, and the collapse warning."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.train.health import collapse_warning, health


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_rank(x: np.ndarray) -> float:
    values = np.sqrt(np.clip(np.linalg.eigvalsh(x.T @ x), 0, None))
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def reference_uniformity(x: np.ndarray) -> float:
    pairs = [
        np.exp(-2 * ((x[i] - x[j]) ** 2).sum())
        for i in range(len(x))
        for j in range(i + 1, len(x))
    ]
    return float(np.log(np.mean(pairs)))


def measured(embeddings: dict[str, np.ndarray], **options) -> dict[str, float]:
    arrays = {n: jnp.asarray(x, jnp.float32) for n, x in embeddings.items()}
    return {n: float(v) for n, v in health(arrays, **options).items()}


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    video = unit(rng.normal(size=(24, 8)) * np.linspace(2, 0.1, 8))
    return video, unit(video + 0.5 * rng.normal(size=(24, 8)))


def test_equals_the_reference(pair):
    video, audio = pair
    found = measured({"video/va": video, "audio/va": audio, "video/vt": audio})
    for name, x in (("video/va", video), ("audio/va", audio)):
        spread = x.std(0).mean() * np.sqrt(8)
        assert found[f"health/spread/{name}"] == pytest.approx(spread, rel=1e-5)
        rank = reference_rank(x)
        assert found[f"health/rank/{name}"] == pytest.approx(rank, rel=1e-5)
        uniformity = reference_uniformity(x)
        assert found[f"health/uniformity/{name}"] == pytest.approx(uniformity, rel=1e-5)
    alignment = ((video - audio) ** 2).sum(-1).mean()
    assert found["health/alignment/audio-video/va"] == pytest.approx(
        alignment, rel=1e-5
    )
    assert sum("alignment" in name for name in found) == 1  # vt has one modality


def test_absent_rows_do_not_count(pair):
    video, audio = pair
    absent = audio.copy()
    absent[::3] = 0
    there = np.arange(24) % 3 != 0
    full = measured({"audio/va": audio[there], "video/va": video[there]})
    holes = measured({"audio/va": absent, "video/va": video})
    for name in full:
        if "audio" in name:
            assert holes[name] == pytest.approx(full[name], rel=1e-4), name


def test_alignment_of_no_pair_is_not_perfect(pair):
    video, audio = (x.copy() for x in pair)
    video[::2], audio[1::2] = 0, 0
    found = measured({"video/va": video, "audio/va": audio})
    assert np.isnan(found["health/alignment/audio-video/va"])


def test_rank_of_known_spectra():
    eye = np.eye(8)
    assert measured({"a/s": eye})["health/rank/a/s"] == pytest.approx(8, rel=1e-5)
    half = eye[[0, 1, 2, 3] * 2]
    assert measured({"a/s": half})["health/rank/a/s"] == pytest.approx(4, rel=1e-5)


def test_only_the_first_rows_are_read(pair):
    video, _ = pair
    first = measured({"video/va": video[:10]})
    assert measured({"video/va": video}, max_rows=10) == first


def test_collapse_is_told_and_health_is_not(pair):
    video, _ = pair
    assert collapse_warning(measured({"video/va": video})) is None
    point = unit(np.ones((24, 8)) + 1e-3 * video)
    warning = collapse_warning(measured({"video/va": video, "audio/va": point}))
    assert warning is not None
    assert "spread of audio/va" in warning
    assert "video/va" not in warning
    line = np.sign(video[:, :1]) * unit(np.ones((24, 8)))  # two opposite points
    assert "rank of a/s is 1 " in str(collapse_warning(measured({"a/s": line})))


def test_too_few_rows_say_nothing(pair):
    lone = np.zeros((6, 8))
    lone[0, 0] = 1
    found = measured({"text/vt": lone})
    assert np.isnan(found["health/spread/text/vt"])
    assert collapse_warning(found) is None
