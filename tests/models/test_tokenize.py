"""Tokenizers against NumPy float64; geometry; DropToken."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import types
from mmssl.models import logmel, tokenize


def test_video_patches_equal_slices_of_the_clip() -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 8, 3), np.uint8)
    patches = np.asarray(tokenize.video_patches(jnp.asarray(video), patch=(2, 3, 4)))
    cells = list(itertools.product(range(2), range(2), range(2)))
    assert patches.shape == (2, 8, 72)
    for token, (i, j, k) in enumerate(cells):
        cut = video[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 4 * k : 4 * k + 4]
        expected = cut.reshape(2, -1).astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(patches[:, token], expected, atol=1e-6)
    as_float = tokenize.video_patches(jnp.asarray(video / 255.0), patch=(2, 3, 4))
    np.testing.assert_allclose(patches, as_float, atol=1e-6)


def test_positions_are_the_grid_in_token_order() -> None:
    tokenizer = tokenize.VideoTokenizer(frames=4, size=(6, 8), patch=(2, 3, 4))
    mb = tokenizer(jnp.zeros((2, 4, 6, 8, 3), jnp.uint8), jnp.asarray([True, False]))
    expected = list(itertools.product(range(2), range(2), range(2)))
    np.testing.assert_array_equal(mb.positions[1], expected)
    assert tokenizer.spec == types.ModalitySpec(grid=(2, 2, 2), channels=72)
    np.testing.assert_array_equal(mb.valid.sum(1), [8, 0])


def test_wave_patches_scale_int16() -> None:
    wave = np.asarray([[-32768, 16384, 0, 8192]], np.int16)
    patches = tokenize.wave_patches(jnp.asarray(wave), patch=2)
    np.testing.assert_array_equal(patches, [[[-1.0, 0.5], [0.0, 0.25]]])


def reference_log_mel(wave: np.ndarray, *, rate: int, window: int, hop: int, **kw):
    """Float64, frame by frame, band by band, with a plain DFT."""
    mels, fmin, fmax, floor = kw["mels"], kw["fmin"], kw["fmax"], kw["floor"]
    size = 1 << (window - 1).bit_length()
    t = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * t / window)
    freqs = np.arange(size // 2 + 1) * rate / size
    dft = np.exp(-2j * np.pi * np.outer(t, np.arange(size // 2 + 1)) / size)

    def mel(f):
        return 1127.0 * np.log(1 + f / 700.0)

    edges = np.linspace(mel(fmin), mel(fmax), mels + 2)
    rows = []
    for x in wave.astype(np.float64):
        frames = []
        for i in range(len(x) // hop):
            start = i * hop - (window - hop) // 2
            cut = np.array(
                [x[n] if 0 <= n < len(x) else 0.0 for n in range(start, start + window)]
            )
            spectrum = np.abs((cut * hann) @ dft) * 2 / hann.sum()
            bands = []
            for m in range(mels):
                lo, mid, hi = edges[m : m + 3]
                total = 0.0
                for f, s in zip(freqs[1:], spectrum[1:], strict=True):
                    up, down = (mel(f) - lo) / (mid - lo), (hi - mel(f)) / (hi - mid)
                    total += max(0.0, min(up, down)) * s
                bands.append(total)
            frames.append(np.log(np.array(bands) + floor))
        rows.append(frames)
    return (np.array(rows) - kw["mean"]) / kw["std"]


def test_log_mel_equals_float64_reference() -> None:
    r = np.random.default_rng(0)
    t = np.arange(500) / 2000
    sine = 0.5 * np.sin(2 * np.pi * 300 * t)
    wave = np.stack([sine + 0.1 * r.normal(size=500), np.zeros(500)])
    options = {
        "rate": 2000,
        "window": 100,
        "hop": 40,
        "mels": 6,
        "fmin": 50.0,
        "fmax": 900.0,
        "floor": 1e-4,
        "mean": -3.0,
        "std": 2.0,
    }
    ours = logmel.log_mel(jnp.asarray(wave, jnp.float32), **options)
    np.testing.assert_allclose(
        ours, reference_log_mel(wave, **options), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(ours[1], (np.log(1e-4) + 3) / 2, rtol=1e-6)
    patches = tokenize.log_mel_patches(
        jnp.asarray(wave, jnp.float32), patch=(4, 3), **options
    )
    assert patches.shape == (2, 6, 12)
    np.testing.assert_allclose(patches[0, 3].reshape(4, 3), ours[0, 4:8, 3:6])


def test_log_mel_finds_the_band_of_a_sine() -> None:
    tokenizer = tokenize.LogMelTokenizer(samples=16000, rate=16000, patch=(1, 1))
    wave = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(16000) / 16000)[None]
    options = tokenizer.options
    bands = logmel.log_mel(wave, **options)[0, 20]  # pyright: ignore[reportArgumentType]
    edges = np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(7600 / 700), 82)
    expected = int(np.abs(edges[1:-1] - 1127 * np.log1p(1000 / 700)).argmin())
    assert int(bands.argmax()) == expected


@pytest.mark.parametrize(
    ("build", "near"),
    [
        (lambda: tokenize.VideoTokenizer(30, (224, 224)), "28, 32"),
        (lambda: tokenize.VideoTokenizer(32, (100, 224)), "96, 112"),
        (lambda: tokenize.VideoTokenizer(2, (224, 224)), "4"),
        (lambda: tokenize.WaveTokenizer(1000, 8000), "896, 1024"),
        (lambda: tokenize.LogMelTokenizer(153600, 48000), "145152, 161280"),
        (lambda: tokenize.LogMelTokenizer(161280, 48000, patch=(16, 7)), "77, 84"),
        (lambda: tokenize.LogMelTokenizer(3200, 1000, window=8, hop=8), "use fewer"),
        (lambda: tokenize.LogMelTokenizer(3072, 8000, window=8, hop=16), "window 8"),
        (lambda: tokenize.LogMelTokenizer(16128, 8000, fmax=5e3), "rate/2 = 4000"),
        (lambda: tokenize.TextIds(0, 4), "vocab"),
    ],
)
def test_bad_geometry_names_what_would_fit(build, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        _ = build().spec


def test_nearest_valid_numbers_are_valid() -> None:
    for samples in (145152, 161280):
        assert tokenize.LogMelTokenizer(samples, 48000).spec.grid[1] == 16


def test_media_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(64,\).*\(32,\)"):
        tokenize.WaveTokenizer(64, 1000, 16)(jnp.zeros((2, 32)), jnp.ones(2, bool))


def test_text_padding_is_invalid() -> None:
    ids = jnp.asarray([[[5, 6, 0], [0, 0, 0]], [[7, 8, 9], [1, 0, 0]]], jnp.int32)
    mb = tokenize.TextIds(vocab=10, length=3, candidates=2)(
        ids, jnp.asarray([True, True])
    )
    np.testing.assert_array_equal(mb.valid, ids != 0)
    np.testing.assert_array_equal(mb.positions[1, 1, :, 0], [0, 1, 2])


@pytest.mark.parametrize("per_sample", [False, True])
def test_drop_tokens_keeps_a_sorted_subset_with_its_positions(per_sample) -> None:
    tokenizer = tokenize.WaveTokenizer(samples=40, rate=1000, patch=2)
    wave = jnp.arange(160, dtype=jnp.float32).reshape(4, 40)
    full = tokenizer(wave, jnp.ones(4, bool))
    full = dataclasses.replace(full, valid=full.valid.at[:, 3].set(False))
    kept = jax.jit(
        lambda mb, key: tokenize.drop_tokens(
            mb, key=key, keep=10, per_sample=per_sample
        )
    )(full, jax.random.key(1))
    assert kept.tokens.shape == (4, 10, 2)
    index = np.asarray(kept.positions[..., 0])
    assert (np.diff(index, axis=1) > 0).all()
    for row in range(4):
        np.testing.assert_array_equal(kept.tokens[row], full.tokens[row][index[row]])
        np.testing.assert_array_equal(kept.valid[row], index[row] != 3)
    assert bool((index == index[:1]).all()) is not per_sample


def test_drop_tokens_keeps_each_token_equally_often() -> None:
    mb = tokenize.WaveTokenizer(8, 1000, 1)(jnp.zeros((2000, 8)), jnp.ones(2000, bool))
    kept = tokenize.drop_tokens(mb, key=jax.random.key(0), keep=2, per_sample=True)
    share = np.bincount(np.asarray(kept.positions).ravel(), minlength=8) / 2000
    np.testing.assert_allclose(share, 0.25, atol=0.04)  # four standard deviations
    with pytest.raises(ValueError, match="1 to 8"):
        tokenize.drop_tokens(mb, key=jax.random.key(0), keep=9, per_sample=True)


def test_motion_is_what_differs_from_the_clips_mean_at_unit_rms() -> None:
    r = np.random.default_rng(5)
    video = r.integers(0, 256, (3, 8, 8, 12, 3)).astype(np.uint8)
    video[1] = video[1, :1]  # a still clip
    present = jnp.asarray([True, True, False])
    tokenizer = tokenize.VideoTokenizer(8, (8, 12), (2, 4, 4), motion=True)
    got = tokenizer(jnp.asarray(video), present).tokens
    x = video.astype(np.float64) / 127.5 - 1
    x = x - x.mean(1, keepdims=True)
    x /= np.sqrt((x**2).mean((1, 2, 3, 4), keepdims=True) + 0.004**2)
    want = x.reshape(3, 4, 2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    # A still clip: rounding of the mean (6e-8), over the noise floor of 0.004.
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-4)
