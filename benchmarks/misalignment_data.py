"""Worlds in memory for the misalignment benchmark: decoded once, swapped at will."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grid
import harness
import numpy as np

from mmssl import config as config_lib
from mmssl import streams
from mmssl.data import build, demo, pipeline, tokenizer
from mmssl.experiment import Experiment
from mmssl.types import RawBatch

CONFIGS = harness.ROOT / "configs"
SPLITS = {"train": 0.75, "test": 0.25}
MODALITIES = ("video", "audio", "text")


@dataclasses.dataclass(frozen=True)
class World:
    """What differs between the worlds.

    Attributes:
      config: recipe of model, losses and optimizer.
      fps: frames per second that the recipe's view has.
      margin: frames, rows and columns decoded beyond the view: room for random crops.
    """

    config: str
    fps: float
    margin: tuple[int, int, int]


WORLDS = {
    "demo": World("demo.py", 8.0, (2, 6, 6)),
    "grid": World("grid.py", 25.0, (4, 4, 6)),
}


@dataclasses.dataclass(frozen=True)
class Clips:
    """Decoded clips of one split.

    Attributes:
      video: [n, f', h', w', 3] uint8, larger than the view by the margin.
      audio: [n, s'] float32, as long as f' frames.
      text: [n, c, t] int32.
      ids: of the clips.
      labels: one dict per clip.
      size: (f, h, w) of the view.
      hop: audio samples per frame.
    """

    video: np.ndarray
    audio: np.ndarray
    text: np.ndarray
    ids: Sequence[str]
    labels: Sequence[Mapping[str, str]]
    size: tuple[int, int, int]
    hop: int

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self,
        rows: np.ndarray,
        rng: np.random.Generator | None = None,
        source: Mapping[str, np.ndarray] | None = None,
    ) -> RawBatch:
        """A batch; `example_id` is the row's number.

        Args:
          rows: [b] numbers of clips.
          rng: draws each clip's crop in time and space; None = the centre.
          source: modality -> [n] whose media each clip gets; see `swapped`.
        """
        source = source or {}
        own = {m: source[m][rows] if m in source else rows for m in MODALITIES}
        frames, height, width = self.size
        margin = np.subtract(self.video.shape[1:4], self.size).astype(np.int64)
        if rng is None:
            at = np.tile(margin // 2, (len(rows), 1))
        else:
            at = rng.integers(0, margin + 1, (len(rows), 3))
        video = [
            self.video[i, f : f + frames, y : y + height, x : x + width]
            for i, (f, y, x) in zip(own["video"], at, strict=True)
        ]
        audio = [
            self.audio[i, f * self.hop : (f + frames) * self.hop]
            for i, f in zip(own["audio"], at[:, 0], strict=True)
        ]
        media: Any = {
            "video": np.stack(video),
            "audio": np.stack(audio),
            "text": self.text[own["text"]],
        }
        present: Any = {m: np.ones(len(rows), bool) for m in media}
        numbers: Any = rows.astype(np.uint32)
        return RawBatch(media, present, numbers)

    def batches(self, size: int) -> Iterator[pipeline.HostBatch]:
        """One pass without augmentation, in batches of one shape, for evaluation."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            padded = np.resize(np.array(rows), size)
            info = [{"id": self.ids[i], "labels": dict(self.labels[i])} for i in rows]
            yield pipeline.HostBatch(self.batch(padded), info)


def swapped(
    fraction: float, labels: Sequence[Mapping[str, str]], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Whose media each of n clips gets, where a share gets another clip's.

    The chosen clips pass theirs on in a ring, so that none keeps its own and each is
    used once; of several rings the one where fewest neighbours have equal labels.

    Returns:
      [n] numbers of clips, and [n] bool: which are swapped.
    """
    n = len(labels)
    count = round(fraction * n)
    source = np.arange(n)
    if count < 2:
        return source, np.zeros(n, bool)
    names = [json.dumps(own, sort_keys=True) for own in labels]
    kinds = np.unique(names, return_inverse=True)[1]
    chosen = rng.permutation(n)[:count]
    rings = [rng.permutation(chosen) for _ in range(20)]
    ring = min(rings, key=lambda r: int((kinds[r] == kinds[np.roll(r, 1)]).sum()))
    source[ring] = np.roll(ring, 1)
    return source, source != np.arange(n)


def order(clips: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches, each clip once per pass."""
    rest = np.empty(0, np.int64)
    while True:
        while len(rest) < batch:
            rest = np.concatenate([rest, rng.permutation(clips)])
        yield rest[:batch]
        rest = rest[batch:]
        # A pass that ends inside a batch must not put one clip into it twice.
        if 0 < len(rest) < batch:
            more = rng.permutation(clips)
            seen = np.isin(more, rest)
            rest = np.concatenate([rest, more[~seen], more[seen]])


def load(
    name: str, work: pathlib.Path, *, clips: int, data: str | None
) -> tuple[dict[str, Clips], pathlib.Path]:
    """Builds, decodes and keeps a world, unless `work` has it.

    Args:
      name: one of `WORLDS`.
      work: folder of the benchmark.
      clips: how many, of both splits together.
      data: GRID's folder; None = where `grid.source_folder` looks.

    Returns:
      split -> clips, and the folder of the dataset, with its tokenizer.
    """
    folder = work / f"{name}-{clips}"
    dataset = folder / "data"
    arrays = folder / "arrays"
    if not (arrays / "done").is_file():
        arrays.mkdir(parents=True, exist_ok=True)
        if not (dataset / "tokenizer.txt").is_file():
            _build(name, folder, dataset, clips=clips, data=data)
        for split in SPLITS:
            _decode(name, dataset, split, arrays)
        (arrays / "done").touch()
    size, hop = _geometry(name, dataset)[1:]
    return {split: _read(arrays, split, size, hop) for split in SPLITS}, dataset


def _build(
    name: str, folder: pathlib.Path, dataset: pathlib.Path, *, clips: int, data: Any
) -> None:
    if name == "grid":
        # Type checkers find the recipe of this name first.
        source = grid.source_folder(data)  # pyright: ignore[reportAttributeAccessIssue]
        rows = [json.loads(r) for r in (source / "manifest.jsonl").open()]
        keep = np.linspace(0, len(rows) - 1, min(clips, len(rows))).round().astype(int)
        rows = [rows[i] | {"media": str(source / rows[i]["media"])} for i in keep]
        manifest = folder / "manifest.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        manifest = folder / "media" / "manifest.jsonl"
        if not manifest.is_file():
            demo.write_demo(manifest.parent, clips=clips, misaligned=0.0)
    build.build(manifest=manifest, out=dataset, splits=SPLITS, overwrite=True)
    tokenizer.train_tokenizer(dataset=dataset, kind="word")


def _geometry(
    name: str, dataset: pathlib.Path
) -> tuple[Experiment, tuple[int, int, int], int]:
    """An experiment whose view has the margin; the view's size; samples a frame."""
    world = WORLDS[name]
    config = config_lib.load(str(CONFIGS / world.config))
    view = config["data"]
    frames, (height, width) = view["video"]["frames"], view["video"]["size"]
    more, rows, columns = world.margin
    view["video"] |= {"frames": frames + more, "size": (height + rows, width + columns)}
    view |= {
        "path": str(dataset),
        "tokenizer": str(dataset / "tokenizer.txt"),
        "seconds": (frames + more) / world.fps,
    }
    hop = round(view["audio"]["rate"] / world.fps)
    return Experiment(config), (frames, height, width), hop


def _decode(name: str, dataset: pathlib.Path, split: str, arrays: pathlib.Path) -> None:
    experiment = _geometry(name, dataset)[0]
    media: dict[str, list[np.ndarray]] = {m: [] for m in MODALITIES}
    info: list[dict[str, Any]] = []
    with streams.open_pool(experiment) as pool:
        found = streams.eval_pipeline(
            experiment, pool, path=str(dataset), split=split, batch=64, windows=1
        )
        for batch in found:
            # Clips without sound or text (a few of the demo world's) are left out.
            whole = [
                i
                for i in range(len(batch.info))
                if all(batch.raw.present[m][i] for m in MODALITIES)
            ]
            for m in MODALITIES:
                media[m].append(np.asarray(batch.raw.media[m])[whole])
            info += [batch.info[i] for i in whole]
    for m, parts in media.items():
        np.save(arrays / f"{split}-{m}.npy", np.concatenate(parts))
    kept = [{"id": entry["id"], "labels": entry["labels"]} for entry in info]
    (arrays / f"{split}.json").write_text(json.dumps(kept))


def _read(
    arrays: pathlib.Path, split: str, size: tuple[int, int, int], hop: int
) -> Clips:
    media = {m: np.load(arrays / f"{split}-{m}.npy") for m in MODALITIES}
    info = json.loads((arrays / f"{split}.json").read_text())
    return Clips(
        **media,
        ids=[entry["id"] for entry in info],
        labels=[entry["labels"] for entry in info],
        size=size,
        hop=hop,
    )
