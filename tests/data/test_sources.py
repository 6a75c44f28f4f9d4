"""Built datasets, opened; and the whole way from files to batches."""

import itertools
import json

import numpy as np
import pytest

from mmssl.data import records
from mmssl.data.build import build
from mmssl.data.pipeline import Pipeline
from mmssl.data.pool import DecodePool
from mmssl.data.sources import open_dataset
from mmssl.data.text import WordTokenizer
from mmssl.data.views import View
from mmssl.errors import UserError
from tests.data import media_files

# TFDS reads protocol buffers by a method that newer releases of theirs deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sources")
    rows = []
    for i in range(6):
        data = media_files.encode(
            times=[k / 10 for k in range(20)], wave=media_files.tone(2.0)
        )
        (folder / f"{i}.mp4").write_bytes(data)
        rows.append({"id": f"clip{i}", "media": f"{i}.mp4", "text": f"number {i}"})
    rows.append({"id": "only text", "text": "number nine"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with DecodePool(1) as pool:
        build(manifest=manifest, out=folder / "ds", splits={"train": 1.0}, pool=pool)
    (folder / "words.txt").write_text("number\n1\n2\n")
    return folder


def test_records_come_back(dataset) -> None:
    source = open_dataset(dataset / "ds", "train")
    found = {source[i].id: source[i] for i in range(len(source))}
    assert sorted(found) == [*(f"clip{i}" for i in range(6)), "only text"]
    assert found["clip3"].media == (dataset / "3.mp4").read_bytes()
    assert found["clip3"].segments[0].text == "number 3"
    assert found["only text"].media == b""
    assert len(open_dataset(dataset / "ds", "train[:3]")) == 3


def test_from_files_to_batches(dataset) -> None:
    source = open_dataset(dataset / "ds", "train")
    batches = []
    for workers, threads in ((1, 1), (3, 4)):  # neither changes what is sampled
        with DecodePool(workers) as pool:
            view = View(
                pool,
                seconds=1.0,
                video={"frames": 4, "size": (16, 16)},
                audio={"rate": 8000},
                text={"length": 4, "candidates": 2},
                tokenizer=WordTokenizer(dataset / "words.txt"),
                train=True,
            )
            pipeline = Pipeline(
                [(source, 1.0)], view, batch=7, seed=0, train=True, threads=threads
            )
            batches.append(list(itertools.islice(pipeline, 2)))
            assert not pipeline.faults
            pipeline.close()
    for one, two in zip(*batches, strict=True):
        assert one.info == two.info
        for name, rows in one.raw.media.items():
            np.testing.assert_array_equal(rows, two.raw.media[name])
        assert one.raw.colour is not None
        np.testing.assert_array_equal(one.raw.colour, two.raw.colour)
        is_clip = np.array([info["id"] != "only text" for info in one.info])
        np.testing.assert_array_equal(one.raw.present["video"], is_clip)
        np.testing.assert_array_equal(one.raw.present["audio"], is_clip)
        assert np.asarray(one.raw.present["text"]).all()
        assert not np.asarray(one.raw.media["video"])[~is_clip].any()
        wanted = [records.example_id(info["id"]) for info in one.info]
        assert np.asarray(one.raw.example_id).tolist() == wanted


def test_what_is_no_dataset_is_said_so(dataset, tmp_path) -> None:
    with pytest.raises(UserError, match="not a dataset"):
        open_dataset(tmp_path / "none", "train")
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_dataset(dataset / "ds", "trian")
    other = tmp_path / "other"
    other.mkdir()
    metadata = json.loads((dataset / "ds" / records.METADATA_FILE).read_text())
    metadata["schema_version"] = 99
    (other / records.METADATA_FILE).write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="schema version 99"):
        open_dataset(other, "train")
