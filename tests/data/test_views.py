"""One record to one example: window, media, text, faults."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from mmssl.data import text as text_lib
from mmssl.data.media import Clip, ClipRequest
from mmssl.data.pool import DecodePool, MediaFault
from mmssl.data.records import Record, Segment, Word, example_id
from mmssl.data.video import SAME_COLOUR
from mmssl.data.views import PARTS, View
from mmssl.errors import UserError
from tests.data import media_files

PROBE = {
    "duration": 10.0,
    "video": {"frames": 100, "fps": 10.0, "start": 0.0},
    "audio": {"samples": 160000, "rate": 16000, "start": 0.0},
}
VIDEO = {"frames": 4, "size": (6, 8)}
AUDIO = {"rate": 1000}
TEXT = {"length": 3, "candidates": 2}


class FakePool:
    """Answers with constant media and remembers what was asked."""

    workers = 2

    def __init__(self, faults: dict[str, str] | None = None, broken: str = "") -> None:
        self.faults = faults or {}
        self.broken = broken
        self.requests: list[ClipRequest] = []

    def clip(self, _: bytes, request: ClipRequest) -> Clip:
        self.requests.append(request)
        if self.broken:
            raise MediaFault(self.broken)
        video = audio = None
        if request.video is not None and "video" not in self.faults:
            assert request.video.size is not None
            shape = (len(request.video.times), *request.video.size, 3)
            video = np.full(shape, 7, np.uint8)
        if request.audio is not None and "audio" not in self.faults:
            audio = np.full(request.audio.samples, 0.5, np.float32)
        return Clip(video, audio, self.faults)


@pytest.fixture
def words(tmp_path) -> text_lib.WordTokenizer:
    path = tmp_path / "tokenizer.txt"
    path.write_text("one\ntwo\nthree\n")
    return text_lib.WordTokenizer(path)


def record(**changes: Any) -> Record:
    base = Record(
        id="a",
        media=b"media",
        segments=(
            Segment(0.0, 2.0, "one"),
            Segment(4.0, 6.0, "two two two two"),
            Segment(8.0, 9.0, "three"),
        ),
        words=(Word(0.5, 0.9, "one"), Word(4.9, 5.3, "two"), Word(5.4, 5.6, "odd")),
        labels={"color": "red"},
        meta={"probe": PROBE},
    )
    return dataclasses.replace(base, **changes)


def view(pool: Any, tokenizer: Any, **changes: Any) -> View:
    options = {"video": VIDEO, "audio": AUDIO, "text": TEXT, "seconds": 2.0}
    return View(pool, tokenizer=tokenizer, **(options | {"train": False} | changes))


def test_the_evaluation_window_is_the_centre_and_nothing_is_augmented(words) -> None:
    pool = FakePool()
    example = view(pool, words)(record())
    (request,) = pool.requests
    assert request.video is not None
    assert request.audio is not None
    assert request.video.times == pytest.approx((4.0, 4.5, 5.0, 5.5))
    assert (request.audio.start, request.audio.samples) == (4.0, 2000)
    assert (request.video.attempts, request.video.flip) == ((), False)
    assert "colour" not in example
    np.testing.assert_array_equal(example["audio"], np.full(2000, 0.5, np.float32))
    assert example["video"].shape == (4, 6, 8, 3)
    assert example["present"] == {"video": True, "audio": True, "text": True}
    assert example["example_id"] == example_id("a")
    # Nearest to 5.0 s first: [4, 6], then [8, 9] (3.5 away) before [0, 2] (4 away).
    np.testing.assert_array_equal(example["text"], [[3, 3, 3], [4, 0, 0]])
    info = example["info"]
    assert (info["id"], info["labels"]) == ("a", {"color": "red"})
    assert (info["start"], info["faults"]) == (4.0, [])


def test_windows_are_evenly_spaced(words) -> None:
    pool = FakePool()
    several = view(pool, words, windows=3)
    starts = [several(record(), window=k)["info"]["start"] for k in range(3)]
    assert starts == pytest.approx([0.0, 4.0, 8.0])


def test_training_is_a_pure_function_of_record_and_generator(words) -> None:
    pool = FakePool()
    train = view(pool, words, train=True)
    first, again, other = (
        train(record(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first["audio"], again["audio"])
    assert pool.requests[0] == pool.requests[1] != pool.requests[2]
    assert first["info"] == again["info"]
    assert first["info"]["start"] != other["info"]["start"]
    starts = [
        train(record(), np.random.default_rng(i))["info"]["start"] for i in range(50)
    ]
    assert min(starts) >= 0
    assert max(starts) <= 8.0
    assert max(starts) - min(starts) > 5
    with pytest.raises(ValueError, match="generator"):
        train(record())


def test_colour_is_drawn_here_and_changed_on_the_device(words) -> None:
    pool = FakePool()
    always, never = (
        view(pool, words, train=True, video=VIDEO | {"colour": share})
        for share in (1.0, 1e-9)
    )
    drawn = always(record(), np.random.default_rng(0))["colour"]
    assert drawn.dtype == np.float32
    assert abs(drawn[0]) <= 32 / 255
    assert (np.abs(drawn - SAME_COLOUR) > 0).all()
    for same in (never(record(), np.random.default_rng(0)), always.empty()):
        np.testing.assert_array_equal(same["colour"], SAME_COLOUR)


def test_augmentations_can_be_switched_off(words) -> None:
    pool = FakePool()
    off = {"crop_area": None, "flip": 0.0, "colour": 0.0}
    plain = view(
        pool, words, train=True, video=VIDEO | off, audio=AUDIO | {"noise": 0.0}
    )
    example = plain(record(), np.random.default_rng(0))
    video = pool.requests[0].video
    assert video is not None
    assert (video.attempts, video.flip) == ((), False)
    assert "colour" not in example
    assert (example["audio"] == 0.5).all()


def test_words_of_the_window_as_text(words) -> None:
    spoken = view(FakePool(), words, text=TEXT | {"source": "words"})
    example = spoken(record())
    np.testing.assert_array_equal(example["text"], [[3, 1, 0], [0, 0, 0]])
    silent = spoken(record(words=(Word(0.5, 0.9, "one"),)))
    assert not silent["present"]["text"]
    assert not silent["text"].any()


def test_a_text_without_times_belongs_to_every_window(words) -> None:
    whole = Segment(math.nan, math.nan, "three")
    example = view(FakePool(), words)(record(segments=(whole, *record().segments)))
    np.testing.assert_array_equal(example["text"][:, 0], [4, 3])


def test_a_fault_of_one_modality_leaves_the_others(words) -> None:
    example = view(FakePool(faults={"audio": "ended"}), words)(record())
    assert example["present"] == {"video": True, "audio": False, "text": True}
    assert not example["audio"].any()
    assert example["info"]["faults"] == ["ended"]


def test_a_fault_of_the_media_leaves_zeros(words) -> None:
    example = view(FakePool(broken="crash"), words)(record(segments=()))
    assert not any(example["present"].values())
    assert not any(example[m].any() for m in ("video", "audio", "text"))
    assert example["info"]["faults"] == ["crash"]


def test_missing_modalities_are_no_faults(words) -> None:
    pool = FakePool()
    for probe, media, expected in (
        (PROBE | {"video": None}, b"m", {"video": False, "audio": True}),
        (PROBE | {"audio": None}, b"m", {"video": True, "audio": False}),
        (None, b"", {"video": False, "audio": False}),
    ):
        row = record(media=media, meta={} if probe is None else {"probe": probe})
        example = view(pool, words)(row)
        assert example["present"] == expected | {"text": True}
        assert example["info"]["faults"] == []
    assert len(pool.requests) == 2


def test_the_meta_of_a_text_only_row_is_the_users_own(words) -> None:
    row = record(media=b"", meta={"probe": "lapel microphone"})
    example = view(FakePool(), words)(row)
    assert example["present"] == {"video": False, "audio": False, "text": True}


def test_windows_lie_where_all_streams_have_content(words) -> None:
    short = {"samples": 48000, "rate": 16000, "start": 0.0}
    train = view(FakePool(), words, train=True)
    for seed in range(20):
        row = record(meta={"probe": PROBE | {"audio": short}})
        start = train(row, np.random.default_rng(seed))["info"]["start"]
        assert 0 <= start <= 1.0


def test_real_media_through_real_workers(words) -> None:
    data = media_files.encode(
        times=[i / 10 for i in range(50)], wave=media_files.tone(5.0)
    )
    with DecodePool(1) as pool:
        probe = dataclasses.asdict(pool.probe(data))
        example = view(pool, words, audio={"rate": 16000})(
            record(media=data, meta={"probe": probe})
        )
        found = [media_files.index_of(frame) for frame in example["video"]]
        start = example["info"]["start"]
        assert found == [
            math.floor((start + 0.5 * i) * 10 + 1e-6) % 28 for i in range(4)
        ]
        assert np.abs(example["audio"]).max() > 0.4
        unknown = view(pool, words)(record(media=data, meta={}))
        assert unknown["present"]["video"]
        bad = view(pool, words)(record(media=b"not media", meta={"probe": PROBE}))
        assert bad["info"]["faults"] == ["unreadable"]


def test_options_are_checked(words) -> None:
    for changes, match in (
        ({"video": {"frames": 0}}, "frames"),
        ({"text": {"source": "titles"}}, "source"),
        ({"train": True, "windows": 2}, "windows"),
        ({"video": {"fit": "stretch"}}, "fit"),
    ):
        with pytest.raises(ValueError, match=match):
            view(FakePool(), words, **changes)
    with pytest.raises(ValueError, match="tokenizer"):
        view(FakePool(), None)
    with pytest.raises(TypeError):
        view(FakePool(), words, video={"framez": 3})


def test_tokenizer_files(tmp_path, words) -> None:
    assert words.vocab_size == 5
    assert words.encode("Two, ONE? nine") == [3, 2, 1]
    assert words.decode([3, 2, 1, 0]) == "two one <unk>"
    for name, content, match in (
        ("none.model", None, "data tokenizer"),
        ("a.json", b"{}", "ends in"),
        ("b.model", b"garbage", "not a SentencePiece"),
        ("c.txt", b"one\none\n", "repeated"),
        ("d.txt", b"", "empty"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=match):
            text_lib.load_tokenizer(path)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [("audio", {"rate": 0}), ("audio", {"noise": -1.0}), ("text", {"candidates": 0})],
)
def test_numbers_out_of_range_are_refused(part: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PARTS[part](**wrong)  # pyright: ignore[reportArgumentType]
