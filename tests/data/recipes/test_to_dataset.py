"""From a downloaded layout with real media to a dataset, and stills as video."""

import io

import numpy as np
import pytest

from mmssl import cli
from mmssl.data import encode, media, records, sources
from mmssl.data.pool import DecodePool
from mmssl.data.views import View
from tests.data.media_files import tone
from tests.data.recipes.layouts import LAYOUTS, of
from tests.data.recipes.test_recipes import lay

# TFDS reads a protobuf field that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


def still(format, *, size=(48, 64), level=200):
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size[::-1], (level, 0, 0)).save(out, format)
    return out.getvalue()


def build(tmp_path, name, capsys):
    out, dataset = str(tmp_path / "m.jsonl"), tmp_path / "dataset"
    root = str(tmp_path / "root")
    assert cli.main(["data", "manifest", name, "--root", root, "--out", out]) == 0
    options = ["--manifest", out, "--out", str(dataset), "--workers", "1"]
    assert cli.main(["data", "build", *options]) == 0
    return dataset, capsys.readouterr().out


def test_ucf101_to_a_dataset(tmp_path, capsys):
    layout = LAYOUTS["ucf101"]
    lay(tmp_path / "root", layout)
    lists = tmp_path / "root/ucfTrainTestlist"
    for part in ("train", "test"):
        (lists / f"{part}list02.txt").rename(lists / f"{part}list01.txt")
    frames = np.zeros((6, 32, 32, 3), np.uint8)
    for i, path in enumerate(layout.media):
        frames[:] = 100 * i
        mp4 = tmp_path / "clip.mp4"
        encode.encode_mp4(mp4, video=frames, fps=6, audio=tone(1.0), rate=16000)
        (tmp_path / "root" / path).write_bytes(mp4.read_bytes())
    dataset, said = build(tmp_path, "ucf101", capsys)
    assert "found:      train 1 of 2 (50%), test 1 of 1 (100%)" in said
    metadata = records.read_metadata(dataset)
    assert metadata["splits"] == {"test": 1, "train": 1}
    assert metadata["dataset"]["recipe"] == "ucf101"
    assert metadata["dataset"]["split"] == "1"
    assert metadata["dataset"]["coverage"] == {"train": of(2, 1), "test": of(1, 1)}
    record = sources.open_dataset(dataset, "test")[0]
    assert record.labels == {"class": "ApplyEyeMakeup"}
    assert record.meta["probe"]["video"]["frames"] == 6


def test_coco_to_a_dataset_and_a_batch(tmp_path, capsys):
    lay(tmp_path / "root", LAYOUTS["coco"])
    for path in LAYOUTS["coco"].media:
        (tmp_path / "root" / path).write_bytes(still("JPEG"))
    dataset, said = build(tmp_path, "coco", capsys)
    assert "modalities: video 2, audio 0, text 1" in said
    record = sources.open_dataset(dataset, "train")[0]
    video = {"frames": 4, "size": (32, 32)}
    with DecodePool(1) as pool:
        view = View(pool, seconds=2.0, video=video, audio={"rate": 8000}, train=False)
        example = view(record)
    assert example["present"] == {"video": True, "audio": False}
    assert example["info"]["faults"] == []
    assert (example["video"] == example["video"][:1]).all()
    assert abs(int(example["video"][0, 16, 16, 0]) - 200) < 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_stills_are_video_of_one_frame(format):
    data = still(format)
    probe = media.probe(data, full=True)
    assert probe.video is not None
    assert (probe.video["frames"], probe.video["width"]) == (1, 64)
    frames = media.decode_video(data, [0.0, 30.0])
    assert frames.shape == (2, 48, 64, 3)
    assert abs(int(frames[1, 0, 0, 0]) - 200) < 8
