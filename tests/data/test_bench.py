"""`mmssl bench data` and the bare decoders beside it."""

import json
import time

import pytest

from mmssl import bench, cli, costs
from mmssl import config as config_lib
from mmssl.data import bare, build, records, tokenizer
from mmssl.data.clips import AudioRequest, ClipRequest, VideoRequest
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from tests.data import media_files

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

CLIP = media_files.encode(
    times=[i / 10 for i in range(80)], wave=media_files.tone(8.0), gop=10
)


@pytest.mark.parametrize("start", [0.0, 5.0])  # from the beginning, and by a seek
def test_bare_decoding_makes_what_the_window_needs(start: float) -> None:
    times = tuple(start + i / 5 for i in range(6))
    video = VideoRequest(times, size=(16, 16), attempts=((0.5, 1.0, 0.0, 0.0),))
    assert bare.decode((CLIP, ClipRequest(video=video))) == 6
    # The window's 1.2 s of sound and, at most, the keyframe's second before it.
    audio = AudioRequest(start, 19200, 16000)
    frames = bare.decode((CLIP, ClipRequest(audio=audio)))
    assert 1.2 <= frames * 1024 / 16000 < 1.2 + start + 0.2
    both = bare.decode((CLIP, ClipRequest(video, audio)))
    assert both >= 6 + 1.2 * 16000 / 1024 - 1


def test_bare_decoders_say_what_does_not_decode() -> None:
    request = ClipRequest(audio=AudioRequest(0.0, 16000, 16000))
    with (
        pytest.raises(UserError, match="validate"),
        bare.decoders([(b"nothing", request)], 1),
    ):
        pass


@pytest.fixture(scope="module")
def dataset(demo_manifest, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("bench") / "data"
    build.build(manifest=demo_manifest, out=out, splits={"train": 1.0}, workers=1)
    tokenizer.train_tokenizer(dataset=out, kind="word")
    return str(out)


def test_the_command_measures_and_writes(dataset, tmp_path, capsys) -> None:
    out = tmp_path / "bench.json"
    config = ["--config", "configs/demo.py", f"--config.data.path={dataset}"]
    options = ["--seconds", "1", "--step-seconds", "2", "--out", str(out)]
    many = ["--config.data.workers=1", "--config.mesh={'data': 1000}"]
    assert cli.main(["bench", "data", *config, *options, *many]) == cli.OK
    shown = capsys.readouterr().out
    for word in (*bench.STAGES, "decode limit", "CPU cores per accelerator"):
        assert word in shown
    found = json.loads(out.read_text())
    assert set(found["stages"]) == set(bench.STAGES)
    assert min(found["stages"].values()) > 0
    for name in ("loader", "decode", "loader_over_decode"):
        values = found[name]
        assert 0 < values["min"] <= values["median"] <= values["max"]
    assert found["samples_per_core"] == found["loader"]["median"]  # one worker
    need = found["need"]
    assert need["samples_per_second"] == 32 / 2
    assert need["cores"] == pytest.approx(16 / found["samples_per_core"])


def test_time_is_put_down_to_its_stage(dataset, monkeypatch) -> None:
    real = records.from_example

    def slow(example):
        time.sleep(0.05)
        return real(example)

    monkeypatch.setattr(records, "from_example", slow)
    small = ["--config.data.workers=1", "--config.batch=8"]
    overrides = [f"--config.data.path={dataset}", *small]
    config = config_lib.load("configs/demo.py", overrides)
    stages = bench.measure(config, seconds=0.3)["stages"]
    assert 50 <= stages["read"] < 100
    assert stages["augment"] < 50


def test_what_a_chip_needs_follows_from_its_flops(dataset) -> None:
    overrides = [f"--config.data.path={dataset}"]
    experiment = Experiment(config_lib.load("configs/demo.py", overrides))
    need = bench.need(experiment, step_seconds=None, topology="v5e-4")
    assert need is not None
    flops = costs.step_flops(experiment)
    assert need["step_seconds"] == pytest.approx(flops / (4 * 197e12 * 0.4))
    per_chip = experiment.config["batch"] / need["step_seconds"] / 4
    assert need["samples_per_second"] == pytest.approx(per_chip)
    assert bench.need(experiment, step_seconds=None, topology=None) is None


@pytest.mark.parametrize("option", ["--seconds", "--step-seconds"])
def test_options_are_checked(option, dataset, capsys) -> None:
    config = ["--config", "configs/demo.py", f"--config.data.path={dataset}"]
    assert cli.main(["bench", "data", *config, option, "0"]) == cli.USAGE
    assert option in capsys.readouterr().err
