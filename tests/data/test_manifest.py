"""Manifests and folders: good rows, and every error with line, field and remedy."""

import json
import math

import pytest

from mmssl.data import manifest, splits
from mmssl.errors import UserError


def write(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_full_row_and_defaults(tmp_path):
    full = {
        "id": "x",
        "media": "clips/x.mp4",
        "text": "whole",
        "segments": [{"start": 1, "end": 2, "text": "b"}],
        "words": [[1, 1.5, "b"]],
        "labels": {"color": "red", "size": None},
        "meta": {"swapped": ""},
        "fold": 3,
        "group": "speaker 1",
    }
    path = write(tmp_path, full, "", {"media": "a.b/y.mp4"}, {"id": "z", "text": "t"})
    result = manifest.read_manifest(path)
    x, y, z = result.rows
    assert x.path == tmp_path / "clips/x.mp4"
    assert [s.text for s in x.segments] == ["whole", "b"]
    assert math.isnan(x.segments[0].start)
    assert x.words[0].end == 1.5
    assert x.labels == {"color": "red"}
    assert (x.group, y.group) == ("speaker 1", "")
    assert x.meta == {"swapped": "", "fold": 3, "group": "speaker 1"}
    assert result.extra_keys == {"fold": 1}
    assert result.label_columns == ("color",)
    assert y.id == "a.b/y.mp4"
    assert (z.media, z.path) == ("", None)


def test_numbers_are_labels(tmp_path):
    path = write(
        tmp_path,
        {"id": "a", "text": "t", "labels": {"n": 1}},
        {"id": "b", "text": "t", "labels": {"n": 2.5}},
    )
    rows = manifest.read_manifest(path).rows
    assert [row.labels["n"] for row in rows] == ["1", "2.5"]


TEXT = {"text": "t"}
ROW = {"id": "a"} | TEXT


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"the manifest is empty; write one JSON object a line"),
        (["", " "], r"the manifest is empty"),
        (["{"], r"line 1: expected one JSON object a line"),
        ([ROW, "[1]"], r"line 2: expected a JSON object, found list"),
        (
            [ROW | {"group": "g", "split": "test"}, TEXT | {"id": "b", "group": "g"}],
            r"group 'g' has two splits: test on line 1, none stated on line 2; state",
        ),
        ([ROW, ROW], r"id 'a' twice: line 1 and line 2; ids must be unique"),
        (
            [{"media": "m.mp4"}, {"id": "m.mp4", "text": "t"}],
            r"id 'm.mp4' twice: line 1 and line 2",
        ),
        (
            [
                ROW | {"labels": {"c": "x"}},
                {"id": "b", "text": "t", "labels": {"c": 1}},
            ],
            r"column 'c' has two types: string 'x' on line 1, number 1 on line 2",
        ),
        (
            [ROW | {"lables": {}}],
            r"line 1: unknown key 'lables'; did you mean 'lab",
        ),
        ([ROW | {"caption": "x"}], r"unknown key 'caption'; did you mean 'text'"),
        ([ROW | {"path": "x"}], r"unknown key 'path'; did you mean 'media'"),
        ([{"text": "t"}], r"line 1, field 'id': expected an id, found none; name"),
        ([{"id": "a"}], r"field 'media': expected media or text, found neither"),
        ([{"id": 3, "text": "t"}], r"field 'id': expected a non-empty string, found 3"),
        ([ROW | {"group": 3}], r"field 'group': expected a non-empty string, found 3"),
        ([ROW | {"media": 3}], r"field 'media': expected the path.*found 3"),
        ([ROW | {"labels": ["a"]}], r"field 'labels': expected \{column: class\}"),
        (
            [ROW | {"labels": {"c": [1]}}],
            r"field 'labels.c': expected a string or",
        ),
        (
            [ROW | {"labels": {"c": True}}],
            r"field 'labels.c': expected a string or",
        ),
        (
            [ROW | {"labels": {"c/d": "x"}}],
            r"field 'labels.c/d': expected a column",
        ),
        (['{"id": "\\ud800", "text": "t"}'], r"field 'id': expected text in Unicode"),
        ([ROW | {"labels": {"c": "\ud800"}}], r"'labels.c': expected text in Unicode"),
        ([ROW | {"meta": 1}], r"field 'meta': expected an object"),
        ([{"id": "a", "text": 5}], r"field 'text': expected a string or a list of str"),
        (
            [ROW | {"segments": [[2, 1, "x"]]}],
            r"line 1, field 'segments\[0\] end': expected an end not before its start "
            r"\(2\), found 1.0; correct",
        ),
        ([ROW | {"words": [[0, 1]]}], r"field 'words\[0\]': expected a list of"),
    ],
)
def test_errors(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        manifest.read_manifest(write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ("http://host/a.mp4", "unknown storage 'http'.*download it first"),
        ("file:///a.mp4", "unknown storage 'file'; expected one of gs://, s3://"),
        ("ftp://host/a.mp4", "unknown storage 'ftp'"),
        ("s3://bucket/a.mp4", "pip install s3fs"),
    ],
)
def test_media_in_a_storage_that_cannot_be_read(
    tmp_path, monkeypatch, media: str, message: str
):
    def missing(name: str) -> None:
        raise ImportError(f"Install what reads {name}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    path = write(tmp_path, {"id": "a", "text": "x"}, {"media": media})
    with pytest.raises(UserError, match=f"line 2, field 'media': {media}: .*{message}"):
        manifest.read_manifest(path)


def test_missing_manifest_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"found nothing; write one JSON"):
        manifest.read_manifest(tmp_path / "no.jsonl")
    with pytest.raises(UserError, match=r"found a folder; .*--folder"):
        manifest.read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"found nothing; .*--manifest"):
        manifest.scan_folder(tmp_path / "no")
    with pytest.raises(UserError, match=r"no media files in the folder"):
        manifest.scan_folder(tmp_path)


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "a.WAV", "sub/b.webm", "sub/.b.webm", "c.jpg", "d.flac"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nfrom srt\n")
    (tmp_path / "sub/b.vtt").write_text("broken")
    (tmp_path / "sub/b.txt").write_text("fallback")
    rows = {row.id: row for row in manifest.scan_folder(tmp_path).rows}
    assert list(rows) == ["a.WAV", "a.mp4", "d.flac", "sub/b.webm"]
    assert rows["a.mp4"].segments[0].text == "from srt"
    assert rows["d.flac"].segments == ()
    assert rows["sub/b.webm"].segments[0].text == "fallback"
    [(fault, detail)] = rows["sub/b.webm"].faults
    assert fault == "caption"
    assert "b.vtt: file: expected at least one WebVTT cue" in detail


def test_names_and_texts_that_are_not_unicode(tmp_path):
    with open(bytes(tmp_path) + b"/a\xff.mp4", "wb"):
        pass
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "cut \\ud83d"}')
    [row] = manifest.scan_folder(tmp_path).rows
    assert row.id == "a\\xff.mp4"
    assert row.path is not None
    assert row.path.is_file()
    [row] = manifest.read_manifest(tmp_path / "m.jsonl").rows
    assert row.segments[0].text == "cut ?"


SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def test_splits_depend_on_the_key_alone():
    ids = [f"clip{i}" for i in range(4000)]
    got = [splits.split_of(id, SPLITS) for id in ids]
    assert got == [splits.split_of(id, SPLITS) for id in ids]
    for name, fraction in SPLITS.items():
        # 4.5 standard deviations of a binomial
        slack = 4.5 * math.sqrt(fraction * (1 - fraction) / len(ids))
        assert abs(got.count(name) / len(ids) - fraction) < slack
    # Written down once: a dataset built today and one built next year must agree.
    halves = [splits.split_of(c, {"a": 0.5, "b": 0.5}) for c in "abcdefgh"]
    assert "".join(halves) == "baaaaaba"


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.9, "test": 0.2}, r"must sum to 1, found 1.1; for example train"),
        ({"train": 1.0, "test": 0.0}, r"split 'test': expected a fraction above 0"),
        ({"Train": 1.0}, r"split 'Train': expected a name of small letters"),
        ({"all": 1.0}, r"other than 'all'"),
        ({}, r"must sum to 1, found 0"),
    ],
)
def test_bad_splits(fractions, message):
    with pytest.raises(UserError, match=message):
        splits.check_splits(fractions)


def test_a_bad_split_name(tmp_path):
    path = write(tmp_path, {"id": "a", "text": "t", "split": "Train 1"})
    with pytest.raises(UserError, match=r"line 1, field 'split': .*found Train 1"):
        manifest.read_manifest(path)


def test_the_line_about_the_dataset(tmp_path):
    about = {"dataset": {"recipe": "x"}}
    path = write(tmp_path, ROW | {"dataset": "mine"}, about)
    read = manifest.read_manifest(path)
    assert [row.id for row in read.rows] == ["a"]
    assert read.rows[0].meta == {"dataset": "mine"}
    assert read.dataset == {"recipe": "x"}
