"""Writes the demo world: real H.264 + AAC mp4 files and their manifest."""

import dataclasses
import json
import os
import pathlib
from concurrent import futures
from typing import Any

import numpy as np

from mmssl import files
from mmssl.data import demo_world
from mmssl.data.encode import encode_mp4
from mmssl.data.intake import Progress
from mmssl.errors import UserError

SETTINGS_FILE = "demo.json"


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """What was written.

    Attributes:
      manifest: its path, for `build`.
      clips: number of media files.
      swapped: "text", "audio" -> clips whose text or sound is another clip's.
      silent: clips without an audio stream.
      wordless: clips without text.
    """

    manifest: pathlib.Path
    clips: int
    swapped: dict[str, int]
    silent: int
    wordless: int


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One clip: what is seen, heard and said; None = left out."""

    index: int
    seen: demo_world.Content
    heard: demo_world.Content | None
    said: demo_world.Content | None
    swapped: str

    @property
    def id(self) -> str:
        return f"demo-{self.index:05d}"


def _other(
    plans: list[demo_world.Content], index: int, rng: np.random.Generator
) -> demo_world.Content:
    """The content of another clip that differs in all labels where there is one."""
    own = plans[index].labels.items()
    order = [int(i) for i in rng.permutation(len(plans))]
    return plans[min(order, key=lambda i: len(own & plans[i].labels.items()))]


def _plan(clips: int, seed: int, misaligned: float) -> list[_Plan]:
    rng = np.random.default_rng([seed, 0])
    contents = [demo_world.draw(rng) for _ in range(clips)]
    swaps = round(misaligned * clips) if clips > 1 else 0
    missing = -(-clips // 40) if clips >= 8 else 0
    kinds = ["text"] * ((swaps + 1) // 2) + ["audio"] * (swaps // 2)
    kinds += (["no audio"] * missing + ["no text"] * missing)[: clips - swaps]
    kinds += [""] * (clips - len(kinds))
    kinds = [kinds[i] for i in rng.permutation(clips)]
    plans = []
    for index, (kind, seen) in enumerate(zip(kinds, contents, strict=True)):
        heard: demo_world.Content | None = seen
        said: demo_world.Content | None = seen
        if kind == "audio":
            heard = _other(contents, index, rng)
        elif kind == "text":
            said = _other(contents, index, rng)
        elif kind == "no audio":
            heard = None
        elif kind == "no text":
            said = None
        swapped = kind if kind in ("audio", "text") else ""
        plans.append(_Plan(index, seen, heard, said, swapped))
    return plans


def _write_clip(plan: _Plan, root: pathlib.Path, seed: int) -> dict[str, Any]:
    """One media file; returns its manifest row."""
    media = f"media/{plan.id}.mp4"
    pixels, waves, words = (
        np.random.default_rng([seed, 1, plan.index, part]) for part in range(3)
    )
    heard = plan.heard and demo_world.render_audio(plan.heard, waves)
    encode_mp4(
        root / media,
        video=demo_world.render_video(plan.seen, pixels),
        fps=demo_world.FPS,
        audio=heard,
        rate=demo_world.RATE,
    )
    row: dict[str, Any] = {"id": plan.id, "media": media}
    if plan.said:
        if words.random() < 0.2:  # some captions have no times
            row["text"] = demo_world.sentence(plan.said, words)
        else:
            row["segments"] = demo_world.describe(plan.said, words)
    return row | {"labels": plan.seen.labels, "meta": {"swapped": plan.swapped}}


def write_demo(
    out: str | os.PathLike[str],
    *,
    clips: int = 400,
    seed: int = 0,
    misaligned: float = 0.25,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoReport:
    """Writes `out/media/*.mp4` and `out/manifest.jsonl`.

    Clips are 2.4 s of 80x64 at 12.5 frames/s with 16 kHz sound. Labels (shape, color,
    motion) say what is seen. In a share of the clips the text or the sound is another
    clip's, which the row's `meta.swapped` says ("", "text" or "audio") and nothing
    else; a few clips (1 in 40 each, from 8 clips on) have no sound or no text.

    Args:
      out: a new folder.
      clips: number of clips.
      seed: same seed, same bytes on the same machine and library versions.
      misaligned: share of clips whose text or sound belongs to another clip, half each.
      workers: threads; default one per core.
      overwrite: replace a demo world that is already there.
      progress: called with (done, total, message).

    Raises:
      UserError: bad numbers, `out` exists, or the disk is full.
    """
    if clips < 1:
        raise UserError(f"clips: expected at least 1, found {clips}")
    if not 0 <= misaligned <= 1:
        raise UserError(f"misaligned: expected a share from 0 to 1, found {misaligned}")
    out = pathlib.Path(out)
    plans = _plan(clips, seed, misaligned)
    rows = []
    with files.whole_folder(out, marker=SETTINGS_FILE, overwrite=overwrite) as root:
        (root / "media").mkdir()
        threads = futures.ThreadPoolExecutor(workers or os.cpu_count() or 1)
        try:
            for row in threads.map(lambda plan: _write_clip(plan, root, seed), plans):
                rows.append(row)
                if progress:
                    progress(len(rows), clips, row["id"])
        finally:
            threads.shutdown(cancel_futures=True)
        settings = {"clips": clips, "seed": seed, "misaligned": misaligned}
        (root / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")
        lines = (json.dumps(row) + "\n" for row in rows)
        (root / "manifest.jsonl").write_text("".join(lines))
    swapped = [plan.swapped for plan in plans]
    return DemoReport(
        manifest=out / "manifest.jsonl",
        clips=clips,
        swapped={kind: swapped.count(kind) for kind in ("text", "audio")},
        silent=sum(plan.heard is None for plan in plans),
        wordless=sum(plan.said is None for plan in plans),
    )
