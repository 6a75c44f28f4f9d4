"""Configs: every mistake is one message that names the key and the nearest one."""

import textwrap

import pytest

from mmssl import check, gradients
from mmssl import config as config_lib
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from tests.conftest import ROOT

SOURCE = """
import ml_collections


def get_config(arg="small"):
    if arg not in ("small", "large"):
        raise ValueError(f"unknown variant {arg!r}")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 10
    config.batch = 8
    config.mesh = {"data": -1}
    config.data = {"path": "", "video": {"size": (4, 6)}, "workers": 2}
    config.model = {"size": arg, "dropout": 0.1}
    config.objectives = {}
    config.harmonizer = {"weighting": "sum"}
    config.optim = {"peak_lr": 1e-3, "grad_clip": None, "no_decay": ("bias",)}
    config.checkpoint = {"every": 5}
    config.evals = {}
    config.log = {"every": 1}
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(SOURCE))
    return str(file)


def test_loads_plain_values_and_the_argument(path):
    assert config_lib.load(path)["data"]["video"]["size"] == [4, 6]
    assert config_lib.load(f"{path}:large")["model"]["size"] == "large"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.steps=20", ("steps",), 20),
        ("--config.optim.peak_lr=1", ("optim", "peak_lr"), 1.0),
        ("--config.optim.grad_clip=0.5", ("optim", "grad_clip"), 0.5),
        ("config.data.video.size=(8,8)", ("data", "video", "size"), [8, 8]),
        ("--config.data.path=123", ("data", "path"), "123"),
        ("--config.data.path=['a','b']", ("data", "path"), ["a", "b"]),
        ("--config.data.video=none", ("data", "video"), None),
        ("--config.optim.momentum=0.5", ("optim", "momentum"), 0.5),
        ("--config.harmonizer.engine.chunk=4", ("harmonizer", "engine", "chunk"), 4),
        (
            "--config.harmonizer.curriculum.rate=.1",
            ("harmonizer", "curriculum", "rate"),
            0.1,
        ),
    ],
)
def test_overrides_keep_the_type(path, override, key, value):
    node = config_lib.load(path, [override])
    for part in key:
        node = node[part]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.pth=x", r"'pth' under data; did you mean 'path'"),
        ("--config.opti.peak_lr=1", r"'opti' under the top level; did you mean 'opt"),
        ("--config.stepz=1", r"'stepz' under the top level; did you mean 'steps'"),
        ("--config.steps=many", r"--config.steps: expected int like 10, found str"),
        ("--config.steps=1.5", r"expected int like 10, found float '1.5'"),
        ("--config.steps.more=1", r"none \(it is a value\)"),
        ("--konfig.steps=1", r"unexpected argument"),
        ("--config.steps", r"unexpected argument"),
    ],
)
def test_a_wrong_override_is_one_message(path, override, message):
    with pytest.raises(UserError, match=message):
        config_lib.load(path, [override])


def test_wrong_files_are_named(path, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        config_lib.load(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="unknown variant 'huge'"):
        config_lib.load(f"{path}:huge")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match="no get_config"):
        config_lib.load(str(empty))
    closed = tmp_path / "closed.py"
    closed.write_text(SOURCE.replace('"workers"', '"workerz"'))
    with pytest.raises(UserError, match=r"data.workerz; did you mean 'workers'"):
        config_lib.load(str(closed))
    extra = tmp_path / "extra.py"
    extra.write_text(SOURCE.replace("config.steps", "config.stepps"))
    with pytest.raises(UserError, match=r"'stepps'; did you mean 'steps'"):
        config_lib.load(str(extra))


def make(*, width: int, depth: int = 2) -> tuple[int, int]:
    if depth < 1:
        raise ValueError("depth must be at least 1")
    return width, depth


def test_constructors_are_the_schema():
    assert config_lib.build(make, "model", width=3) == (3, 2)
    with pytest.raises(UserError, match=r"config model.widht: .*did you mean 'width'"):
        config_lib.build(make, "model", widht=3)
    with pytest.raises(UserError, match="config model: make needs width"):
        config_lib.build(make, "model")
    with pytest.raises(UserError, match="config model: depth must be"):
        config_lib.build(make, "model", width=3, depth=0)
    with pytest.raises(UserError, match=r"unknown 'smm'; did you mean 'sum'"):
        config_lib.choose({"sum": 1}, "smm", "harmonizer.weighting")


@pytest.mark.parametrize(
    ("value", "fits"),
    [(3, True), (True, False), (3.5, False), ("3", False), (None, False)],
)
def test_simple_types_are_those_of_the_signature(value, fits):
    if fits:
        assert config_lib.build(make, "model", width=value) == (value, 2)
        return
    with pytest.raises(UserError, match=r"config model\.width: expected int, found "):
        config_lib.build(make, "model", width=value)


def harmonizer(*overrides: str, recipe: str = "demo.py") -> gradients.Harmonizer:
    items = [f"--config.harmonizer.{item}" for item in overrides]
    return Experiment(config_lib.load(str(ROOT / "configs" / recipe), items)).harmonizer


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weighting=pcgradd", r"harmonizer.weighting: .*did you mean 'pcgrad'"),
        ("engine=exactt", r"harmonizer.engine: .*did you mean 'exact'"),
        ("engine.chunk=2", r"harmonizer.engine needs a kind: one of vmap, exact"),
        ("weighting={'kind': 'cagrad', 'r': 1}", r"weighting.r: CAGrad takes no 'r'"),
        ("weighting={'kind': 'cagrad', 'c': 2}", r"weighting.c must be .*found 2"),
        ("engine={'kind': 'exact', 'chunck': 2}", r"engine.chunck: .*mean 'chunk'"),
        ("engine={'kind': 'exact', 'chunk': 'x'}", r"engine.chunk: expected int"),
        ("curriculum.start=2.5", r"config harmonizer.curriculum.start: .*\[-1, 1\)"),
        ("curriculum.rule=hard", r"config harmonizer.curriculum.rule: .*'threshold'"),
        ("curriculum.strt=0.1", r"curriculum.strt: Curriculum .*mean 'start'"),
        ("curriculum=threshold", r"harmonizer.curriculum: expected its options"),
        ("trim=0.4", r"harmonizer.trim: expected its options"),
        ("trim.begin=10", r"config harmonizer.trim.*share"),
        ("trim.share.vt=1.5", r"harmonizer.trim.share: expected in \(0, 1\)"),
        ("curiculum.start=0.1", r"Harmonizer takes no 'curiculum'; did you mean"),
        (
            "grup=8",
            r"'grup'; did you mean 'group'.*weighting, curriculum, trim, engine",
        ),
        ("group=x", r"harmonizer.group: expected int"),
        ("group=-1", r"harmonizer.group: expected 0 or more"),
    ],
)
def test_a_wrong_harmonizer_is_one_message(override, message):
    with pytest.raises(UserError, match=message) as caught:
        harmonizer(override)
    assert "\n" not in str(caught.value)


def test_a_proxys_norms_are_refused():
    with pytest.raises(UserError, match="'embedding' is a proxy"):
        harmonizer("engine=embedding", "weighting=pcgrad")


def test_harmonizers_are_built_from_names_and_options():
    plain = harmonizer()
    assert isinstance(plain.engine, gradients.Subset)
    assert not plain.reads_gramian
    built = harmonizer(
        "weighting={'kind': 'cagrad', 'c': 0.25}",
        "engine={'kind': 'exact', 'chunk': 4}",
        "curriculum.pair=('va', 'vt')",
        "group=2",
    )
    assert built.weighting == gradients.WEIGHTINGS["cagrad"](c=0.25)
    assert built.engine == gradients.Exact(chunk=4)
    assert built.group == 2
    # The ramp is as long as the run unless it is said.
    assert built.curriculum == gradients.Curriculum(steps=160, pair=("va", "vt"))


def test_the_recipe_is_vatt_with_another_harmonizer():
    plain, recipe = (
        config_lib.load(str(ROOT / "configs" / f"{name}.py"))
        for name in ("vatt_ma_medium", "cmgh_ma_medium")
    )
    assert plain.pop("harmonizer") == {"weighting": "sum"}
    built = harmonizer(recipe="cmgh_ma_medium.py")
    recipe.pop("harmonizer")
    assert recipe == plain
    assert built.curriculum is not None
    assert (built.curriculum.rule, built.curriculum.steps) == ("threshold", 500_000)
    assert harmonizer(recipe="demo.py:harmonized").weighting == built.weighting
    with pytest.raises(UserError, match="expected one of plain, harmonized"):
        harmonizer(recipe="demo.py:cmgh")


def test_a_relative_path_from_another_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = str(ROOT / "configs" / "demo.py")

    def told(key, value):
        config = config_lib.load(demo, ["--config.data.path=d", f"--config.{key}"])
        with pytest.raises(UserError, match=value) as caught:
            assert Experiment(config).tokenizer_path
        return str(caught.value)

    for key, value in (("data.path=w/data", "w/data"), ("data.tokenizer=t.txt", "t")):
        message = told(key, f"{key.split('=')[0]} is '{value}.*relative")
        assert "folder where the run was trained" in message
        assert "mmssl data tokenizer" not in message
    (tmp_path / "w" / "data").mkdir(parents=True)
    assert "mmssl data tokenizer --data w/data" in told("data.path=w/data", "train one")


def test_compared_parameters_are_counted():
    def count(*overrides):
        items = [f"--config.harmonizer.{item}" for item in overrides]
        config = config_lib.load(str(ROOT / "configs" / "demo.py"), items)
        experiment = Experiment(config)
        check.without_data(experiment)
        return check.compared(experiment)

    assert count() is None
    some, whole = count("weighting=pcgrad")
    assert 0 < some < whole / 8
    assert count("weighting=pcgrad", "engine=exact") == (whole, whole)
    assert count("engine=embedding", "monitor=True") is None
    with pytest.raises(UserError, match="'nowhere' matches none"):
        count("weighting=pcgrad", "engine={'kind': 'vmap', 'scope': 'nowhere'}")


def test_options_of_entries_that_are_empty_by_default():
    found = config_lib.load(
        str(ROOT / "configs" / "demo.py"),
        [
            "--config.log.wandb.project=mine",
            "--config.log.profile=[20,25]",
            "--config.checkpoint.best.metric=loss",
            "--config.init_from.path=runs/a",
        ],
    )
    assert found["log"]["wandb"] == {"project": "mine"}
    assert found["log"]["profile"] == [20, 25]
    assert found["checkpoint"]["best"] == {"metric": "loss"}
    assert found["init_from"] == {"path": "runs/a"}


def test_a_workdir_of_another_config_is_refused(path):
    old = config_lib.load(path)
    free = ["--config.log.every=7", "--config.data.workers=1"]
    config_lib.check_same_run(old, config_lib.load(path, free), "W")
    new = config_lib.load(path, ["--config.optim.peak_lr=1e-4", "--config.seed=3"])
    with pytest.raises(UserError) as caught:
        config_lib.check_same_run(old, new, "W")
    assert "optim.peak_lr: 0.001 there, 0.0001 now" in str(caught.value)
    assert "seed: 0 there, 3 now" in str(caught.value)
