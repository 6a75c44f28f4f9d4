"""Ranks, their summary and chance, against loops and enumeration."""

import fractions
import itertools

import numpy as np
import pytest

from mmssl.evals.embeddings import Embeddings, normalised
from mmssl.evals.retrieval import (
    chance,
    examples,
    retrieval,
    shared_texts,
    space_of,
    summarise,
)
from tests.evals import dense

pytestmark = pytest.mark.usefixtures("compile_quickly")


def unit(rng, *shape):
    return normalised(rng.standard_normal(shape)).astype(np.float32)


def test_summary_of_known_ranks():
    found = summarise(np.array([1, 2, 5, 6, 11, 100]))
    assert found["R@1"] == pytest.approx(1 / 6)
    assert found["R@5"] == pytest.approx(3 / 6)
    assert found["R@10"] == pytest.approx(4 / 6)
    assert found["median_rank"] == 5.5
    assert found["mrr"] == pytest.approx(
        (1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 11 + 0.01) / 6
    )


@pytest.mark.parametrize("counts", [[1], [2], [1, 3, 3], [6]])
def test_chance_equals_enumeration_of_all_orders(counts):
    gallery = 6
    found = []
    for m in counts:
        for order in itertools.permutations(range(gallery)):
            found.append(1 + min(order.index(item) for item in range(m)))
    expected = summarise(np.array(found))
    assert chance(np.array(counts), gallery) == pytest.approx(expected)


@pytest.mark.parametrize("gallery", [1, 7, 200, 1001])
def test_chance_of_one_right_answer(gallery):
    found = chance(np.ones(50, int), gallery)
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(min(k / gallery, 1))
    assert found["median_rank"] == (gallery + 1) / 2
    harmonic = sum(fractions.Fraction(1, r) for r in range(1, gallery + 1))
    assert found["mrr"] == pytest.approx(float(harmonic / gallery))


def test_the_smallest_shared_space_is_used():
    z = np.zeros((1, 2))
    spaces = {
        "vt": {"video": z, "audio": z, "text": z},
        "va": {"video": z, "audio": z},
    }
    assert space_of(spaces, "video", "audio") == "va"
    assert space_of(spaces, "text", "audio") == "vt"
    assert space_of({"va": spaces["va"]}, "text", "audio") is None


def test_shared_texts_are_numbered():
    texts = [frozenset(t) for t in ([b"a"], [b"b", b"c"], [b"a", b"c"], [])]
    found = shared_texts(texts)
    assert found.shape == (4, 2)  # "b" has one holder
    np.testing.assert_array_equal(
        dense.relevance(found),
        [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]],
    )
    assert shared_texts([frozenset()] * 3).shape == (3, 0)


def embeddings(video, text, *, present=None, texts=None):
    n = len(video)
    here = np.ones(n, bool) if present is None else present
    return Embeddings(
        ids=tuple(map(str, range(n))),
        present={"video": here, "text": np.ones(text.shape[:2], bool)},
        pooled={"video": video, "text": text},
        spaces={"vt": {"video": video, "text": text}},
        labels={},
        texts=texts or tuple(frozenset([b"%d" % i]) for i in range(n)),
    )


def test_perfect_embeddings_and_rows_without_video():
    x = np.eye(6, dtype=np.float32)
    present = np.array([True] * 4 + [False] * 2)
    found = retrieval(embeddings(x, x[:, None], present=present))
    assert set(found) == {"video->text", "text->video"}
    for cell in found.values():
        assert len(cell.rank) == 4
        assert cell.pair.space == "vt"
        assert cell.scores["R@1"] == 1
        assert cell.scores["median_rank"] == 1
        assert cell.chance["R@1"] == 0.25


def test_duplicate_texts_do_not_punish():
    x = np.eye(4, dtype=np.float32)
    text = x[[0, 0, 2, 3], None]
    apart = retrieval(embeddings(x, text))["video->text"]
    assert apart.scores["R@1"] == 0.5
    same = tuple(frozenset([t]) for t in (b"x", b"x", b"y", b"z"))
    found = retrieval(embeddings(x, text, texts=same))["video->text"]
    assert found.scores["R@1"] == 0.75
    assert found.chance["R@1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)
    assert retrieval(embeddings(x, text, texts=same))["text->video"].scores[
        "R@1"
    ] == pytest.approx(1)


def test_random_embeddings_are_at_chance():
    rng = np.random.default_rng(2)
    found = retrieval(embeddings(unit(rng, 500, 16), unit(rng, 500, 3, 16)))
    for cell in found.values():
        assert cell.scores["mrr"] == pytest.approx(cell.chance["mrr"], abs=0.01)
        assert abs(cell.scores["median_rank"] - 250.5) < 40


def test_examples_go_from_the_best_query_to_the_worst():
    rng = np.random.default_rng(3)
    found = embeddings(unit(rng, 20, 4), unit(rng, 20, 2, 4))
    everyone = retrieval(found)["video->text"].rank
    listed = examples(found, {"video->text": everyone})
    place = [e["rank"] for e in listed]
    assert place == sorted(place)
    assert (place[0], place[-1]) == (everyone.min(), everyone.max())
    for e in listed:
        scores = [r["score"] for r in e["results"]]
        assert scores == sorted(scores, reverse=True)
        right = [k + 1 for k, r in enumerate(e["results"]) if r["correct"]]
        assert right == ([e["rank"]] if e["rank"] <= 5 else [])
