"""Ranks, their summary and chance, against loops and enumeration."""

import fractions
import itertools

import numpy as np
import pytest

from mmssl.evals.embeddings import Embeddings, normalised
from mmssl.evals.retrieval import (
    chance,
    examples,
    pairs,
    ranks,
    relevance,
    retrieval,
    similarity,
    space_of,
    summarise,
)


def unit(rng, *shape):
    return normalised(rng.standard_normal(shape)).astype(np.float32)


def test_ranks_equal_a_loop_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (30, 12)).astype(np.float32)
    relevant = rng.random((30, 12)) < 0.2
    relevant[:, 0] = True
    for row, found, right in zip(scores, ranks(scores, relevant), relevant):
        best = max(row[right])
        assert found == 1 + sum(s >= best for s, r in zip(row, right) if not r)


def test_collapsed_and_broken_scores_rank_last():
    eye = np.eye(5, dtype=bool)
    assert (ranks(np.ones((5, 5)), eye) == 5).all()
    assert (ranks(np.full((5, 5), np.nan), eye) == 5).all()
    with pytest.raises(ValueError, match="no relevant"):
        ranks(np.ones((2, 2)), np.zeros((2, 2), bool))


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


def test_similarity_takes_the_best_valid_candidate():
    rng = np.random.default_rng(1)
    a, b = unit(rng, 6, 4), unit(rng, 5, 3, 4)
    a_mask, b_mask = rng.random(6) < 0.7, rng.random((5, 3)) < 0.6
    a_mask[0], a_mask[1], b_mask[2] = True, False, False
    found = similarity(a, a_mask, b, b_mask)
    for i, j in itertools.product(range(6), range(5)):
        valid = [
            float(np.dot(a[i].astype(np.float64), b[j, l]))
            for l in range(3)
            if a_mask[i] and b_mask[j, l]
        ]
        expected = max(valid, default=-np.inf)
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(similarity(b, b_mask, a, a_mask), found.T)


def test_the_smallest_shared_space_is_used():
    z = np.zeros((1, 2))
    spaces = {
        "vt": {"video": z, "audio": z, "text": z},
        "va": {"video": z, "audio": z},
    }
    assert space_of(spaces, "video", "audio") == "va"
    assert space_of(spaces, "text", "audio") == "vt"
    assert space_of({"va": spaces["va"]}, "text", "audio") is None


def test_relevance_is_sharing_a_text():
    texts = [frozenset(t) for t in ([b"a"], [b"b", b"c"], [b"a", b"c"], [])]
    np.testing.assert_array_equal(
        relevance(texts), [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    )


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
        assert cell["n"] == 4
        assert cell["space"] == "vt"
        assert cell["scores"]["R@1"] == 1
        assert cell["scores"]["median_rank"] == 1
        assert cell["chance"]["R@1"] == 0.25


def test_duplicate_texts_do_not_punish():
    x = np.eye(4, dtype=np.float32)
    text = x[[0, 0, 2, 3], None]
    apart = retrieval(embeddings(x, text))["video->text"]
    assert apart["scores"]["R@1"] == 0.5
    same = tuple(frozenset([t]) for t in (b"x", b"x", b"y", b"z"))
    found = retrieval(embeddings(x, text, texts=same))["video->text"]
    assert found["scores"]["R@1"] == 0.75
    assert found["chance"]["R@1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)
    assert retrieval(embeddings(x, text, texts=same))["text->video"]["scores"][
        "R@1"
    ] == pytest.approx(1)


def test_random_embeddings_are_at_chance():
    rng = np.random.default_rng(2)
    found = retrieval(embeddings(unit(rng, 500, 16), unit(rng, 500, 3, 16)))
    for cell in found.values():
        assert cell["scores"]["mrr"] == pytest.approx(cell["chance"]["mrr"], abs=0.01)
        assert abs(cell["scores"]["median_rank"] - 250.5) < 40


def test_examples_go_from_the_best_query_to_the_worst():
    rng = np.random.default_rng(3)
    found = embeddings(unit(rng, 20, 4), unit(rng, 20, 2, 4))
    listed = [e for e in examples(found) if e["direction"] == "video->text"]
    place = [e["rank"] for e in listed]
    (pair,) = [p for p in pairs(found) if p.name == "video->text"]
    everyone = ranks(pair.scores, pair.relevant)
    assert place == sorted(place)
    assert (place[0], place[-1]) == (everyone.min(), everyone.max())
    for e in listed:
        scores = [r["score"] for r in e["results"]]
        assert scores == sorted(scores, reverse=True)
        right = [k + 1 for k, r in enumerate(e["results"]) if r["correct"]]
        assert right == ([e["rank"]] if e["rank"] <= 5 else [])
