"""The whole evaluation: what it finds, what it skips, what JSON it gives."""

import dataclasses
import json
import re

import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.evals import zero_shot
from mmssl.evals.embeddings import Embeddings, normalised
from mmssl.evals.evaluate import (
    Arm,
    Options,
    check_protocols,
    evaluate,
    metrics,
    possible,
    summary,
    table_rows,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = {
    "digit": lambda y: np.array([f"d{i}" for i in y]),
    "constant": lambda y: np.full(len(y), "same"),
    "own": lambda y: np.array([f"id{i}" for i in range(len(y))]),
    "absent": lambda y: np.full(len(y), ""),
    "partly": lambda y: np.array([f"d{i}" if i else "" for i in y]),
}


def split(seed, n, *, signal, unseen=False):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    content = np.eye(4)[y] * 2 + np.random.default_rng(seed).standard_normal((n, 4))

    def view():
        noise = rng.standard_normal((n, 4)) * (0.1 if signal else 50)
        return normalised(content + noise).astype(np.float32)

    video, audio = view(), view()
    labels = {name: make(y) for name, make in COLUMNS.items()}
    if unseen:
        labels["digit"][:5] = "new"
    present = np.ones(n, bool)
    present[-3:] = False
    return Embeddings(
        ids=tuple(f"{seed}-{i}" for i in range(n)),
        present={"video": present, "audio": np.ones(n, bool)},
        pooled={"video": video * present[:, None], "audio": audio},
        spaces={"va": {"video": video * present[:, None], "audio": audio}},
        labels=labels,
        texts=(frozenset(),) * n,
    )


def arm(signal):
    return Arm(
        train=split(1, 80, signal=signal),
        test=split(2, 40, signal=signal, unseen=True),
    )


@pytest.fixture(scope="module")
def result():
    return evaluate(arm(True), arm(False)).sections


def test_retrieval_beside_random_and_chance(result):
    assert set(result["retrieval"]) == {"video->audio", "audio->video"}
    for cell in result["retrieval"].values():
        assert cell["n"] == 37
        assert cell["trained"]["R@10"] > 0.8 > cell["random"]["R@10"]
        assert cell["chance"]["R@10"] == pytest.approx(10 / 37)


@pytest.mark.parametrize("section", ["probe", "knn"])
def test_classifiers(result, section):
    test = arm(True).test
    for m, n in (("video", 37), ("audio", 40)):
        columns = result[section][m]
        cell = columns["digit"]
        assert cell["n"] == n
        # Five test clips of a class never seen are all wrong.
        assert cell["unseen"] == 5
        assert cell["random"]["accuracy"] < cell["trained"]["accuracy"] <= (n - 5) / n
        _, counts = np.unique(test.labels["digit"][:n], return_counts=True)
        assert cell["chance"]["accuracy"] == pytest.approx(counts.max() / n)
        assert columns["partly"]["n"] == (test.labels["partly"][:n] != "").sum()
        learned = arm(True).train.labels["partly"][: 77 if m == "video" else 80]
        assert columns["partly"]["n_train"] == (learned != "").sum()
        assert columns["partly"]["classes"] == 3
        assert "1 class" in columns["constant"]["skipped"]
        assert "class of its own" in columns["own"]["skipped"]
        assert "no test clip" in columns["absent"]["skipped"]


def test_no_shared_class_is_skipped():
    one = arm(True)
    labels = {"digit": np.full(len(one.test.ids), "other")}
    test = dataclasses.replace(one.test, labels=labels)
    changed = Arm(test, one.train)
    cell = evaluate(changed, changed).sections["probe"]["audio"]["digit"]
    assert "no class of the test split" in cell["skipped"]


def test_classifiers_never_judge_the_clips_they_learned_from():
    one = arm(True)
    mixed = dataclasses.replace(one.test, ids=(one.train.ids[0], *one.test.ids[1:]))
    found = evaluate(Arm(mixed, one.train), Arm(mixed, one.train)).sections
    for section in ("probe", "knn"):
        for column in found[section]["video"].values():
            assert column == {
                "skipped": "1 clips of the judged split are in training as well"
            }
    assert found["retrieval"]


def test_json_and_rows(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    rows = table_rows(result)
    assert [r.section for r in rows] == sorted(
        (r.section for r in rows), key=["retrieval", "probe", "knn"].index
    )
    assert len([r for r in rows if r.section == "retrieval"]) == 10
    assert {r.case for r in rows if r.section == "knn"} == {
        f"{m} {c}" for m in ("video", "audio") for c in ("digit", "partly")
    }
    row = next(r for r in rows if r.case == "video digit" and r.section == "probe")
    cell = result["probe"]["video"]["digit"]
    assert (row.metric, row.trained, row.random, row.chance, row.n) == (
        "accuracy",
        cell["trained"]["accuracy"],
        cell["random"]["accuracy"],
        cell["chance"]["accuracy"],
        37,
    )


def test_numbers_for_a_log_have_names_that_every_tracker_takes(result):
    found = metrics(result)
    cases = {(row.section, row.case) for row in table_rows(result)}
    assert len(found) == len(table_rows(result)) + len(cases)
    assert found["eval/probe/video/digit/n"] == 37
    assert (
        found["eval/probe/video/digit/accuracy"]
        == (result["probe"]["video"]["digit"]["trained"]["accuracy"])
    )
    pair = result["retrieval"]["video->audio"]["trained"]
    assert found["eval/retrieval/video-audio/R1"] == pair["R@1"]
    assert all(re.fullmatch(r"[\w./-]+", name) for name in found)
    assert summary(result).startswith("retrieval R@1 ")


def test_outcomes_are_what_the_cells_summarise():
    found = evaluate(arm(True), protocols=("knn", "retrieval"))
    assert set(found.sections) == {"knn", "retrieval"}
    assert "random" not in found.sections["retrieval"]["video->audio"]
    ranks = found.outcomes["retrieval/video->audio"]
    assert len(ranks.clips) == 37
    cell = found.sections["retrieval"]["video->audio"]["trained"]
    assert (ranks.values <= 5).mean() == cell["R@5"]
    right = found.outcomes["knn/audio digit"].values
    cell = found.sections["knn"]["audio"]["digit"]["trained"]
    assert right.mean() == cell["accuracy"]
    assert found.protocols["knn"] == {"version": 1, "k": 20, "temperature": 0.07}


def test_zero_shot_takes_the_nearest_prompt():
    one = arm(True)
    x = one.test.spaces["va"]["video"]
    test = dataclasses.replace(
        one.test, spaces={"vt": {"video": x, "text": x[:, None]}}
    )
    labels = test.labels["digit"]
    names = zero_shot.classes(test, "digit")
    assert zero_shot.sentences(["a_b"], ["{}", "some {}"]) == ["a b", "some a b"]
    rng = np.random.default_rng(0)
    embedded = rng.standard_normal((len(names) * 2, 4))
    vectors = zero_shot.prompts(names, {"vt": embedded}, 2)
    cell, outcome = zero_shot.zero_shot(
        {"trained": Arm(test, prompts={"digit": vectors})}, "video", "digit"
    )
    ranks = []
    for clip in outcome.clips:
        of_class = {
            name: float(x[clip] @ normalised(embedded[2 * i : 2 * i + 2].mean(0)))
            for i, name in enumerate(names)
        }
        own = of_class[labels[clip]]
        ranks.append(sum(score >= own for score in of_class.values()))
    np.testing.assert_array_equal(outcome.values, ranks)
    assert cell["trained"]["top1"] == np.mean(np.array(ranks) == 1)
    assert cell["chance"] == {"top1": 1 / 5, "top5": 1.0}
    # Prompts that the model cannot tell apart are never right.
    same = zero_shot.prompts(names, {"vt": np.ones((10, 4))}, 2)
    cell, _ = zero_shot.zero_shot(
        {"trained": Arm(test, prompts={"digit": same})}, "video", "digit"
    )
    assert cell["trained"]["top1"] == 0


def test_zero_shot_needs_no_captions_in_the_split():
    """Sets for classification have labels alone; prompts bring the text."""
    one = arm(True).test
    x = one.spaces["va"]["video"]
    captions = {"va": one.spaces["va"], "vt": {"video": x, "text": x[:, None]}}
    names = zero_shot.classes(one, "digit")
    vectors = {"vt": np.random.default_rng(0).standard_normal((len(names), 4))}
    found = [
        evaluate(
            Arm(
                dataclasses.replace(one, spaces=spaces),
                prompts={"digit": zero_shot.prompts(names, vectors, 1)},
            ),
            protocols=("zero_shot",),
        ).sections["zero_shot"]
        for spaces in (captions, captions | {"vt": {"video": x}})
    ]
    assert found[0]["video"]["digit"]["space"] == "vt"
    assert found[1] == found[0]
    assert found[0]["audio"]["digit"] == {"skipped": "audio and text share no space"}


def test_label_fractions_and_several_classes():
    one = arm(True)

    def tagged(part):
        digits = part.labels["digit"]
        tags = (frozenset({d, "d9"} if i % 3 else {d}) for i, d in enumerate(digits))
        return dataclasses.replace(part, classes=tuple(tags))

    both = Arm(tagged(one.test), tagged(one.train))
    found = evaluate(
        both,
        protocols=("fractions", "multilabel"),
        options=Options(shares=(0.1, 1.0), seeds=(0, 1)),
    )
    cell = found.sections["fractions"]["video"]["digit"]
    assert list(cell) == ["10%", "100%"]
    assert 4 <= cell["10%"]["n_train"] <= 12
    whole = evaluate(both, protocols=("probe",)).sections["probe"]["video"]["digit"]
    assert cell["100%"]["by_seed"]["trained"] == [whole["trained"]["accuracy"]] * 2
    several = found.sections["multilabel"]["video"]
    assert several["classes"] == 5  # "new" is in the test split alone
    assert several["trained"]["mAP"] > several["chance"]["mAP"] + 0.2
    assert found.protocols["fractions"]["seeds"] == [0, 1]


def test_what_is_mistyped_is_named():
    with pytest.raises(UserError, match="did you mean 'retrieval'"):
        check_protocols(["retreival"], "here")
    with pytest.raises(UserError, match="at least one"):
        check_protocols([], "here")
    assert check_protocols(["knn", "retrieval"], "") == ("retrieval", "knn")
    with pytest.raises(ValueError, match="prompts"):
        Options(prompts=("no place",))


def test_a_dataset_without_a_training_split():
    told = {"data": "D", "splits": {"test": {}}, "train_split": "train[:10%]"}
    run, skipped = possible(None, **told)
    assert run == ("retrieval", "zero_shot")
    reason = {"skipped": "no split 'train[:10%]'"}
    assert skipped == {"probe": reason, "knn": reason}
    assert table_rows(skipped) == []
    assert possible(("retrieval",), **told) == (("retrieval",), {})
    with pytest.raises(UserError, match=r"knn,svm learns from .* D has \['test'\]"):
        possible(("svm", "knn", "retrieval"), **told)
    both = told | {"splits": {"test": {}, "train": {}}}
    assert possible(None, **both) == (("retrieval", "zero_shot", "probe", "knn"), {})


def test_arms_of_different_clips_are_refused():
    one = arm(True)
    with pytest.raises(ValueError, match="clips of 'test'"):
        evaluate(one, Arm(one.train, one.train))
