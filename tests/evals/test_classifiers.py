"""kNN, linear probes, VATT's head, mAP: against sklearn, a loop, or NumPy."""

import jax
import numpy as np
import pytest
from scipy import special
from sklearn import linear_model, neighbors, svm

from mmssl.evals import low_rank, multilabel
from mmssl.evals import probe as probes
from mmssl.evals.classify import few
from mmssl.evals.knn import knn
from mmssl.evals.probe import probe

pytestmark = pytest.mark.usefixtures("compile_quickly")


def clusters(seed=0, n=60, m=25, d=8, classes=4, spread=1.2):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, d))
    names = np.array([f"class{i}" for i in range(classes)])

    def draw(count):
        y = rng.integers(0, classes, count)
        x = centres[y] + spread * rng.standard_normal((count, d))
        return x.astype(np.float32), names[y]

    return *draw(n), *draw(m)


@pytest.mark.parametrize("k", [7, 60])
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


def test_svm_equals_sklearn_on_standardised_features():
    x, y, test, _ = clusters(4)
    predicted, c = probe(x, y, test, kind="svm", grid=(0.01,))
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    model = svm.LinearSVC(C=0.01, max_iter=50000, random_state=3)
    model.fit((x - mean) / std, y)
    np.testing.assert_array_equal(predicted, model.predict((test - mean) / std))
    assert c == 0.01


def test_few_keeps_a_share_of_every_class_and_grows():
    labels = np.array(["a"] * 40 + ["b"] * 20 + ["c"])
    sizes = {share: [] for share in (0.1, 0.5, 1.0)}
    for seed in range(3):
        kept = [set(few(labels, share, seed)) for share in sizes]
        assert kept[0] < kept[1] < kept[2]
        for share, rows in zip(sizes, kept):
            counts = [sum(labels[list(rows)] == name) for name in "abc"]
            sizes[share].append(counts)
    assert sizes == {
        0.1: [[4, 2, 1]] * 3,
        0.5: [[20, 10, 1]] * 3,
        1.0: [[40, 20, 1]] * 3,
    }
    assert not np.array_equal(few(labels, 0.1, 0), few(labels, 0.1, 1))


def test_the_low_rank_head_equals_numpy_without_dropout():
    """Adam on (x U + u) V + v, one whole batch an epoch, in float64."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5)), rng.integers(0, 3, 12)
    params = low_rank.initial(jax.random.key(0), 5, 3)
    found = low_rank.fit(
        params, x.astype(np.float32), y, jax.random.key(1), epochs=4, dropout=0.0
    )
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    moments = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in p.items()}
    for t in range(1, 5):
        hidden = x @ p["U"] + p["u"]
        out = hidden @ p["V"] + p["v"]
        share = np.exp(out - out.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        d = (share - np.eye(3)[y]) / len(x)
        back = d @ p["V"].T
        grads = {
            "U": x.T @ back,
            "u": back.sum(0),
            "V": hidden.T @ d + 2 * low_rank.L2 * p["V"],
            "v": d.sum(0),
        }
        for name, g in grads.items():
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moments[name] = m, v
            step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
            p[name] = p[name] - low_rank.RATE * step
    for name, value in p.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_low_rank_head_learns_what_is_there():
    x, y, test, truth = clusters(5, n=100, spread=0.3)
    predicted = low_rank.low_rank(x, y, test, epochs=60)
    assert (predicted == truth).mean() > 0.9


def test_multilabel_metrics_equal_a_loop():
    rng = np.random.default_rng(6)
    labels = rng.random((40, 5)) < 0.3
    labels[:, 3], labels[:, 4] = True, False  # neither counts
    scores = np.round(rng.standard_normal((40, 5)) + labels, 1)  # with ties
    found = multilabel.multilabel_metrics(scores, labels)
    precisions, areas = [], []
    for truth, score in zip(labels.T[:3], scores.T[:3]):
        recall, total = 0.0, 0.0
        for threshold in sorted(set(score), reverse=True):
            kept = score >= threshold
            now = truth[kept].sum() / truth.sum()
            total += (now - recall) * truth[kept].mean()
            recall = now
        precisions.append(total)
        above = score[truth][:, None] - score[~truth][None]
        areas.append(((above > 0) + 0.5 * (above == 0)).mean())
    assert found["mAP"] == pytest.approx(np.mean(precisions))
    assert found["AUC"] == pytest.approx(np.mean(areas))
    # z is the inverse of the normal distribution: erf(d / 2) = 2 AUC - 1.
    assert special.erf(found["d_prime"] / 2) == pytest.approx(2 * np.mean(areas) - 1)
    with pytest.raises(ValueError, match="no class"):
        multilabel.multilabel_metrics(scores[:, 3:], labels[:, 3:])


def test_scores_of_each_class_are_sklearns():
    x, y, test, _ = clusters(7)
    labels = np.stack([y == "class0", (y == "class1") | (y == "class0")], 1)
    found, _ = probes.scores(
        x, labels, test, judge=lambda scores, labels: 0.0, grid=(0.1,)
    )
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    for column, label in zip(found.T, labels.T):
        model = linear_model.LogisticRegression(C=0.1, max_iter=5000)
        expected = model.fit((x - mean) / std, label).decision_function(
            (test - mean) / std
        )
        np.testing.assert_allclose(column, expected, atol=2e-3)
