"""Real files that break naive decoders: each is used, or a fault with a class."""

import json
import time

import pytest

from mmssl.data import build, sources
from mmssl.data.faults import FAULTS

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


@pytest.fixture(scope="module")
def built(shared_data, tmp_path_factory):
    """(facts per file, outcome per file, report, seconds, probe per used file)."""
    folder = shared_data / "robust"
    with (folder / "manifest.jsonl").open() as f:
        facts = {row["path"]: row for row in map(json.loads, f)}
    out = tmp_path_factory.mktemp("robust") / "ds"
    started = time.monotonic()
    report = build.build(folder=folder, out=out, splits={"train": 1.0})
    seconds = time.monotonic() - started
    source = sources.open_dataset(out, "train")
    rows = [source[i] for i in range(len(source))]
    probes = {row.id: row.meta["probe"] for row in rows}
    outcome = dict.fromkeys(probes, "used")
    for kind in (report.partial_files, report.files):
        for name, files in kind.items():
            for file in files:
                outcome[file] = name if kind is report.files else f"used, {name}"
    return facts, outcome, report, seconds, probes


def table(outcome):
    return "\n".join(f"{file:55} {outcome[file]}" for file in sorted(outcome))


def test_every_file_ends_somewhere(built):
    facts, outcome, report, seconds, _ = built
    assert len(facts) == 47
    assert set(outcome) == set(facts), table(outcome)
    assert report.used + sum(report.faults.values()) == 47, table(outcome)
    assert set(report.faults) <= set(FAULTS), table(outcome)
    for name in report.partial:
        modality, _, fault = name.partition("_")
        assert modality in ("audio", "video"), table(outcome)
        assert fault in FAULTS, table(outcome)
    assert seconds < 120, table(outcome)


def test_outcomes_agree_with_a_full_decode(built):
    facts, outcome, report, _, probes = built
    left_out = {file for files in report.files.values() for file in files}
    for file, fact in facts.items():
        seen = f"{file}: {fact}\n{table(outcome)}"
        nothing = not fact.get("n_video") and not fact.get("n_audio")
        if nothing and not any("error" in key for key in fact):
            assert file in left_out, seen
        elif fact.get("n_video") or fact.get("n_audio"):
            assert file in probes, seen


def test_frame_counts_and_upright_sizes(built):
    facts, outcome, _, _, probes = built
    checked = 0
    for file, probe in probes.items():
        fact, video = facts[file], probe["video"]
        if video is None or not fact.get("n_video") or len(fact["sizes"]) != 1:
            continue
        checked += 1
        assert video["frames"] == fact["n_video"], f"{file}: {fact}\n{table(outcome)}"
        stored = fact["sizes"][0]
        turned = (fact["rotation"] or 0) % 180 != 0
        upright = stored[::-1] if turned else stored
        assert [video["width"], video["height"]] == upright, file
    assert checked >= 30
