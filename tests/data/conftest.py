"""A small built dataset, made once."""

import json

import pytest

from mmssl.data import build, demo


@pytest.fixture(scope="session")
def demo_manifest(tmp_path_factory):
    """Twelve clips of the demo world: 1 without sound, 1 without text."""
    out = tmp_path_factory.mktemp("demo") / "world"
    return demo.write_demo(out, clips=12, seed=1).manifest


@pytest.fixture(scope="session")
def mixed_manifest(demo_manifest):
    """The demo world, a text-only row, and one row of each fault a user may cause."""
    root = demo_manifest.parent
    (root / "media/garbage.mp4").write_bytes(bytes(range(256)) * 40)
    (root / "media/empty.mp4").touch()
    cut = (root / "media/demo-00000.mp4").read_bytes()
    (root / "media/cut.mp4").write_bytes(cut[: len(cut) // 2])
    rows = [
        {"id": "gone", "media": "media/gone.mp4", "text": "gone"},
        {"id": "garbage", "media": "media/garbage.mp4"},
        {"id": "empty", "media": "media/empty.mp4"},
        {"id": "cut", "media": "media/cut.mp4"},
        {"id": "folder", "media": "media"},
        {"id": "said", "text": "only words", "words": [[0, 1, "only"]]},
    ]
    path = root / "mixed.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(demo_manifest.read_text() + lines)
    return path


@pytest.fixture(scope="session")
def mixed_dataset(mixed_manifest, tmp_path_factory):
    """(folder, BuildReport) of `mixed_manifest`."""
    out = tmp_path_factory.mktemp("built") / "ds"
    fractions = {"train": 0.7, "test": 0.3}
    return out, build.build(manifest=mixed_manifest, out=out, splits=fractions)
