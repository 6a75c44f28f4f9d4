"""Which checkpoints stay."""

import math

import jax.numpy as jnp
import pytest

from mmssl.errors import UserError
from mmssl.train.hooks import Hook
from mmssl.train.retention import Best, Retention
from tests.train import toy_run


def measured(**values):
    return {int(step[1:]): {"recall": value} for step, value in values.items()}


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"keep": 2}, {4, 5}),
        ({"keep": 1, "keep_every": 2}, {2, 4, 5}),
        ({"keep": 1, "best": Best("recall")}, {3, 5}),
        ({"keep": 1, "best": Best("recall", keep=2)}, {1, 3, 5}),
        ({"keep": 1, "best": Best("recall", mode="min")}, {2, 5}),
        ({"keep": 1, "best": Best("loss")}, {5}),
    ],
)
def test_each_rule_keeps_its_own(rules, kept):
    # Step 4 was not measured, step 5 is not finite.
    metrics = measured(s1=0.4, s2=0.1, s3=0.4, s5=math.nan) | {4: {}}
    assert Retention(**rules).kept(metrics) == kept


def test_values_out_of_range_are_refused():
    for rules in ({"keep": 0}, {"keep_every": -1}):
        with pytest.raises(UserError, match=r"checkpoint\.keep\w* must be at least"):
            Retention(**rules)
    for options in ({"mode": "largest"}, {"keep": 0}):
        with pytest.raises(ValueError, match=r"expected 'max'|at least 1"):
            Best("loss", **options)


def test_a_run_keeps_its_best_checkpoint_by_the_mean_loss(tmp_path):
    """Not by the loss of the step that happened to be the last before it."""

    losses = iter(jnp.array([4.0, 9.0, 5.0, 7.0, 5.0, 8.0, 4.0, 9.0, 9.0, 9.0]))

    def step_fn(state, raw):
        state, output = toy_run.STEP(state, raw)
        output.metrics["loss"] = next(losses)
        return state, output

    toy_run.run(
        tmp_path,
        steps=10,
        every=2,
        keep=1,
        best=Best("loss", mode="min"),
        step_fn=step_fn,
    )
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 10]


def test_a_metric_of_a_hook_ranks_where_it_was_measured(tmp_path):
    recall = {3: 0.9, 6: 0.4, 9: 0.5}
    hook = Hook(every=3, run=lambda step, *_: {"eval/recall": recall.get(step, 0.0)})
    progress = toy_run.Quiet()
    options = {"steps": 10, "keep": 1, "hooks": [hook], "progress": progress}
    toy_run.run(tmp_path, every=2, best=Best("eval/recall"), **options)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [6, 10]  # 3 and 9 are no checkpoints' steps
    (told,) = [note for note in progress.notes if "not ranked" in note]
    assert "checkpoint 2 is not ranked: checkpoint.best.metric 'eval/recall'" in told
