"""The demo world: content seen, heard and said; swaps recorded; deterministic."""

import json

import numpy as np
import pytest

from mmssl.data import demo, demo_world, manifest, media
from mmssl.errors import UserError


def rows_of(report):
    return [json.loads(line) for line in report.manifest.read_text().splitlines()]


def said(row):
    return row.get("text") or " ".join(s[2] for s in row.get("segments", []))


def names(text, labels):
    """Whether the text names colour and shape by one of their words."""
    colors = demo_world.COLORS[labels["color"]][2]
    shapes = demo_world.SHAPE_WORDS[labels["shape"]]
    return any(f"{c} {s}" in text for c in colors for s in shapes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("w") / "demo"
    return demo.write_demo(out, clips=40, seed=3, misaligned=0.25)


def test_counts_and_manifest(world):
    rows = rows_of(world)
    assert len(rows) == world.clips == 40
    assert len(manifest.read_manifest(world.manifest).rows) == 40
    swapped = [row["meta"]["swapped"] for row in rows]
    assert world.swapped == {"text": 5, "audio": 5}
    assert {k: swapped.count(k) for k in ("text", "audio")} == world.swapped
    assert world.silent == world.wordless == 1
    assert sum("text" not in r and "segments" not in r for r in rows) == 1


def test_text_says_what_is_seen_unless_swapped(world):
    for row in rows_of(world):
        if said(row):
            aligned = row["meta"]["swapped"] != "text"
            main = [s[2] for s in row.get("segments", []) if "for a moment" not in s[2]]
            text = row.get("text") or " ".join(main)
            assert names(text, row["labels"]) == aligned, row


def test_files_are_what_they_say(world):
    silent = 0
    for row in rows_of(world)[:12]:
        probe = media.probe(world.manifest.parent / row["media"], full=True)
        assert probe.faults == {}
        assert probe.video is not None
        size = [probe.video[k] for k in ("width", "height", "frames")]
        assert size == [80, 64, 30]
        assert probe.duration == pytest.approx(demo_world.SECONDS, abs=0.1)
        if probe.audio is None:
            silent += 1
        else:
            assert (probe.audio["rate"], probe.audio["channels"]) == (16_000, 1)
    assert silent <= 1


def test_same_seed_same_bytes_with_any_number_of_threads(tmp_path):
    one = demo.write_demo(tmp_path / "a", clips=6, seed=5, workers=1)
    two = demo.write_demo(tmp_path / "b", clips=6, seed=5, workers=3)
    other = demo.write_demo(tmp_path / "c", clips=6, seed=6)
    assert one.manifest.read_bytes() == two.manifest.read_bytes()
    assert one.manifest.read_bytes() != other.manifest.read_bytes()
    for row in rows_of(one):
        a, b = (r.manifest.parent / row["media"] for r in (one, two))
        assert a.read_bytes() == b.read_bytes()


def contents(shape="circle", color="green", motion="up"):
    return demo_world.Content(shape, color, motion)


def drawn(content, seed):
    return demo_world.render_video(content, np.random.default_rng(seed)).astype(float)


@pytest.mark.parametrize("color", demo_world.COLORS)
def test_the_colour_is_seen(color):
    frames = drawn(contents(color=color), 1)
    paint = np.array(demo_world.COLORS[color][0])
    near = np.abs(frames - paint).max(-1) < 30
    # A disc of radius 10 to 14 of 64 x 80 pixels, in every frame.
    assert (near.mean((1, 2)) > 0.04).all()


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [
        ("left", 2, -1),
        ("right", 2, 1),
        ("up", 1, -1),
        ("down", 1, 1),
    ],
)
def test_the_motion_is_seen(motion, axis, sign):
    frames = drawn(contents(motion=motion), 2)
    mask = np.abs(frames - np.array(demo_world.COLORS["green"][0])).max(-1) < 30
    # Positions wrap, so compare phases of the circular mean.
    length = mask.shape[axis]
    ring = np.exp(2j * np.pi * np.arange(length) / length)
    profile = mask.sum(axis=3 - axis)
    step = np.angle((profile @ ring)[1:] / (profile @ ring)[:-1])
    assert (np.sign(step) == sign).mean() > 0.9
    assert 22 <= abs(np.median(step)) * length / (2 * np.pi) * demo_world.FPS <= 38.5


def test_no_pixel_gives_the_label_away():
    """A pixel at one place and time shows the shape only now and then."""
    pixels = np.stack([drawn(contents(), seed)[10, 32, 40] for seed in range(30)])
    paint = np.array(demo_world.COLORS["green"][0])
    hits = (np.abs(pixels - paint).max(-1) < 30).mean()
    assert hits < 0.4


def spectrum(content, seed=4):
    wave = demo_world.render_audio(content, np.random.default_rng(seed))
    assert wave.dtype == np.float32
    assert 0.01 < np.abs(wave).max() <= 1
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)))), wave


@pytest.mark.parametrize("color", demo_world.COLORS)
def test_the_colour_is_heard_as_pitch(color):
    power, _ = spectrum(contents(color=color, motion="up"))
    peak = power.argmax() * demo_world.RATE / demo_world.SAMPLES
    # Up is a tremolo of 11 Hz; the carrier stays the loudest.
    assert peak == pytest.approx(demo_world.COLORS[color][1], rel=0.03)


def test_shapes_and_motions_sound_different():
    waves = {}
    for shape in demo_world.SHAPES:
        power, _ = spectrum(contents(shape=shape))
        waves[shape] = power / np.linalg.norm(power)
    for a in waves:
        for b in waves:
            if a < b:
                assert waves[a] @ waves[b] < 0.97, (a, b)
    _, wave = spectrum(contents(motion="pulse"))
    level = np.abs(wave).reshape(-1, 400).mean(1)
    assert 0.3 < (level < level.max() / 3).mean() < 0.7  # silent half of the time


def test_bad_arguments_and_folders(tmp_path):
    with pytest.raises(UserError, match="clips: expected at least 1, found 0"):
        demo.write_demo(tmp_path / "x", clips=0)
    with pytest.raises(UserError, match=r"expected a share from 0 to 1, found 1\.5"):
        demo.write_demo(tmp_path / "x", misaligned=1.5)
    demo.write_demo(tmp_path / "x", clips=1)
    with pytest.raises(UserError, match="already there and not empty"):
        demo.write_demo(tmp_path / "x", clips=1)
    report = demo.write_demo(tmp_path / "x", clips=2, overwrite=True, misaligned=1)
    assert sum(report.swapped.values()) == 2
