"""Annotation files: streamed JSON against json.load, csv quirks, errors with places."""

import json

import pytest

from mmssl.data.recipes import tables
from mmssl.errors import UserError


@pytest.mark.parametrize("chunk", [1, 2, 7, 4096])
@pytest.mark.parametrize("indent", [None, 2])
def test_items_equal_json_load(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(tables, "_CHUNK", chunk)
    value = {
        'a "quoted" {key}': {"start": [0.5, 12345.678e-2], "text": ["日本 }", "é,"]},
        "": {},
        "n": 1234567,
        "nested": {"x": [{"y": None}, True, "\\"]},
    }
    file = tmp_path / "a.json"
    for ascii_only in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        file.write_text(text, encoding="utf-8")
        assert {key: found for _, key, found in tables.items(file)} == value
    file.write_text(" {} \n")
    assert list(tables.items(file)) == []


@pytest.mark.parametrize("chunk", [3, 4096])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "after 0 entries: expected a JSON object of entries by id, found the end"),
        ("[1]", "found [1]"),
        ('{"a": 1', "after 0 entries"),
        ('{"a": 1, "b" 2}', "after 1 entries"),
        ('{"a": 1 "b": 2}', "after 1 entries"),
        ('{"a": 1, }', "after 1 entries"),
        ('{"a": nope}', "after 0 entries"),
    ],
)
def test_items_of_a_broken_file(tmp_path, monkeypatch, chunk, text, words):
    monkeypatch.setattr(tables, "_CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        list(tables.items(file))
    assert words.partition("found")[0] in str(error.value)
    assert str(file) in str(error.value)


def test_rows(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'\xef\xbb\xbf# note\n\nid, name ,more\n1, "x, y",\n2,"two\nlines",z\n'
    )
    found = [(at.place, row) for at, row in tables.rows(file, ("id", "name"))]
    assert found == [
        ("line 4", {"id": "1", "name": "x, y", "more": ""}),
        ("line 6", {"id": "2", "name": "two\nlines", "more": "z"}),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["file: expected the columns id, name", "found nothing"]),
        (b"id\n1\n", ["line 1", "(no name)"]),
        (b"id,name\n1\n", ["line 2", "2 values (id, name)", "found 1: 1"]),
        (b"id,name\n1,\xff\n", ["UTF-8"]),
        (b'id,name\n1,"a\n2,b\n', ["comma-separated", "unexpected end"]),
    ],
)
def test_rows_of_a_wrong_file(tmp_path, content, words):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(tables.rows(file, ("id", "name")))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("value", ["x", "", "nan", "-1", "1e12", None, True, [1]])
def test_no_seconds(tmp_path, value):
    with pytest.raises(UserError, match="a time in seconds"):
        tables.At(tmp_path, "line 1").seconds(value)
