"""Caption readers against texts written by hand."""

import json
import math

import pytest

from mmssl.data import captions
from mmssl.data.records import Segment, Word


def read(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return captions.read_captions(path)


def timed(result):
    return [(s.start, s.end, s.text) for s in result.segments]


SRT = """\ufeff1\r
00:00:01,500 --> 00:00:02,000\r
<i>Hello</i>   there\r
{\\an8}second line\r
\r
2\r
01:00:00,000 --> 01:00:00,250\r
A &amp; B\r
\r
3\r
00:00:05,000 --> 00:00:06,000\r
\r
"""

VTT = """WEBVTT - title

NOTE
this is a note

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Ann>Grüße</v> <00:01.500><c>dich</c>

00:00:00.5 --> 00:00:00.75
earlier
"""


def test_srt(tmp_path):
    assert timed(read(tmp_path, "a.srt", SRT)) == [
        (1.5, 2.0, "Hello there second line"),
        (3600.0, 3600.25, "A & B"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_vtt_sorts_and_strips(tmp_path, encoding):
    assert timed(read(tmp_path, "a.vtt", VTT, encoding)) == [
        (0.5, 0.75, "earlier"),
        (1.0, 2.5, "Grüße dich"),
    ]


def test_txt_lines_are_texts_of_the_whole_clip(tmp_path):
    result = read(tmp_path, "a.TXT", "a dog\n\n  barks \t loudly\n")
    assert [s.text for s in result.segments] == ["a dog", "barks loudly"]
    assert all(math.isnan(s.start) and math.isnan(s.end) for s in result.segments)


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2, "b"], [0, 0.5, "a"]],
        {"segments": [{"start": 1, "end": 2, "text": "b", "id": 7}, [0, 0.5, "a"]]},
        {"start": [1, 0], "end": [2, 0.5], "text": ["b", "a"]},
        {"text": "a b", "segments": [[0, 0.5, "a"], [1, 2, " b "], [3, 4, " "]]},
    ],
)
def test_json_shapes_agree(tmp_path, value):
    result = read(tmp_path, "a.json", json.dumps(value))
    assert timed(result) == [(0.0, 0.5, "a"), (1.0, 2.0, "b")]
    assert result.words == ()


def test_json_words_and_texts(tmp_path):
    value = {"text": ["x", ""], "words": [[1, 2, "two"], [0, 1, "one"]]}
    result = read(tmp_path, "a.json", json.dumps(value))
    assert [s.text for s in result.segments] == ["x"]
    assert result.words == (Word(0.0, 1.0, "one"), Word(1.0, 2.0, "two"))
    assert read(tmp_path, "b.json", '["x", "y"]').segments[1].text == "y"
    assert read(tmp_path, "c.json", '"x"').segments[0].text == "x"


@pytest.mark.parametrize("name", ["a.txt", "a.srt", "a.vtt"])
def test_empty_files_have_no_text(tmp_path, name):
    assert read(tmp_path, name, "") == captions.Captions()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.srt", "1\n00:00:02,000 --> 00:00:01,000\nx\n", r"line 2: expected an end"),
        ("a.srt", "1\n0:0 --> oops\nx\n", r"line 2: expected a SubRip timing.*oops"),
        ("a.vtt", "<html>no</html>\n", r"file: expected at least one WebVTT cue"),
        ("a.json", "{", r"file: expected JSON, found"),
        ("a.json", '{"subs": 1}', r'file: expected an object with "text"'),
        ("a.json", "3", r'file: expected an object with "text"'),
        ("a.json", "[[0, 1]]", r"segments\[0\]: expected a list of \[start, end, text"),
        ("a.json", '[["0", 1, "a"]]', r"segments\[0\] start: expected finite seconds"),
        ("a.json", '[[0, NaN, "a"]]', r"segments\[0\] end: expected finite seconds"),
        ("a.json", '[[2, 1, "a"]]', r"segments\[0\] end: expected an end not before"),
        (
            "a.json",
            '{"words": [[0, 1, 2]]}',
            r"words\[0\] word: expected text",
        ),
        ("a.json", '{"start": [1], "end": [], "text": []}', r"lists of one length"),
    ],
)
def test_errors_name_field_expected_found(tmp_path, name, text, message):
    with pytest.raises(captions.CaptionError, match=message):
        read(tmp_path, name, text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[[0, 1e39, "beyond float32"]]',
        '[[0, %s, "beyond any float"]]' % ("9" * 400),
    ],
)
def test_monstrous_json_is_a_fault_of_the_file(tmp_path, text):
    with pytest.raises(captions.CaptionError):
        read(tmp_path, "a.json", text)


def test_latin1_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(captions.CaptionError, match=r"UTF-8.*iconv"):
        read(tmp_path, "a.txt", "Grüße", "latin-1")


def test_untimed_come_first():
    mixed = captions.parse_text("a") + captions.parse_segments([[0, 1, "b"]])
    assert mixed[1] == Segment(0.0, 1.0, "b")


def of(*rows):
    return tuple(Segment(*row) for row in rows)


def test_rolling_captions_say_things_once():
    rolling = of(
        (0.0, 4.0, "we cut the"),
        (2.0, 6.0, "we cut the onion"),
        (4.0, 8.0, "onion in half and"),
        (6.0, 9.0, "onion in half and"),
        (20.0, 22.0, "in half and"),
    )
    assert captions.without_repeats(rolling) == of(
        (0.0, 2.0, "we cut the"),
        (2.0, 4.0, "onion"),
        (4.0, 9.0, "in half and"),
        (20.0, 22.0, "in half and"),  # said again, after a pause
    )


def test_what_is_no_repeat_stays():
    nan = math.nan
    rows = of(
        (nan, nan, "a title"),
        (nan, nan, "a title"),
        (0.0, 2.0, "so now we take the"),
        (2.0, 4.0, "the pan"),  # one shared word of several is chance
        (4.0, 6.0, "Жарим лук"),
        (4.0, 6.0, "炒洋葱"),
    )
    assert captions.without_repeats(rows) == rows


def test_tags_part_no_words(tmp_path):
    path = tmp_path / "a.vtt"
    path.write_text(
        "WEBVTT\n\n00:00.000 --> 00:01.000\n \n日本<00:00.500><c>語です</c><br>โลก\n"
        "00:01.000 --> 00:02.000\nnext\n",
        encoding="utf-8",
    )
    found = captions.read_captions(path).segments
    assert [s.text for s in found] == ["日本語です โลก", "next"]
