"""The misalignment benchmark: what is swapped, how scores are judged, what is kept."""

import dataclasses
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from mmssl.errors import UserError
from mmssl.types import Batch, Encoded, ModalityBatch, ObjectiveOutput, RawBatch
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def data(benchmarks):
    return importlib.import_module("misalignment_data")


@pytest.fixture
def scores(benchmarks):
    return importlib.import_module("misalignment_scores")


@pytest.fixture
def arms(benchmarks):
    return importlib.import_module("misalignment_arms")


@pytest.fixture
def runs(benchmarks):
    return importlib.import_module("misalignment_runs")


@pytest.fixture
def main(benchmarks):
    return importlib.import_module("misalignment")


# -- the world -------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7, 1.0])
def test_swap_is_a_derangement_of_the_asked_share(data, fraction):
    labels = [{"color": f"{i % 7}"} for i in range(50)]
    source, wrong = data.swapped(fraction, labels, np.random.default_rng(0))
    assert wrong.sum() == round(fraction * 50)
    assert (source[wrong] != np.flatnonzero(wrong)).all()
    assert sorted(source[wrong]) == sorted(np.flatnonzero(wrong))
    assert (source[~wrong] == np.flatnonzero(~wrong)).all()


def test_swap_of_nothing_or_of_one_is_none(data):
    for fraction in (0.0, 0.1):
        source, wrong = data.swapped(fraction, [{}] * 10, np.random.default_rng(0))
        assert (source == np.arange(10)).all()
        assert not wrong.any()


def test_swap_prefers_partners_with_other_labels(data):
    labels = [{"color": f"{i % 4}"} for i in range(40)]
    _, first = np.unique([x["color"] for x in labels], return_inverse=True)
    equal = []
    for seed in range(20):
        source, wrong = data.swapped(0.5, labels, np.random.default_rng(seed))
        equal.append((first[source[wrong]] == first[wrong]).mean())
    assert np.mean(equal) < 0.15  # a quarter by chance


def test_order_gives_each_clip_once_per_pass_and_never_twice_in_a_batch(data):
    stream = data.order(10, 4, np.random.default_rng(0))
    batches = list(itertools.islice(stream, 25))
    assert all(len(set(batch)) == 4 for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=10)
    assert (counts == 10).all()


def toy_clips(data, n=6):
    frames = np.arange(n * 5 * 4 * 4 * 3, dtype=np.uint8).reshape(n, 5, 4, 4, 3)
    sound = np.arange(n * 50, dtype=np.float32).reshape(n, 50)
    text = np.arange(1, 2 * n + 1, dtype=np.int32).reshape(n, 1, 2)
    ids = [f"clip-{i}" for i in range(n)]
    return data.Clips(frames, sound, text, ids, [{}] * n, (3, 2, 2), 10)


def test_a_batch_takes_swapped_media_and_keeps_its_own_number(data):
    clips = toy_clips(data)
    source = {"text": np.array([1, 0, 2, 3, 4, 5])}
    rows = np.array([0, 3])
    raw = clips.batch(rows, source=source)
    assert raw.media["text"].tolist() == [[[3, 4]], [[7, 8]]]
    assert raw.example_id.tolist() == [0, 3]
    assert (raw.media["video"] == clips.video[rows, 1:4, 1:3, 1:3]).all()
    assert (raw.media["audio"] == clips.audio[rows, 10:40]).all()


def test_sound_is_cut_where_the_picture_is(data):
    clips = toy_clips(data)
    clips = dataclasses.replace(
        clips,
        video=np.broadcast_to(
            np.arange(5, dtype=np.uint8)[None, :, None, None, None], clips.video.shape
        ),
        audio=np.repeat(np.arange(5, dtype=np.float32), 10)[None].repeat(6, 0),
    )
    raw = clips.batch(np.arange(6), np.random.default_rng(0))
    first = raw.media["video"][:, 0, 0, 0, 0]
    assert len(set(first.tolist())) > 1
    assert (raw.media["audio"][:, 0] == first).all()


# -- scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_scikit_learns(scores, levels):
    rng = np.random.default_rng(0)
    score = rng.integers(0, levels, 200).astype(np.float32)
    positive = rng.random(200) < 0.3 + 0.4 * score / levels
    expected = metrics.roc_auc_score(positive, score)
    assert scores.auroc(score, positive) == pytest.approx(expected, abs=1e-12)


def test_auroc_without_one_of_the_classes_is_nan(scores):
    assert np.isnan(scores.auroc(np.arange(3.0), np.zeros(3, bool)))
    assert np.isnan(scores.auroc(np.arange(3.0), np.ones(3, bool)))


def test_agreement_leaves_the_sample_itself_out(scores):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(5, 2, 11))
    total = g.sum(0)
    dots = np.einsum("bkp,lp->bkl", g, total)
    gram = np.einsum("bkp,blp->bkl", g, g)
    found = scores._of_agreement(
        jnp.asarray(dots),
        jnp.asarray(gram),
        jnp.asarray(np.linalg.norm(total, axis=-1)),
        ("va", "vt"),
        "set",
    )
    others = [np.delete(g, i, 0).sum(0) for i in range(5)]
    expected = [-(g[i, 0] @ others[i][0] + g[i, 1] @ others[i][1]) for i in range(5)]
    np.testing.assert_allclose(found["agree_set_raw/all"], expected, rtol=1e-4)
    crossed = [-(g[i, 0] @ others[i][1]) for i in range(5)]
    np.testing.assert_allclose(found["agree_set_raw/va_vt"], crossed, rtol=1e-4)
    both = [-(g[i].sum(0) @ others[i].sum(0)) for i in range(5)]
    np.testing.assert_allclose(found["agree_set_raw/sum"], both, rtol=1e-4)


class Linear:
    """A model of one matrix, shared by two modalities, on media as they come."""

    specs = ("video", "audio")

    def prepare(self, raw):
        return Batch(
            {
                m: ModalityBatch(x, x, jnp.ones(len(x), bool), jnp.ones(len(x), bool))
                for m, x in raw.media.items()
            },
            raw.example_id,
        )

    def encode(self, params, batch, *, keys=None):
        pooled = {
            m: jnp.tanh(own.tokens @ params["shared"]["w"])
            for m, own in batch.modalities.items()
        }
        return Encoded({}, pooled)


@dataclasses.dataclass(frozen=True)
class Coupled:
    """Two losses in which every sample meets every other."""

    def __call__(self, head, state, encoded, batch, *, key, step):
        video, audio = encoded.pooled["video"], encoded.pooled["audio"]
        logits = video @ audio.T
        each = {
            "va": jax.nn.logsumexp(logits, 1) - jnp.diagonal(logits),
            "av": jax.nn.logsumexp(2 * logits, 0) - 2 * jnp.diagonal(logits),
        }
        losses = {k: x.mean() for k, x in each.items()}
        seen = {"video/joint": video, "audio/joint": audio}
        return ObjectiveOutput(losses, each, seen, {}, state)


class Media:
    """Six clips of random vectors."""

    def __init__(self):
        self.video, self.audio = np.random.default_rng(0).normal(size=(2, 6, 4))

    def __len__(self):
        return 6

    def batch(self, rows, source=None):
        x = {"video": self.video[rows], "audio": self.audio[rows]}
        raw = {m: jnp.asarray(value, jnp.float32) for m, value in x.items()}
        present = {m: np.ones(len(rows), bool) for m in raw}
        return RawBatch(raw, present, rows.astype(np.uint32))


def test_scores_are_those_of_gradients_taken_one_by_one(scores):
    model, objective = Linear(), Coupled()
    w = jnp.asarray(np.random.default_rng(9).normal(size=(4, 3)), jnp.float32)
    params = {"shared": {"w": w}}
    scorer = scores.Scorer(model, objective, batch=6, engines=[("vmap", 1)])
    found = scorer(params, {}, {}, Media(), {}, seed=0)

    batch = model.prepare(Media().batch(np.arange(6)))

    def of(params, i, name, *, own):
        """Loss `name` where only clip i moves: the batch's, or i's own."""
        z = model.encode(params, batch).pooled
        moves = (jnp.arange(6) == i)[:, None]
        z = {m: jnp.where(moves, x, jax.lax.stop_gradient(x)) for m, x in z.items()}
        out = objective({}, {}, Encoded({}, z), batch, key=None, step=0)
        return out.per_sample[name][i] if own else out.losses[name]

    def gradient(i, name, own):
        grad = jax.grad(lambda p: of(p, i, name, own=own))(params)
        return np.asarray(grad["shared"]["w"], np.float64).ravel()

    for own, label in ((False, "vmap/1"), (True, "own/1")):
        g = {k: [gradient(i, k, own) for i in range(6)] for k in ("va", "av")}
        length = {k: np.linalg.norm(x, axis=1) for k, x in g.items()}
        dots = [a @ b for a, b in zip(g["va"], g["av"], strict=True)]
        cos = np.array(dots) / length["va"] / length["av"]
        np.testing.assert_allclose(found[f"conflict/{label}/va_av"], -cos, atol=1e-5)
        np.testing.assert_allclose(
            found[f"norm/{label}/va"], length["va"], rtol=1e-4, atol=1e-6
        )
        if not own:
            rest = [np.delete(g["va"], i, 0).sum(0) for i in range(6)]
            agree = [-(a @ b) for a, b in zip(g["va"], rest, strict=True)]
            for name in ("agree_set_raw/va_va", "agree_batch_raw/va_va"):
                np.testing.assert_allclose(found[name], agree, rtol=1e-3, atol=1e-6)


# -- arms ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Squares:
    """Two losses without coupling: mean of w z^2 and of (z - 1)^2."""

    requires = frozenset({"video"})
    reads_tokens = False

    def terms(self):
        return ("a", "b")

    def init(self, key, widths):
        return {"w": jnp.float32(2.0)}, {}

    def __call__(self, head, state, encoded, batch, *, key, step):
        z = encoded.pooled["video"]
        each = {"a": head["w"] * (z**2).sum(1), "b": ((z - 1) ** 2).sum(1)}
        losses = {k: x.mean() for k, x in each.items()}
        return ObjectiveOutput(losses, each, {}, {}, state)


@dataclasses.dataclass(frozen=True)
class Rows:
    example_id: np.ndarray


def gradients(arms, *, table=None, drop=0.0, b=4):
    gated = arms.Gated(Squares(), clips=6, batch=b)
    head, state = gated.init(jax.random.key(0), {})
    if table is not None:
        state |= {"table": jnp.asarray(table, jnp.float32)}
    state |= {"drop": jnp.float32(drop)}
    z = jnp.asarray(np.random.default_rng(0).normal(size=(b, 3)), jnp.float32)
    batch = Rows(np.array([5, 0, 2, 4]))

    def losses(head, z):
        encoded = Encoded({}, {"video": z})
        out = gated(head, state, encoded, batch, key=None, step=0)
        return jnp.stack(list(out.losses.values())), out

    rows = jax.jacrev(losses, argnums=(0, 1), has_aux=True)(head, z)
    (by_head, by_z), out = rows
    return np.asarray(by_z), np.asarray(by_head["w"]), out, np.asarray(z)


def test_a_gate_that_is_open_changes_nothing(arms):
    by_z, by_head, out, z = gradients(arms)
    np.testing.assert_allclose(by_z[0], 2 * 2 * z / 4, rtol=1e-6)
    np.testing.assert_allclose(by_z[1], 2 * (z - 1) / 4, rtol=1e-6)
    assert by_head[0] == pytest.approx((z**2).sum(1).mean(), rel=1e-6)
    assert out.losses["a"] == pytest.approx(2 * (z**2).sum(1).mean(), rel=1e-6)


def test_a_gate_drops_by_number_and_loss_and_scales_the_rest(arms):
    table = np.ones((6, 2))
    table[0, 0] = table[2, 0] = table[4, 1] = 0
    by_z, by_head, out, z = gradients(arms, table=table)
    np.testing.assert_allclose(by_z[0, [1, 2]], 0)
    np.testing.assert_allclose(by_z[0, [0, 3]], (4 / 2) * z[[0, 3]], rtol=1e-5)
    np.testing.assert_allclose(by_z[1, 3], 0)
    # As with a harmonizer, the losses and the heads' gradients are those of all.
    plain = gradients(arms)
    np.testing.assert_allclose(by_head, plain[1], rtol=1e-6)
    assert out.losses["a"] == pytest.approx(float(plain[2].losses["a"]), rel=1e-6)


def test_the_loss_gate_drops_the_highest_of_the_batch(arms):
    by_z, _, out, _ = gradients(arms, drop=0.25)
    total = np.asarray(out.state["loss"]).sum(1)
    dropped = np.flatnonzero((by_z == 0).all((0, 2)))
    assert dropped.tolist() == [int(total.argmax())]


def small(arms, **kwargs):
    values = {
        "steps": 8,
        "batch": 8,
        "losses": ("va", "vt"),
        "kind": "text",
        "fraction": 0.5,
        "share": 0.4,
        "ramp": (2, 4),
        "every": 4,
    }
    return arms.Setting(**(values | kwargs))


@pytest.mark.parametrize("rule", ["random", "loss"])
def test_controls_drop_at_the_rate_of_the_arm_they_follow(arms, rule):
    rates = [0.0, 0.25, 0.5, 0.125]
    wrong = np.zeros(20, bool)
    gate = arms.Gate(rule, small(arms), wrong, 0, {"dropped": rates})
    chosen = np.arange(3, 11)
    for step, rate in enumerate(rates):
        inputs = gate.inputs(step, chosen)
        table = np.asarray(inputs["table"])[chosen]
        share = float(inputs["drop"]) + 1 - table.mean()
        assert share == pytest.approx(rate)
        assert gate.share == pytest.approx(rate)


def test_the_ramp_rises_from_nothing_to_the_share(arms):
    found = [small(arms).dropped(step) for step in range(6)]
    np.testing.assert_allclose(found, [0, 0, 0, 0.2, 0.4, 0.4])


def test_the_oracle_drops_what_is_swapped(arms):
    wrong = np.arange(20) % 3 == 0
    gate = arms.Gate("oracle", small(arms), wrong, 0, None)
    table = np.asarray(gate.inputs(0, np.arange(8))["table"])
    assert ((table == 0).all(1) == wrong).all()


def test_every_arm_follows_those_it_refers_to(arms):
    names = list(arms.ARMS)
    for name, arm in arms.ARMS.items():
        for needed in (arm.rate, arm.like):
            assert not needed or names.index(needed) < names.index(name)


def test_controls_take_mean_weights_and_time_of_the_arm_they_are_like(arms, runs):
    reference = {
        "weights": {"va": 1.1, "vt": 1.4},
        "seconds_per_step": 3.0,
        "plain_seconds_per_step": 2.0,
    }
    same, fixed = runs._like(small(arms), arms.ARMS["fixed"], reference)
    assert fixed.harmonizer["weighting"]["weights"] == {"va": 1.1, "vt": 1.4}
    assert same == small(arms)
    longer, plain = runs._like(small(arms), arms.ARMS["longer"], reference)
    assert longer.steps == 12
    assert plain == arms.Arm()


def test_visits_hold_the_last_and_the_running_mean(runs):
    visits = runs.Visits(3)
    visits.add(np.array([0, 1]), {"loss": np.array([1.0, 2.0])})
    visits.add(np.array([1]), {"loss": np.array([4.0])})
    found = visits.scores()
    np.testing.assert_allclose(found["visit/loss"], [1, 4, np.nan])
    np.testing.assert_allclose(found["visits/loss"], [1, 2.6, np.nan])


# -- the plan and what is kept ---------------------------------------------------------


def arguments(main, *argv):
    found = main.options().parse_args(argv)
    found.overrides = []
    return found


def result(run, arguments, main, *, recall=0.5, area=0.6, **kwargs):
    names = ("now/conflict/vmap/1/va_vt", "now/loss/all", "memory/similarity/all")
    areas = dict(zip(names, (area, area + 0.1, area - 0.1), strict=True))
    shared = dataclasses.asdict(main.setting(run, arguments))
    mean = {"R@10": recall, "median_rank": 3.0, "R@1": 0.1, "mrr": 0.2}
    return {
        "run": dataclasses.asdict(run),
        "setting": shared,
        "rows": [{"step": 1, "auroc": areas, "train": {}}],
        "eval": {"mean": mean, "probe": {"video": 0.5, "audio": 0.5}},
        "wall_seconds": 10.0,
        "steps": 5,
        "seconds_per_step": 1.0,
        "dropped": [0.0],
    } | kwargs


def test_a_finished_run_is_not_trained_again(main, tmp_path, monkeypatch):
    asked = arguments(main, "--steps=5")
    run = main.Run("use", "demo", 60, "text", 0.5, 0, "plain")
    stored = json.loads(json.dumps(result(run, asked, main)))
    path = main.result_file(tmp_path, run)
    path.parent.mkdir()
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(main.runs_lib, "run", pytest.fail)
    monkeypatch.setattr(main.data_lib, "load", pytest.fail)
    assert main.execute(run, asked, tmp_path) == stored
    text = main.described([run, run.other("realign")], asked, tmp_path)
    assert "2 runs, 1 finished; 5 steps are left" in text
    assert "2.00 s a step" in text


def test_a_run_of_another_setting_is_named(main, tmp_path):
    run = main.Run("use", "demo", 60, "text", 0.5, 0, "plain")
    path = main.result_file(tmp_path, run)
    path.parent.mkdir()
    path.write_text(json.dumps(result(run, arguments(main, "--steps=5"), main)))
    asked = arguments(main, "--steps=6")
    with pytest.raises(UserError, match="another setting"):
        main.execute(run, asked, tmp_path)


def test_the_plan_names_what_is_missing(main):
    with pytest.raises(UserError, match="'random' follows 'curriculum'"):
        main.plan(arguments(main, "--arms=plain,random"))
    with pytest.raises(UserError, match="--worlds: unknown 'moon'"):
        main.plan(arguments(main, "--worlds=moon"))


def test_finished_runs_are_judged_without_training(main, tmp_path, monkeypatch):
    monkeypatch.setattr(main.runs_lib, "run", pytest.fail)
    asked = arguments(main, "--workdir", str(tmp_path), "--finished", "--part", "use")
    for arm, recall in (("plain", 0.2), ("trim", 0.3)):
        run = main.Run("use", "demo", 1000, "text", 0.5, 3, arm)
        path = main.result_file(tmp_path, run)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result(run, asked, main, recall=recall)))
    summary = main.measure(asked).summary
    assert summary["gain_over_plain"]["mean"] == pytest.approx(0.1)
    assert summary["seeds"] == {"n": 1}


def test_nothing_swapped_is_run_for_one_kind_only(main):
    asked = arguments(main, "--part", "detection", "--seeds=0", "--fractions=0,0.5")
    names = [run.name for run in main.plan(asked)]
    assert names == [
        "demo3000-text-0-seed0-plain",
        "demo3000-text-50-seed0-plain",
        "demo3000-audio-50-seed0-plain",
        "grid800-text-0-seed0-plain",
        "grid800-text-50-seed0-plain",
        "grid800-audio-50-seed0-plain",
    ]


def test_summary_compares_within_seeds_and_with_the_best_control(main):
    asked = arguments(main)
    recalls = {
        "plain": (0.30, 0.40),
        "both": (0.50, 0.50),
        "random": (0.45, 0.47),
        "loss": (0.10, 0.10),
    }
    results = [
        result(
            main.Run("use", "demo", 60, "text", 0.5, seed, arm),
            asked,
            main,
            recall=recall,
            area=0.9,
        )
        for arm, values in recalls.items()
        for seed, recall in enumerate(values)
    ]
    judged = main.Run("detection", "demo", 60, "text", 0.5, 0, "plain")
    results.append(result(judged, asked, main, recall=0.99))
    measured = main.summary_lib.measured(results)
    assert measured.details["gains"] == {
        "best": "both",
        "plain": "plain",
        "best_control": "random",
    }
    found = measured.summary
    assert found["gain_over_plain"]["mean"] == pytest.approx(0.15)
    assert found["gain_over_best_control"]["min"] == pytest.approx(0.03)
    assert found["auroc_gradient"]["mean"] == pytest.approx(0.6)
    assert found["auroc_loss"]["mean"] == pytest.approx(0.7)
    assert found["auroc_similarity"]["mean"] == pytest.approx(0.5)
    assert found["seeds"] == {"n": 2}
    assert "| both | 2 | 50.0% |" in measured.text
