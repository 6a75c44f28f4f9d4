"""Records round-trip through TFDS features; metadata is refused with a remedy."""

import json
import math

import pytest

from mmssl.data import records
from mmssl.errors import UserError

RECORD = records.Record(
    id="a/ü",
    media=b"\x00\xff\n\x00",
    media_name="a/ü.mp4",
    segments=(
        records.Segment(math.nan, math.nan, "whole"),
        records.Segment(0.5, 1.25, "späte Zeile"),
    ),
    words=(records.Word(0.5, 0.75, "späte"),),
    labels={"color": "red", "shape": ""},
    meta={"probe": {"duration": 1.5}, "swapped": ""},
)
EMPTY = records.Record(id="b", labels={"color": "", "shape": ""})


@pytest.mark.parametrize("record", [RECORD, EMPTY, records.Record(id="c")])
def test_round_trip_through_serialized_features(record):
    features = records.features(sorted(record.labels))
    stored = features.serialize_example(
        features.encode_example(records.to_example(record))
    )
    back = records.from_example(features.deserialize_example_np(stored))
    assert repr(back) == repr(record)  # repr: NaN times compare equal


def test_example_id_is_the_head_of_sha256():
    # echo -n abc | sha256sum
    assert records.example_id("abc") == 0xBA7816BF


def test_timed():
    assert [s.timed for s in RECORD.segments] == [False, True]


def write(tmp_path, value):
    (tmp_path / records.METADATA_FILE).write_text(value)
    return tmp_path


def test_metadata_of_this_version(tmp_path):
    value = {"schema_version": records.SCHEMA_VERSION, "label_columns": ["a"]}
    value |= {"splits": {"train": 1}, "files": {}}
    assert records.read_metadata(write(tmp_path, json.dumps(value))) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (json.dumps({"schema_version": 99}), "version 99, expected 1.*build.*again"),
        ("{", "not readable as dataset metadata"),
        ("[]", "not readable as dataset metadata"),
        ("{}", "not readable as dataset metadata"),
        (json.dumps({"schema_version": 1}), "not readable as dataset metadata"),
    ],
)
def test_bad_metadata(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        records.read_metadata(write(tmp_path, value))


def test_no_dataset(tmp_path):
    with pytest.raises(UserError, match=r"no mmssl.json there; build one with"):
        records.read_metadata(tmp_path)
    with pytest.raises(UserError, match=r"no such folder there; build one"):
        records.read_metadata(tmp_path / "x")
