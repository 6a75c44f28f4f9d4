"""kNN and the linear probe against sklearn and a loop."""

import numpy as np
import pytest
from sklearn import linear_model, neighbors

from mmssl.evals.knn import knn
from mmssl.evals.probe import probe


def clusters(seed=0, n=60, m=25, d=8, classes=4, spread=1.2):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, d))
    names = np.array([f"class{i}" for i in range(classes)])

    def draw(count):
        y = rng.integers(0, classes, count)
        x = centres[y] + spread * rng.standard_normal((count, d))
        return x.astype(np.float32), names[y]

    return *draw(n), *draw(m)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_equals_sklearn(k):
    x, y, test, _ = clusters()
    model = neighbors.KNeighborsClassifier(
        k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    expected = model.fit(x.astype(np.float64), y).predict(test.astype(np.float64))
    np.testing.assert_array_equal(knn(x, y, test, k=k), expected)


def test_knn_ties_take_the_earlier_row_and_the_first_class():
    train = np.array([[1, 0], [1, 0], [0, 1], [2, 0]], np.float32)
    labels = np.array(["b", "a", "c", "a"])
    test = np.array([[1, 0]], np.float32)
    assert knn(train, labels, test, k=1) == ["b"]
    assert knn(train, labels, test, k=2) == ["a"]
    # More neighbours asked for than there are rows.
    assert knn(train, labels, test, k=99) == ["a"]


def test_knn_vote_weighs_by_similarity():
    train = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    labels = np.array(["near", "far", "far"])
    test = np.array([[1, 0]], np.float32)
    assert knn(train, labels, test, k=3, temperature=0.07) == ["near"]
    assert knn(train, labels, test, k=3, temperature=100.0) == ["far"]


def test_probe_with_one_c_equals_sklearn_on_standardised_features():
    x, y, test, _ = clusters(1)
    x[:, 0], test[:, 0] = 3.0, 3.0  # a dead unit
    x[:, 1] *= 1e4
    test[:, 1] *= 1e4
    predicted, c = probe(x, y, test, grid=(0.1,))
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    std[0] = 1
    model = linear_model.LogisticRegression(C=0.1, max_iter=5000)
    model.fit((x - mean) / std, y)
    np.testing.assert_array_equal(predicted, model.predict((test - mean) / std))
    assert c == 0.1


def test_probe_chooses_c_without_the_test_rows():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((150, 30)).astype(np.float32)
    y = np.where(x[:, 0] + 0.3 * rng.standard_normal(150) > 0, "up", "down")
    predicted, c = probe(x[:100], y[:100], x[100:])
    assert (predicted == y[100:]).mean() > 0.8
    again, same = probe(x[:100], y[:100], x[100:120])
    assert c == same
    np.testing.assert_array_equal(again, predicted[:20])


def test_probe_takes_rare_classes():
    x, _, test, _ = clusters()
    y = np.array(["one"] + ["two"] * 30 + ["three"] * 29)
    predicted, _ = probe(x, y, test)
    assert set(predicted) <= set(y)
    # So few rows that the held-out part leaves one class only.
    few, _ = probe(x[:3], np.array(["a", "b", "b"]), test)
    assert set(few) <= {"a", "b"}
