"""The whole road on real media: a demo world, a tiny model, every command's work."""

import dataclasses
import json
import shutil
import time
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

import mmssl
from mmssl import checkpoints, cli, evaluate_runs, evaluation, rng, runs, streams, trees
from mmssl import config as config_lib
from mmssl.data import build, demo, device, tokenizer
from mmssl.data.pipeline import FaultsMet
from mmssl.data.sources import ReadError, RecordSource, open_dataset
from mmssl.errors import AgainError, UserError
from mmssl.evals import compare, retrieval
from mmssl.experiment import Experiment
from mmssl.gradients import cotangents as ct
from mmssl.parallel import mesh as mesh_lib
from mmssl.train import heartbeat, integrity, metrics
from mmssl.train.checkpoint import Checkpointer
from mmssl.train.hooks import StoppedError
from mmssl.train.state import TrainState
from tests.conftest import ROOT
from tests.train import toy_run

pytestmark = pytest.mark.usefixtures("compile_quickly")

TINY = [
    "--config.steps=6",
    "--config.batch=8",
    "--config.model.size={'layers': 1, 'width': 32, 'mlp': 64, 'heads': 2}",
    "--config.model.dropout=0.1",
    "--config.checkpoint.every=3",
    "--config.log.every=1",
    "--config.optim.warmup=2",
    "--config.evals.batch=8",
    "--config.data.workers=2",
]
OFFICIAL = "--config.objectives.contrast.heads={'kind': 'official', 'va': 32, 'vt': 16}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    demo.write_demo(root / "media", clips=40)
    build.build(manifest=root / "media" / "manifest.jsonl", out=root / "data")
    tokenizer.train_tokenizer(dataset=root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def load(dataset):
    def load(*overrides):
        path = str(ROOT / "configs" / "demo.py")
        data = f"--config.data.path={dataset}"
        return config_lib.load(path, [*TINY, data, *overrides])

    return load


@pytest.fixture(scope="module")
def trained(load, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    summary = runs.train(load(), str(workdir))
    assert summary.complete
    return workdir


def leaves(workdir, step):
    experiment = runs.open_run(str(workdir))
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        restored = checkpointer.restore(experiment.abstract_state(), step=step)
    return trees.named_leaves(restored.state), restored.data_state


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timed = ("time", "data_wait", "step_seconds", "goodput/")
    return [
        {
            k: v
            for k, v in json.loads(line).items()
            if not k.startswith(timed) and not k.endswith("per_second")
        }
        for line in lines
    ]


def killed(workdir) -> float:
    """Undoes what the end of the run has written; seconds up to step 3."""
    events = workdir / "events.jsonl"
    kept = [x for x in events.read_text().splitlines() if '"end"' not in x]
    events.write_text("\n".join(kept) + "\n")
    data = json.loads((workdir / "data.json").read_text())
    assert data.pop("train_seconds") > 0
    (workdir / "data.json").write_text(json.dumps(data))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[2])["time"] - json.loads(kept[0])["time"]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(trained, load, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(trained, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    before = killed(resumed)
    summary = runs.train(load(), str(resumed))
    assert (summary.start, summary.step) == (3, 6)
    (want, data), (got, again) = leaves(trained, 6), leaves(resumed, 6)
    assert data == again
    for name, leaf in want.items():
        np.testing.assert_array_equal(leaf, got[name], err_msg=name)
    assert rows(trained) == rows(resumed)
    assert {r["step"] for r in rows(trained)} == set(range(1, 7))
    took = json.loads((resumed / "data.json").read_text())["train_seconds"]
    assert took == pytest.approx(before + summary.seconds, abs=0.1)


def test_a_run_starts_from_the_parameters_of_another(trained, load, tmp_path, capsys):
    start = f"--config.init_from.path={trained}"
    fresh = ("--config.seed=5", "--config.optim.peak_lr=1e-9", "--config.steps=3")
    with pytest.raises(UserError, match=r"init_from.excluded: plan takes no"):
        runs.train(load(start, "--config.init_from.excluded=[]"), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
    runs.train(load(start, *fresh), str(tmp_path / "w"))
    assert f"init_from {trained} (step 6): " in capsys.readouterr().out
    (want, _), (got, _) = leaves(trained, 6), leaves(tmp_path / "w", 3)
    moments = 0
    for name, leaf in want.items():
        if name.startswith("params/"):
            np.testing.assert_allclose(leaf, got[name], atol=1e-6, err_msg=name)
        if name.startswith("opt_state/") and leaf.ndim:
            moments += not np.allclose(leaf, got[name])
    assert moments
    last = json.loads((tmp_path / "w/metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens_per_second"] > 0
    assert last["flops_per_second"] > 0
    assert "mfu" not in last  # a CPU has no figure of its peak


def test_the_same_command_after_the_end_does_nothing(trained, load, capsys):
    before = rows(trained)
    assert runs.train(load(), str(trained)).samples == 0
    assert rows(trained) == before
    assert "nothing to do" in capsys.readouterr().out


def test_another_config_or_dataset_is_refused(trained, load, tmp_path):
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        runs.train(load("--config.seed=1"), str(trained))
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    data = json.loads((other / "data.json").read_text())
    fingerprint, data["datasets"][0]["fingerprint"] = (
        data["datasets"][0]["fingerprint"],
        "0" * 64,
    )
    (other / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"is not what .* was trained on"):
        runs.train(load(), str(other))
    data["datasets"][0]["fingerprint"] = fingerprint
    data["tokenizer"] = "0" * 64
    (other / "data.json").write_text(json.dumps(data))
    for again in (
        lambda: runs.train(load(), str(other)),
        lambda: runs.restore(runs.open_run(str(other)), str(other)),
    ):
        with pytest.raises(UserError, match="tokenizer is not the one"):
            again()


def test_a_wrong_config_leaves_no_workdir(load, tmp_path):
    for override, message in (
        ("--config.model.size=tinny", "did you mean 'tiny'"),
        ("--config.optim.name=adamm", "did you mean 'adam"),
        ("--config.optim.peek_lr=1e-3", "optim.peek_lr: .*did you mean 'peak_lr'"),
        ("--config.batch=9", "not divisible"),
        ("--config.data.path=/nowhere", "not a dataset"),
        ("--config.data.video={'frames': 16, 'sise': (48, 48)}", "did you mean 'size'"),
    ):
        with pytest.raises(UserError, match=message):
            runs.train(load(override), str(tmp_path / "w"))
        assert not (tmp_path / "w").exists(), override


def test_a_mistyped_tracker_is_told_in_every_process(load, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.distributed, "first", lambda: False)
    with pytest.raises(UserError, match="did you mean 'project'"):
        runs.train(load("--config.log.wandb={'projekt': 'p'}"), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_evaluate_export_load_and_report(trained, tmp_path):
    result = evaluate_runs.evaluate_run(str(trained))
    assert result["step"] == 6
    assert set(result["retrieval"]) >= {"video->audio", "text->video", "audio->text"}
    assert json.loads((trained / "eval.json").read_text()) == result
    assert result["checkpoint_sha256"] == checkpoints.open_one(trained).content_hash()
    for name in ("retrieval", "zero_shot", "probe", "knn"):
        assert result["protocols"][name]["version"] >= 1
    assert {"top1", "top5"} == set(result["zero_shot"]["video"]["color"]["trained"])
    outcomes, ids = compare.load((trained / "eval.npz").read_bytes())
    for pair, cell in result["retrieval"].items():
        ranks = outcomes[f"retrieval/{pair}"].values
        assert retrieval.summarise(ranks) == cell["trained"]
    assert {e["query"] for e in result["examples"]} <= set(ids)
    page = runs.report_run(str(trained)).read_text()
    assert "<html" in page
    assert result["examples"][0]["query"] in page

    out = tmp_path / "export"
    runs.export_run(str(trained), str(out))
    with mmssl.load(out) as encoder:
        text = encoder.encode_text(["a red circle moves left", "blue"])
        clip = next((trained.parent.parent).glob("demo*/media/**/*.mp4"), None)
        assert text.shape == (2, 128)
        if clip is not None:
            assert encoder.encode_video([str(clip)]).shape == (1, 128)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)


def test_an_average_is_exported_before_any_evaluation(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "w")
    (tmp_path / "w" / "eval.json").unlink(missing_ok=True)
    # The run keeps no average: its parameters stand for one.
    monkeypatch.setattr(TrainState, "averaged", lambda state: state)
    out = tmp_path / "export"
    runs.export_run(str(tmp_path / "w"), str(out), ema=True)
    assert "not evaluated before this export" in (out / "README.md").read_text()


def test_the_card_has_the_results_of_its_own_weights(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "w")
    workdir, out = str(tmp_path / "w"), tmp_path / "export"
    digest = checkpoints.open_one(trained).content_hash()
    own = {"step": 6, "ema": False, "checkpoint_sha256": digest}
    own |= {"data": "/home/me/demo", "split": "test"}
    own["retrieval"] = {"video->audio": {"trained": {"R1": 0.123}}}
    for changed, said in (
        ({"step": 3}, "step 3, here 6"),
        ({"checkpoint_sha256": "0"}, "checkpoint_sha256 0, here"),
        ({}, ""),
    ):
        (tmp_path / "w" / "eval.json").write_text(json.dumps(own | changed))
        runs.export_run(workdir, str(out), overwrite=True, modalities=["audio"])
        card, told = (out / "README.md").read_text(), capsys.readouterr().err
        assert ("0.123" in card) != bool(said)
        assert said in told
        assert (f"mmssl eval --workdir {workdir}`" in told) == bool(said)
    assert "Judged: step 6, data demo, split test." in card
    assert "whole model; here is audio only" in card


def test_evaluations_inside_training_change_nothing(trained, load, tmp_path):
    judged = tmp_path / "judged"
    shutil.copytree(trained, judged)
    shutil.rmtree(judged / "checkpoints" / "6")
    on = (
        "--config.evals.every=2",
        "--config.evals.protocols=['retrieval','knn']",
        "--config.evals.clips=5",
        "--config.checkpoint.best={'metric': 'eval/retrieval/video-audio/R1'}",
    )
    runs.train(load(*on), str(judged))
    (want, data), (got, again) = leaves(trained, 6), leaves(judged, 6)
    assert data == again
    for name, leaf in want.items():
        np.testing.assert_array_equal(leaf, got[name], err_msg=name)
    found = [r for r in rows(judged) if "eval/retrieval/video-audio/R1" in r]
    assert [r["step"] for r in found] == [4, 6]
    with Checkpointer(judged / "checkpoints") as checkpointer:
        ranked = checkpointer.manifest(6)["metrics"]
    assert ranked["eval/retrieval/video-audio/R1"] == pytest.approx(
        found[-1]["eval/retrieval/video-audio/R1"]
    )
    assert "eval/knn/video/color/accuracy" in found[0]
    lines = (judged / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if '"event": "eval"' in line]
    assert [e["step"] for e in events] == [4, 6]
    last = json.loads((judged / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["goodput/eval"] > 0


def test_an_evaluation_that_lost_clips_to_an_outage_is_none(
    load, tmp_path, monkeypatch
):
    plain = RecordSource.__getitem__

    def fails(self, index):
        if index < lost:
            raise ReadError("storage is away")
        return plain(self, index)

    monkeypatch.setattr(RecordSource, "__getitem__", fails)
    on = ("--config.evals.every=6", "--config.data.max_fault_fraction=0.5")
    experiment, quiet = Experiment(load(*on)), toy_run.Quiet()
    state, log = experiment.init_state(), metrics.EventLog(tmp_path / "events.jsonl")
    clips = len(open_dataset(experiment.datasets[0][0], "test"))
    with streams.open_pool(experiment) as pool:
        judging = evaluation.hook(experiment, pool, log, quiet)
        lost = clips - 1
        with pytest.raises(UserError, match=f"{lost} were lost .*'read': {lost}"):
            judging.run(6, state, lambda: None)
        assert not (tmp_path / "events.jsonl").exists()
        lost = 1
        row = judging.run(6, state, lambda: None)
        with pytest.raises(StoppedError):
            judging.run(6, state, lambda: "SIGTERM")
    log.close()
    assert row["eval/faults/test/read"] == 1
    assert 0 < row["eval/retrieval/video-audio/n"] < clips
    (told,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert told["faults"] == {"test": {"read": 1}}
    assert told["n"]["retrieval video->audio"] == row["eval/retrieval/video-audio/n"]


def test_what_evaluations_inside_training_lack_is_told(load):
    best = "--config.checkpoint.best={'metric': 'eval/retrieval/video-audio/R1'}"
    on = "--config.evals.every=2"
    for overrides, message in (
        ([best], "evals.every is 0"),
        ([on, "--config.evals.protocols=['knnn']"], "did you mean 'knn'"),
        ([on, "--config.evals.split=tset"], "did you mean 'test'"),
        (["--config.evals.every=-1"], "evals.every: must be at least 0"),
        (["--config.evals.prompts=['a video']"], "evals.prompts: expected templates"),
        (["--config.evals.windows=0"], "evals.windows: must be at least 1"),
    ):
        nobody: Any = None
        with pytest.raises(UserError, match=message):
            evaluation.hook(Experiment(load(*overrides)), nobody, nobody, nobody)


def test_a_watch_goes_from_checkpoint_to_checkpoint(trained, tmp_path, monkeypatch):
    workdir = tmp_path / "watched"
    shutil.copytree(trained, workdir)
    late = (workdir / "checkpoints" / "6").rename(tmp_path / "6")
    found = evaluate_runs.watch(str(workdir), poll=0.01, protocols=("retrieval",))
    assert next(found)["step"] == 3
    late.rename(workdir / "checkpoints" / "6")
    assert next(found)["step"] == 6
    assert list(found) == []
    lines = (workdir / "eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    assert "eval/retrieval/audio-text/R1" in json.loads(lines[0])
    assert json.loads((workdir / "eval.json").read_text())["step"] == 6
    assert list(evaluate_runs.watch(str(workdir), protocols=("retrieval",))) == []

    (workdir / "eval.jsonl").unlink()
    called = []

    def judge(self, step):
        called.append(step)
        if step == 3:  # retention takes it while it is read
            shutil.rmtree(workdir / "checkpoints" / "3")
            raise OSError("gone")
        return json.loads((workdir / "eval.json").read_text())

    monkeypatch.setattr(evaluate_runs.Judge, "__call__", judge)
    assert [r["step"] for r in evaluate_runs.watch(str(workdir))] == [6]
    assert called == [3, 6]
    assert list(evaluate_runs.watch(str(workdir))) == []
    # Another evaluation, or another checkpoint of the same step, is not done.
    knn = {"protocols": ("knn",)}
    assert [r["step"] for r in evaluate_runs.watch(str(workdir), **knn)] == [6]
    assert [r["step"] for r in evaluate_runs.watch(str(workdir), split="train")] == [6]
    shutil.copytree(trained / "checkpoints" / "3", workdir / "checkpoints" / "3")
    manifest = workdir / "checkpoints" / "3" / "manifest.json"
    meta = json.loads(manifest.read_text())
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.copytree(workdir / "checkpoints" / "3", workdir / "checkpoints" / "6")
    meta = {k: v for k, v in meta.items() if k not in ("sha256", "files")}
    manifest6 = workdir / "checkpoints" / "6"
    (manifest6 / "manifest.json").unlink()
    integrity.seal(epath.Path(manifest6), meta | {"step": 6})
    shutil.rmtree(workdir / "checkpoints" / "3")
    assert [r["step"] for r in evaluate_runs.watch(str(workdir), **knn)] == [6]
    (workdir / "eval.jsonl").unlink()
    monkeypatch.setattr(evaluate_runs.Judge, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(evaluate_runs.watch(str(workdir)))


def test_a_watch_of_a_dead_run_ends_and_passes_over_damage(
    trained, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "watched"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    array = max((workdir / "checkpoints" / "3").rglob("*"), key=lambda p: p.is_file())
    array.write_bytes(b"other")
    quick = {"poll": 0.01, "patience": 0.05}
    with pytest.raises(AgainError, match="no sign of life for"):
        list(evaluate_runs.watch(str(workdir), **quick))
    assert "checkpoint 3 is damaged and passed over" in capsys.readouterr().err
    now = {"process": 0, "host": "h", "pid": 1, "step": 4, "stage": "step"}
    beat = heartbeat.Beat(**now, seconds=1.0, time=time.time(), every=9.0)
    heartbeat.write(workdir, beat)
    assert evaluate_runs._alive(workdir)
    for other in ({"stage": heartbeat.ENDED}, {"time": beat.time - 99}):
        heartbeat.write(workdir, dataclasses.replace(beat, **other))
        assert not evaluate_runs._alive(workdir)


def test_a_slice_has_the_coverage_of_its_split(monkeypatch):
    told = {"dataset": {"coverage": {"test": {"found": 8, "listed": 10}}}}
    monkeypatch.setattr(evaluate_runs.records, "read_metadata", lambda _: told)
    whole = {"found": 8, "listed": 10}
    assert evaluate_runs._coverage("d", "test") == whole
    assert evaluate_runs._coverage("d", "test[:10%]") == whole | {"slice": "test[:10%]"}
    assert evaluate_runs._coverage("d", "other[:5]") is None


def test_runs_are_compared_by_config_and_seed(trained, tmp_path, capsys):
    if not (trained / "eval.npz").is_file():
        evaluate_runs.evaluate_run(str(trained), protocols=("retrieval",))

    def like(name, **changes):
        shutil.copytree(trained, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | changes
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    base = [str(trained), like("one", seed=1)]
    other = like("other", batch=16)
    found = evaluate_runs.compare_runs([*base, other])
    assert {row.group for row in found} == {" ".join(base), other}
    assert all(row.difference in (None, 0) for row in found)
    assert cli.main(["eval", "--compare", *base, other]) == 0
    assert "95% interval" in capsys.readouterr().out
    assert cli.main(["eval", "--compare", *base, "--ema"]) == 2
    with pytest.raises(UserError, match="are the same run"):
        evaluate_runs.compare_runs([base[0], like("two")])
    for key, value, message in (
        ("fingerprint", "0" * 64, "was evaluated with fingerprint"),
        ("protocols", {"retrieval": {"version": 0}}, "retrieval was"),
        ("outcomes_sha256", "0" * 64, "does not belong to eval.json"),
    ):
        result = json.loads((trained / "eval.json").read_text()) | {key: value}
        (tmp_path / "two" / "eval.json").write_text(json.dumps(result))
        with pytest.raises(UserError, match=message):
            evaluate_runs.compare_runs([base[0], str(tmp_path / "two")])


def test_the_average_is_what_eval_ema_judges(trained, load, tmp_path, capsys):
    experiment = Experiment(load("--config.ema.decay=0.5"))
    state, other = experiment.init_state(), experiment.init_state()
    average = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype),
        {"params": other.params, "heads": other.heads},
    )
    averaged = dataclasses.replace(state, **average)
    found = []
    for name, saved, option in (
        ("average", dataclasses.replace(state, ema=average), ["--ema"]),
        ("parameters", averaged, []),
    ):
        folder = tmp_path / name
        with Checkpointer(folder / "checkpoints") as checkpointer:
            checkpointer.save(saved, {}, step=6)
        shutil.copyfile(trained / "data.json", folder / "data.json")
        (folder / "config.json").write_text(json.dumps(experiment.config))
        only = ["--workdir", str(folder), "--protocols", "retrieval", *option]
        assert cli.main(["eval", *only]) == 0
        found.append(json.loads((folder / "eval.json").read_text()))
    assert found[0]["ema"]
    assert found[0]["retrieval"] == found[1]["retrieval"]
    assert found[0]["examples"] == found[1]["examples"]
    # The parameters beside the average are those of the random initialisation.
    cells = found[0]["retrieval"].values()
    assert any(cell["trained"] != cell["random"] for cell in cells)
    assert "retrieval" in capsys.readouterr().out


def test_evaluating_on_eight_devices_with_padding_equals_one(load):
    arms = []
    for devices, batch in ((jax.devices(), 16), (jax.devices()[:1], 3)):
        experiment = Experiment(load(OFFICIAL, f"--config.evals.batch={batch}"))
        experiment.mesh = mesh_lib.make_mesh({"data": -1}, devices=devices)
        with streams.open_pool(experiment) as pool:
            evaluator = evaluation.Evaluator(
                experiment,
                pool,
                path=experiment.datasets[0][0],
                protocols=("retrieval", "zero_shot"),
            )
            arms.append(evaluator.arms({"": experiment.init_state()})[""])
    eight, one = arms
    assert eight.test.ids == one.test.ids
    assert len(one.test.ids) % 3  # so that the last batch has padding
    for space, members in one.test.spaces.items():
        for m, x in members.items():
            np.testing.assert_allclose(
                eight.test.spaces[space][m], x, rtol=1e-4, atol=1e-5, err_msg=m
            )
    for column, prompts in one.prompts.items():
        for space, x in prompts.vectors.items():
            np.testing.assert_allclose(
                eight.prompts[column].vectors[space], x, rtol=1e-4, atol=1e-5
            )
    results = [evaluator.judge(arm).sections for arm in arms]
    assert results[0] == results[1]


def batch_of(experiment):
    with streams.open_pool(experiment) as pool:
        stream = streams.train_pipeline(experiment, pool)
        found = next(stream)
        stream.close()
    return found.raw


def test_eight_devices_equal_one(load):
    """Sync BatchNorm, negatives and DropToken over the global batch, not per device."""
    raw, states = None, []
    for devices in (jax.devices(), jax.devices()[:1]):
        # SGD: Adam would turn gradients that are zero but for rounding (a softmax does
        # not see key biases) into steps of full size.
        experiment = Experiment(load(OFFICIAL, "--config.optim.name=sgd"))
        experiment.mesh = mesh_lib.make_mesh({"data": -1}, devices=devices)
        raw = raw or batch_of(experiment)
        state = experiment.init_state()
        there = device.put(raw, mesh_lib.batch_sharding(experiment.mesh))
        for _ in range(3):
            state, output = experiment.step(state, there)
        states.append((trees.named_leaves(state), float(output.metrics["loss"])))
    (eight, loss8), (one, loss1) = states
    assert loss8 == pytest.approx(loss1, rel=1e-5)
    for name, leaf in one.items():
        # Sums in another order, over 3 steps.
        np.testing.assert_allclose(
            eight[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_shares_per_sample_add_up_for_the_real_model(load):
    """Batch-coupled losses and heads, dropout and DropToken on: float32, 1e-5."""
    experiment = Experiment(load(OFFICIAL))
    model, state = experiment.model, experiment.init_state()
    key = jax.random.key(3)
    batch = model.prepare(jax.device_put(batch_of(experiment)), key=key)
    keys = rng.per_row(key, 8)
    (objective,) = experiment.objectives.values()

    def losses(heads, encoded):
        out = objective(
            heads, state.extras["contrast"], encoded, batch, key=key, step=state.step
        )
        return out.losses, None

    def encode(params, batch, keys):
        return model.encode(params, batch, keys=keys).pooled

    def whole(params, heads):
        encoded = model.encode(params, batch, keys=keys)
        return sum(losses(heads, encoded)[0].values())

    def shares(params, heads):
        encoded = model.encode(params, batch, keys=keys)
        c = ct.per_loss(losses, heads, encoded)
        cotangent = jax.tree.map(lambda x: x.sum(0), c.encoded.pooled)

        def one(row, key, cotangent):
            row, key, cotangent = jax.tree.map(lambda x: x[None], (row, key, cotangent))
            _, pullback = jax.vjp(lambda p: encode(p, row, key), params)
            return pullback(cotangent)[0]

        return jax.vmap(one)(batch, keys, cotangent)

    heads = state.heads["contrast"]
    want = trees.named_leaves(jax.jit(jax.grad(whole))(state.params, heads))
    got = trees.named_leaves(jax.jit(shares)(state.params, heads))
    largest = max(float(abs(leaf).max()) for leaf in want.values())
    assert largest > 1e-3
    for name, leaf in want.items():
        np.testing.assert_allclose(
            got[name].sum(0), leaf, rtol=1e-5, atol=1e-5 * largest, err_msg=name
        )


def test_chance_level_loss_at_initialisation(load):
    """Textbook NCE of unrelated embeddings: log of the batch."""
    experiment = Experiment(load("--config.objectives.contrast.temperature=1.0"))
    raw = device.put(batch_of(experiment), mesh_lib.batch_sharding(experiment.mesh))
    _, output = experiment.step(experiment.init_state(), raw)
    for name, value in output.metrics.items():
        if name.startswith("loss/"):
            assert float(value) == pytest.approx(np.log(8), abs=0.15), name


def test_faults_met_add_up_over_sessions():
    before = {"corrupt": {"samples": 2, "files": ["a", "b"]}}
    now = FaultsMet()
    for file in ("b", "c"):
        now.add("corrupt", file)
    now.add("timeout", "d")
    assert runs._met(before, now) == {
        "corrupt": {"samples": 4, "files": ["a", "b", "c"]},
        "timeout": {"samples": 1, "files": ["d"]},
    }
    assert runs._met(before, FaultsMet()) == before
