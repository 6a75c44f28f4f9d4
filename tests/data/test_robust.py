"""Real files that break naive decoders: each comes out as a full decode found it.

The facts are from another program's decode of every frame, written down beside the
files: frames, samples, stored size, rotation, and the errors it met.
"""

import json
from concurrent import futures

import pytest

from mmssl.data import build, sources
from mmssl.data.faults import FAULTS
from mmssl.data.media import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.pool import DecodePool, MediaFault

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

# Decoders differ in how they count priming and padding.
_PADDING = 1024


@pytest.fixture(scope="module")
def facts(shared_data):
    lines = (shared_data / "robust/manifest.jsonl").read_text().splitlines()
    rows = {row["path"]: row for row in map(json.loads, lines)}
    assert len(rows) == 47
    return rows


@pytest.fixture(scope="module")
def found(facts, shared_data):
    """File to the fields of its probe, or to its fault class."""

    def outcome(name):
        media = (shared_data / "robust" / name).read_bytes()
        try:
            probe = pool.probe(media)
            _check_clip(pool, media, probe)
        except MediaFault as fault:
            return fault.fault_class
        return probe

    with DecodePool(2) as pool, futures.ThreadPoolExecutor(2) as threads:
        return dict(zip(facts, threads.map(outcome, facts), strict=True))


def _check_clip(pool, media, probe):
    """A clip of what was counted is there, in the size that was asked for."""
    request = ClipRequest(
        VideoRequest((0.0, 0.05), size=(32, 48)), AudioRequest(0.0, 800, 16000)
    )
    clip = pool.clip(media, request)
    for kind, shape in (("video", (2, 32, 48, 3)), ("audio", (800,))):
        got = getattr(clip, kind)
        assert (got is not None) == (getattr(probe, kind) is not None), kind
        assert got is None or got.shape == shape


def _expected_faults(fact):
    """Modality to fault class, from the errors of the decode that made the facts."""
    faults = {}
    for kind in ("video", "audio"):
        error = fact.get(f"{kind}_error", "")
        if "DecoderNotFound" in error:
            faults[kind] = "no_decoder"
        elif error:
            faults[kind] = "corrupt"
        elif fact.get(f"n_{kind}") == 0:
            faults[kind] = "no_frames"
    return faults


def _nothing_decoded(fact):
    at_once = any(
        fact.get(f"{kind}_error", "").startswith("after 0")
        for kind in ("video", "audio")
    )
    return (
        not fact.get("n_video")
        and not fact.get("n_audio")
        and (at_once or not any(key.endswith("_error") for key in fact))
    )


def test_each_file_decodes_to_what_its_facts_say(facts, found):
    wrong = {}
    for name, fact in facts.items():
        faults = _expected_faults(fact)
        probe = found[name]
        if _nothing_decoded(fact):
            if probe != next(iter(faults.values())):
                wrong[name] = probe, faults
            continue
        if isinstance(probe, str) or probe.faults != faults:
            wrong[name] = probe, faults
            continue
        frames = probe.video["frames"] if probe.video else 0
        cover = "cover-art-video-stream" in fact["tags"]
        counted = fact.get("n_video", frames if "video_error" in fact else 0)
        if frames != (0 if cover else counted):
            wrong[name] = f"{frames} frames", counted
        samples = probe.audio["samples"] if probe.audio else 0
        counted = fact.get("samples", samples if "audio_error" in fact else 0)
        if abs(samples - counted) > _PADDING:
            wrong[name] = f"{samples} samples", counted
        if frames and fact.get("sizes"):
            [size] = fact["sizes"]
            upright = size[::-1] if fact["rotation"] % 180 else size
            if [probe.video["width"], probe.video["height"]] != upright:
                wrong[name] = probe.video, upright
    assert not wrong


def test_black_and_silent_files_are_known(facts, found):
    tags = {name: fact["tags"] for name, fact in facts.items()}
    silent = {
        n
        for n, p in found.items()
        if not isinstance(p, str) and p.audio and p.audio["silent"]
    }
    assert {name for name in tags if "digital-silence" in tags[name]} <= silent
    assert "flipping_a_pancake.mkv" not in silent
    assert found["silent-black-10s.mp4"].video["black"]
    assert not found["flipping_a_pancake.mkv"].video["black"]


def test_a_dataset_of_them_has_all_that_decode(facts, found, shared_data, tmp_path):
    small = {name: found[name] for name in facts if facts[name]["bytes"] < 105_000}
    assert len(small) > 20
    (tmp_path / "media").mkdir()
    for name in small:
        (tmp_path / "media" / name).symlink_to(shared_data / "robust" / name)
    report = build.build(
        folder=tmp_path / "media", out=tmp_path / "ds", splits={"train": 1.0}
    )
    left_out = {file: name for name, files in report.files.items() for file in files}
    assert left_out == {n: p for n, p in small.items() if isinstance(p, str)}
    assert set(report.faults) <= set(FAULTS)
    partly = {file for files in report.partial_files.values() for file in files}
    assert partly == {
        n for n, p in small.items() if not isinstance(p, str) and p.faults
    }
    source = sources.open_dataset(tmp_path / "ds", "train")
    assert {source[i].id for i in range(len(source))} == set(small) - set(left_out)
