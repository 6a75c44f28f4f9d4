"""From a built dataset to a page: what is looked at, drawn and left out."""

import io
import json
import pathlib
import re

import av
import numpy as np
import pytest

from mmssl import cli, config, viewer
from mmssl.data import build, demo, preview, records, sources, survey, tokenizer
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.report import clip, draw
from mmssl.viewer import training
from tests.data.media_files import encode, tone

pytestmark = [
    pytest.mark.filterwarnings("ignore:label:DeprecationWarning"),
    pytest.mark.usefixtures("compile_quickly"),
]

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Six demo clips, a hostile text without media, sound alone; two bad files."""
    root = tmp_path_factory.mktemp("view")
    world = demo.write_demo(root / "world", clips=6, seed=1, misaligned=0.0)
    media = world.manifest.parent / "media"
    whole = (media / "demo-00000.mp4").read_bytes()
    (media / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (media / "bad.mp4").write_bytes(bytes(range(256)) * 20)
    (media / "sound.mka").write_bytes(
        encode(wave=tone(30.0), format="matroska", audio_codec="flac")
    )
    rows = [
        {"id": EVIL, "text": [EVIL, "Она наливает чай"], "labels": {"shape": EVIL}},
        {"id": "bad", "media": "media/bad.mp4"},
        {"id": "cut", "media": "media/cut.mp4"},
        {"id": "sound", "media": "media/sound.mka", "segments": [[20, 22, "late"]]},
    ]
    lines = world.manifest.read_text() + "".join(json.dumps(r) + "\n" for r in rows)
    (world.manifest.parent / "all.jsonl").write_text(lines)
    out = root / "ds"
    build.build(
        manifest=world.manifest.parent / "all.jsonl", out=out, splits={"train": 1.0}
    )
    tokenizer.train_tokenizer(dataset=out, kind="word", vocab_size=64)
    return out


@pytest.fixture(scope="module")
def pool():
    with DecodePool(1) as pool:
        yield pool


def cards(text: str) -> dict[str, str]:
    """Id to its article."""
    articles = re.findall(r"<article.*?</article>", text, re.S)
    return {re.findall(r"<h3><a[^>]*>(.*?)</a>", a)[0]: a for a in articles}


def test_a_page_from_the_command_line(
    dataset: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.html"
    assert cli.main(["data", "view", str(dataset), "--out", str(out)]) == 0
    assert "opens in any browser" in capsys.readouterr().out
    text = out.read_text()
    assert EVIL not in text
    shown = cards(text)
    assert len(shown) == 8  # all that the build used
    assert "data:video/mp4" in shown["demo-00000"]
    assert "<audio" in shown["sound"]
    assert "5.00 s to 25.00 s of 30.00 s" in shown["sound"]
    assert ">late</span>" in shown["sound"]
    assert "&lt;script&gt;" in shown["&lt;script&gt;alert(1)&lt;/script&gt;"]
    for part in ("Cyrillic", "Latin", "left out", "bad.mp4", "Missing or empty"):
        assert part in text, part
    assert "As training sees it" not in text


def test_a_config_draws_its_window_crop_and_tokens(
    dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    loaded = config.load("configs/demo.py", ["--config.data.video.region=[0,0,0.5,1]"])
    pages = []
    for _ in range(2):
        out = tmp_path / "x.html"
        viewer.view_dataset(str(dataset), out, samples=5, config=loaded, seed=4)
        pages.append(re.sub(r"Written by.*", "", out.read_text()))
    assert pages[0] == pages[1]
    drawn = [card for card in cards(pages[0]).values() if 'class="edge"' in card]
    assert drawn
    for card in drawn:
        start = float(re.findall(r"window ([\d.]+) s to", card)[0])
        assert 0 <= start <= 0.5  # 2.4 s, of which 2.0 are taken
        assert "48 of 64 video tokens" in card
        crop = re.findall(
            r'd="M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h[^"]*" class="edge', card
        )
        x, y, wide, tall = map(float, crop[0])
        # The region is the upper half; the crop is taken inside it.
        assert y + tall <= 0.5001
        assert x % 1 + wide <= 1.0001
        area = float(re.findall(r"crop (\d+)%", card)[0]) / 100
        assert abs(area - wide * tall) < 0.01
        # Of 80 x 32 pixels, the largest square is a fifth of the whole frame.
        assert 0.1 <= area <= 0.21


def test_the_box_is_what_the_decoder_cuts(
    dataset: pathlib.Path, pool: DecodePool
) -> None:
    """A frame dark on the left, bright on the right tells where a crop was."""
    from mmssl.experiment import Experiment

    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = (np.arange(64) * 4)[None, :, None]
    media = encode(times=np.arange(0, 3, 0.1), images=[image] * 30)
    probe = pool.probe(media)
    record = records.Record(
        "x", media, meta={"probe": {"duration": probe.duration, "video": probe.video}}
    )
    overrides = ["--config.data.audio=None", "--config.data.text=None"]
    overrides += [
        "--config.data.video.crop_area=[0.1,0.4]",
        "--config.model.audio=None",
    ]
    loaded = config.load("configs/demo.py", overrides)
    loaded["data"]["path"] = str(dataset)
    with (watched := training.WatchedPool(1)):
        drawn = training.Training(Experiment(loaded), watched, seed=3)
        for index in range(3):
            found = drawn(record, index)
            assert found.box is not None
            assert found.frames is not None
            middle = found.frames[0, 24, :].mean(-1)
            left, right = found.box[1], found.box[1] + found.box[3]
            assert abs(float(middle[0]) / 256 - left) < 0.05
            assert abs(float(middle[-1]) / 256 - right) < 0.05


def test_24_clips_of_noise_keep_within_20_mib() -> None:
    """Nothing compresses worse."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), np.uint8)

    audio = rng.uniform(-1, 1, 4 * preview.RATE).astype(np.float32)
    media = preview.Preview(0.0, 4.0, noise(24, 180, 320), 6.0, audio).mp4()
    # The first second may fill the rate control's buffer on top of 4 s.
    longest = len(media) * (20 + 1) / (4 + 1)
    kept = {
        "video": rng.random((8, 14, 14)) < 0.5,
        "audio": rng.random(1200) < 0.5,
    }
    spectrum = rng.normal(size=(2000, 80)).astype(np.float32)
    drawn = draw.Draw(
        0.0, 3.2, (0.1, 0.1, 0.5, 0.5), False, noise(8, 224, 224), spectrum, kept
    )
    made = clip.Clip(
        0,
        "train, row 0",
        "x",
        end=20.0,
        frames=noise(5, 180, 320),
        audio=audio,
        spectrum=spectrum,
        mp4=bytes(round(longest)),
        segments=[(i / 4, i / 4 + 0.3, 400 * "x") for i in range(80)],
        draw=drawn,
    )
    assert 24 * len(clip.card(made)) < 19.5 * 2**20


def test_a_preview_is_a_part_of_a_long_clip(pool: DecodePool) -> None:
    times = np.arange(0, 40, 1.0)
    media = encode(times=times, size=(48, 64), wave=tone(40.0))
    probe = pool.probe(media)
    record = records.Record(
        "x",
        media,
        meta={
            "probe": {
                "duration": probe.duration,
                "video": probe.video,
                "audio": probe.audio,
            }
        },
    )
    for around, start in ((None, 10.0), (3.0, 0.0), (39.0, 20.0)):
        found = preview.preview(record, pool, around=around)
        assert abs(found.start - start) < 0.3
        assert abs(found.end - found.start - preview.SECONDS) < 1e-6
        assert found.frames is not None
        assert found.audio is not None
        assert found.frames.shape == (20, 48, 64, 3)
        assert len(found.audio) == preview.SECONDS * preview.RATE
    with av.open(io.BytesIO(found.mp4())) as box:
        assert [s.type for s in box.streams] == ["video", "audio"]
        seconds = float(box.duration or 0) / 1e6
        assert abs(seconds - preview.SECONDS) < 0.3


def test_pixels_that_are_not_square_are_shown_square(pool: DecodePool) -> None:
    probe = {"video": {"height": 48, "width": 32, "fps": 10.0, "aspect": 2.0}}
    media = encode(times=np.arange(0, 1, 0.1), size=(48, 32))
    record = records.Record("x", media, meta={"probe": probe | {"duration": 1.0}})
    found = preview.preview(record, pool)
    assert found.frames is not None
    assert found.frames.shape == (10, 48, 64, 3)


def test_media_that_does_not_decode_now_is_a_fault(pool: DecodePool) -> None:
    probe = {"duration": 1.0, "video": {"height": 4, "width": 4, "fps": 25.0}}
    record = records.Record("x", b"garbage", meta={"probe": probe})
    found = preview.preview(record, pool)
    assert found.faults == {"media": "unreadable"}
    assert found.mp4() == b""


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 97, 1000, 1024])
def test_an_even_spread_visits_all_rows_once(count: int) -> None:
    order = list(survey.spread(count))
    assert sorted(order) == list(range(count))
    if count >= 97:
        # Every beginning is even: no gap is much wider than the mean.
        for part in (8, 32):
            gaps = np.diff(sorted(order[:part]))
            assert gaps.max() < 3 * count / part


def test_rows_to_show() -> None:
    assert survey.evenly(1000, 4) == [125, 375, 625, 875]
    assert survey.evenly(1000, 4, seed=1) != survey.evenly(1000, 4)
    assert survey.evenly(2, 5) == [0, 1]
    assert survey.evenly(0, 5) == []
    assert survey.chosen([9, 8, 7], [1, 3, 5, 9], 4) == [9, 1, 3, 5]
    assert survey.chosen([], [1, 2], 2) == [1, 2]


def test_a_survey_is_bounded_and_says_of_how_much(
    dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = survey.Rows(str(dataset))
    whole = survey.survey(rows)
    assert whole.rows == whole.of == len(rows) == 8
    assert len(whole.numbers["duration"]) == 7
    assert whole.counts["missing"]["video"] == 2
    assert whole.counts["script"]["Cyrillic"] == 1
    assert survey.survey(rows, most=3).rows == 3
    assert survey.survey(rows, seconds=0.0).rows == 1
    assert survey.survey(rows, megabytes=0).rows <= 2
    read = sources.RecordSource.__getitem__

    def broken(source: sources.RecordSource, index: int) -> records.Record:
        if index == 2:
            raise UserError("row 2 cannot be read")
        return read(source, index)

    monkeypatch.setattr(sources.RecordSource, "__getitem__", broken)
    found = survey.survey(rows)
    assert found.faulty[0] <= 2
    assert found.counts["fault"]["row_read"] == 1


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a red ball", "Latin"),
        ("Она наливает", "Cyrillic"),
        ("倒茶", "Han"),
        ("お茶をいれる", "Hiragana"),
        ("차를 따르다", "Hangul"),
        ("شاي", "Arabic"),
        ("ＡＢＣ", "Latin"),
        ("naïve ☕ 3", "Latin"),
        ("123 !?", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert survey.main_script(text) == script


@pytest.mark.parametrize("name", ["page.txt", "none/page.html"])
def test_a_bad_out_is_refused_before_anything_is_read(
    dataset: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    with pytest.raises(UserError, match=re.escape(name)):
        viewer.view_dataset(str(dataset), tmp_path / name)


def test_overrides_need_a_config(
    dataset: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.html")
    command = ["data", "view", str(dataset), "--out", out, "--config.data.seconds=1"]
    assert cli.main(command) == 2
    assert "--config" in capsys.readouterr().err
