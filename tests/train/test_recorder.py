"""What a step leaves behind beside its metrics: conflicts, and the audit's warnings."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.train import conflict, metrics, recorder
from tests.train import toy_run

COS = (0.75, -0.5, 0.0, -0.975)


def gram(cosines, scale=4.0):
    """[g, 2, 2] with these cosines; None = the second gradient is zero."""
    return jnp.stack(
        [
            jnp.array([[scale, 0.0], [0.0, 0.0]])
            if c is None
            else jnp.array([[scale, 2 * c], [2 * c, 4 / scale]])
            for c in cosines
        ]
    )


def test_a_row_counts_defined_cosines_and_names_the_extremes():
    found = conflict.measure(gram([*COS, None]), ("va", "vt"))
    (pair,) = conflict.row(found, list("abcde"))["pairs"].items()
    name, told = pair
    assert name == "va_vt"
    expected, _ = np.histogram(COS, bins=40, range=(-1, 1))
    assert told["counts"] == expected.tolist()
    assert sum(told["counts"][:20]) == 2
    assert [e["id"] for e in told["most"]] == ["d", "b", "c", "a"]
    assert [e["id"] for e in told["least"]] == ["a", "c", "b", "d"]
    assert told["most"][0]["cos"] == pytest.approx(-0.975)
    json.dumps(told)


def test_groups_have_no_ids_and_one_loss_no_row():
    grouped = conflict.row(conflict.measure(gram(COS), ("va", "vt")), list("abcdefgh"))
    assert grouped["pairs"]["va_vt"].keys() == {"counts"}
    alone = conflict.measure(jnp.ones((4, 1, 1)), ("va",))
    assert conflict.row(alone, list("abcd")) == {}


def test_three_losses_have_three_pairs():
    found = conflict.measure(jnp.eye(3)[None], ("va", "vt", "at"))
    assert list(conflict.row(found, ["a"])["pairs"]) == ["va_vt", "va_at", "vt_at"]


def settled(tmp_path, fallbacks, *, cosines=None):
    """A recorder that settled steps with these values of `audit/fallback`."""
    progress = toy_run.Quiet()
    writers = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
    conflicts = metrics.JsonlWriter(tmp_path / "conflict.jsonl")
    log = metrics.EventLog(tmp_path / "events.jsonl")
    one = recorder.Recorder(
        start=0,
        total=len(fallbacks),
        writers=writers,
        conflicts=conflicts,
        events=log,
        progress=progress,
        max_nonfinite=3,
        dump_dir=tmp_path / "nonfinite",
    )
    for step, fallback in enumerate(fallbacks, start=1):
        scalars = {"loss": 1.0, "finite": True}
        if fallback is not None:
            scalars |= {"audit/rmse": 0.031, "audit/sign": 0.94, "audit/effect": 0.3}
            scalars |= {"audit/fallback": fallback}
        one.settle()
        one.dispatched(
            recorder.Dispatched(
                step=step,
                metrics={k: jnp.float32(v) for k, v in scalars.items()},
                health=None,
                cosines=cosines,
                ids=list("abcd"),
                rows=4,
                wait=0.0,
            )
        )
    one.settle()
    for file in (writers, conflicts, log):
        file.close()
    return [n for n in progress.notes if not n.startswith("first step compiled")]


def told(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_fallback_is_told_when_it_begins_and_when_it_ends(tmp_path):
    begins, ends = settled(tmp_path, [0.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert begins.startswith("warning: step 2: ")
    for word in ("0.031", "94.0%", "0.30", "slower"):
        assert word in begins
    assert ends.startswith("step 5: ")
    assert "again" in ends
    events = [e for e in told(tmp_path / "events.jsonl") if e["event"] == "audit"]
    assert [(e["step"], e["fallback"]) for e in events] == [(2, True), (5, False)]


def test_engines_without_an_audit_say_nothing(tmp_path):
    assert settled(tmp_path, [None, None]) == []


def test_conflicts_are_written_where_they_were_measured(tmp_path):
    found = conflict.measure(gram(COS), ("va", "vt"))
    settled(tmp_path, [0.0, 0.0], cosines=found)
    assert [r["step"] for r in told(tmp_path / "conflict.jsonl")] == [1, 2]
    settled(tmp_path / "none", [0.0])
    assert not (tmp_path / "none" / "conflict.jsonl").exists()


def test_the_loop_writes_them_with_the_rows_of_metrics(tmp_path):
    toy_run.run(tmp_path, steps=7, log_every=3)
    rows = told(tmp_path / "conflict.jsonl")
    assert [r["step"] for r in rows] == [3, 6, 7]
    last = rows[-1]["pairs"]["vt_va"]
    assert sum(last["counts"]) == toy_run.ROWS
    rng = np.random.default_rng([7, 6])
    x = rng.normal(size=(toy_run.ROWS, 2, toy_run.WIDTH // 2)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    cos = (unit[:, 0] * unit[:, 1]).sum(-1)
    names = [f"clip-6-{row}" for row in np.argsort(cos)]
    assert [e["id"] for e in last["most"]] == names
    assert [e["cos"] for e in last["most"]] == pytest.approx(sorted(cos), abs=1e-3)
