"""Windows become clips; absent parts leave nothing."""

import dataclasses

import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.evals.embeddings import embed
from mmssl.types import RawBatch


@dataclasses.dataclass
class Host:
    raw: RawBatch
    info: list


def host(rows, *, size=4):
    """rows: (id, label, video value or None, texts as lists of token ids)."""
    video, text = np.zeros((size, 2), np.float32), np.zeros((size, 2, 3), np.int32)
    present = {"video": np.zeros(size, bool), "text": np.zeros(size, bool)}
    for i, (_, _, value, texts) in enumerate(rows):
        if value is not None:
            video[i], present["video"][i] = value, True
        for j, tokens in enumerate(texts):
            text[i, j, : len(tokens)] = tokens
            present["text"][i] = True
    raw = RawBatch({"video": video, "text": text}, present, np.arange(size))
    info = [{"id": r[0], "labels": {"kind": r[1]} if r[1] else {}} for r in rows]
    return Host(raw, info)


def embed_fn(raw):
    """Video: the value itself; text: one-hot-like from the first token."""
    video = raw.media["video"] + 0.0
    # Padding rows are garbage, as a model's output of zeros may be.
    video[~raw.present["video"]] = np.nan
    first = raw.media["text"][..., :1].astype(np.float32)
    text = np.concatenate([first, np.ones_like(first)], -1)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return {"video": video, "text": text}, {
        "vt": {"video": unit(video), "text": unit(text)}
    }


BATCHES = [
    host(
        [
            ("a", "x", (3.0, 4.0), [[5], [6]]),
            ("a", "x", (0.0, 1.0), [[6], [7]]),
            ("b", "", None, [[5]]),
            ("c", "y", (0.0, -2.0), []),
        ]
    ),
    host([("a", "x", None, []), ("d", "y", (1.0, 0.0), [[9]])]),
]


def test_windows_are_averaged_then_normalised():
    found = embed(BATCHES, {"x": embed_fn})["x"]
    assert found.ids == ("a", "b", "c", "d")
    np.testing.assert_array_equal(found.present["video"], [True, False, True, True])
    np.testing.assert_allclose(found.pooled["video"][0], [1.5, 2.5])
    mean = np.array([0.6 + 0.0, 0.8 + 1.0]) / 2
    np.testing.assert_allclose(
        found.spaces["vt"]["video"][0], mean / np.linalg.norm(mean), rtol=1e-6
    )
    np.testing.assert_allclose(found.spaces["vt"]["video"][2], [0, -1])
    assert (found.pooled["video"][1] == 0).all()
    assert (found.spaces["vt"]["video"][1] == 0).all()
    assert list(found.labels["kind"]) == ["x", "", "y", "y"]


def test_candidates_of_all_windows_are_distinct():
    found = embed(BATCHES, {"x": embed_fn})["x"]
    np.testing.assert_array_equal(
        found.present["text"],
        [[True] * 3, [True, False, False], [False] * 3, [True, False, False]],
    )
    np.testing.assert_array_equal(found.pooled["text"][0, :, 0], [5, 6, 7])
    np.testing.assert_allclose(found.features("text")[0], [6, 1])
    np.testing.assert_array_equal(found.features("text")[2], [0, 0])
    np.testing.assert_array_equal(found.rows("text"), [True, True, False, True])
    assert len(found.texts[0] & found.texts[1]) == 1
    assert not found.texts[2]


def test_no_clips_and_broken_embeddings_are_named():
    with pytest.raises(UserError, match="no clips"):
        embed([], {"x": embed_fn})
    with pytest.raises(UserError, match="clip 'z' is not finite"):
        embed([host([("z", "x", (np.nan, 1.0), [])])], {"x": embed_fn})
