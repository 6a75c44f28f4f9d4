"""The loader's samples/s beside the decode limit: PyAV alone on the same windows.

python benchmarks/loader.py --out benchmarks/results/loader.json
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import grid
import harness
import numpy as np

from mmssl import bench, commands, streams
from mmssl import config as config_lib
from mmssl.data import audio, bare, build, media, text, tokenizer
from mmssl.data.encode import encode_mp4
from mmssl.data.pool import DecodePool
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.models import colour, logmel

WORKERS = 2
BATCH = 32
ARMS = {"loader": "the pipeline", "decoder": "our decoder, bare", "pyav": "PyAV alone"}
WORDS = [
    "now",
    "pour",
    "the",
    "water",
    "cut",
    "an",
    "onion",
    "slowly",
    "stir",
    "it",
    "add",
    "salt",
    "to",
    "a",
    "pan",
]


def options() -> Any:
    """The command line."""
    made = harness.parser(
        "loader",
        about="Samples/s of the training pipeline alone (no model), with tokens and "
        "augmentation,\nbeside PyAV alone in as many processes on the same windows.",
        example="python benchmarks/loader.py --part grid --rounds 20 --out loader.json",
    )
    harness.add_parts(made, PARTS, default="all", rounds="12 (quick: 2)")
    return made


def clip_224(path: pathlib.Path, rng: np.random.Generator, *, seconds: float) -> None:
    """A moving texture with grain, 224 x 224 at 25 fps, and a tone at 48 kHz."""
    coarse = rng.integers(0, 256, (20, 20, 3))
    y, x = np.mgrid[0:304, 0:304] / 16
    row, column = y.astype(int), x.astype(int)
    v, u = (y - row)[..., None], (x - column)[..., None]
    top = coarse[row, column] * (1 - u) + coarse[row, column + 1] * u
    low = coarse[row + 1, column] * (1 - u) + coarse[row + 1, column + 1] * u
    scene = top * (1 - v) + low * v
    turn = rng.uniform(0.3, 1.5) * np.arange(round(25 * seconds)) / 25
    down, right = (40 + 39 * f(turn) for f in (np.sin, np.cos))
    grain = rng.normal(0, 4, (8, 224, 224, 1))
    frames = [
        scene[a : a + 224, b : b + 224] + grain[i % 8]
        for i, (a, b) in enumerate(
            zip(down.astype(int), right.astype(int), strict=True)
        )
    ]
    at = np.arange(round(48000 * seconds)) / 48000
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 900) * at)
    wave += rng.normal(0, 0.02, len(at))
    video = np.clip(frames, 0, 255).astype(np.uint8)
    sound = wave.astype(np.float32)
    encode_mp4(path, video=video, fps=25, audio=sound, rate=48000)


def clips_224(folder: pathlib.Path, *, clips: int) -> str:
    """A dataset of generated clips of 6 s with three texts each, and its tokenizer."""
    (folder / "media").mkdir()
    rows, progress = [], commands.counter("clips")
    for i in range(clips):
        rng = np.random.default_rng(i)
        clip_224(folder / f"media/{i}.mp4", rng, seconds=6.0)
        segments = [
            {"start": k, "end": k + 1.5, "text": " ".join(rng.choice(WORDS, 12))}
            for k in range(0, 6, 2)
        ]
        rows.append({"id": f"{i}", "media": f"media/{i}.mp4", "segments": segments})
        progress(i + 1, clips, "encoded")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build.build(
        manifest=manifest, out=folder / "data", splits={"train": 1.0}, workers=WORKERS
    )
    tokenizer.train_tokenizer(dataset=folder / "data", vocab_size=64)
    return str(folder / "data")


def grid_clips(folder: pathlib.Path, *, clips: int) -> str:
    """GRID, or some of it."""
    source = grid.source_folder(None)  # pyright: ignore[reportAttributeAccessIssue]
    grid.dataset(source, folder / "data", clips=clips)  # pyright: ignore[reportAttributeAccessIssue]
    return str(folder / "data")


def loaded(config: str, path: str) -> dict[str, Any]:
    """The config on this dataset, its loader alone, with `WORKERS` processes."""
    overrides = [f"--config.data.path={path}", f"--config.data.workers={WORKERS}"]
    found = config_lib.load(str(harness.ROOT / "configs" / config), overrides)
    return bench.loader_only(found)


def recorded(config: dict[str, Any], pool: DecodePool, count: int) -> list[bare.Job]:
    """What the decoder is asked for by `count` samples after the first batch.

    Raises:
      UserError: some samples have no media that decodes.
    """
    # One thread: calls come in the order of the stream.
    single = {**config, "data": {**config["data"], "threads": 1}}
    recorder = bench.Recorder(pool)
    stream = streams.train_pipeline(Experiment(single), pool)
    stream.view.pool = recorder  # pyright: ignore[reportAttributeAccessIssue]
    with contextlib.closing(stream):
        while stream.seen < stream.local + count:
            next(stream)
    jobs = recorder.jobs[stream.local :][:count]
    if stream.faults or len(jobs) < count:
        raise UserError(f"every sample needs media that decodes: {stream.faults}")
    return jobs


def decode_clip(job: bare.Job) -> None:
    """Our decoder where it stands: no other process, nothing sent."""
    media.decode_clip(*job)


def _cpu(pool: DecodePool) -> float:
    """CPU seconds of this process and of the pool's."""
    total = time.process_time()
    for pid in pool.pids():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rates(
    config: dict[str, Any], *, rounds: int, batches: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds per sample of each arm, round by round: `wall`, `cpu`."""
    samples = batches * config["batch"]
    wall: dict[str, list[float]] = {name: [] for name in ARMS}
    cpu: dict[str, list[float]] = {name: [] for name in ARMS}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(DecodePool(WORKERS))
        jobs = recorded(config, pool, samples)
        arms = {
            name: stack.enter_context(bare.decoders(jobs, WORKERS, work=work))
            for name, work in (("decoder", decode_clip), ("pyav", bare.decode))
        }
        stream = streams.train_pipeline(Experiment(config), pool)
        stack.callback(stream.close)
        start = stream.get_state()

        def load() -> tuple[float, float]:
            stream.set_state(start)
            next(stream)  # fills what is read ahead
            begin, before = time.perf_counter(), _cpu(pool)
            for _ in range(batches):
                next(stream)
            found = time.perf_counter() - begin, _cpu(pool) - before
            stream.close()
            time.sleep(0.5)  # the clips that were under way
            return found

        load()
        for _ in range(rounds):
            for name in ARMS:
                found = load() if name == "loader" else arms[name].seconds(timeout=300)
                wall[name].append(found[0] / samples)
                cpu[name].append(found[1] / samples)
    return {"wall": wall, "cpu": cpu}


def compared(
    name: str, config: str, make: Callable[..., str], *, clips: tuple[int, int]
) -> harness.Part:
    """A part: the arms on one dataset.

    Args:
      name: of its figures.
      config: the recipe.
      make: writes the dataset.
      clips: in it; and where it is quick.
    """

    def part(quick: bool, rounds: int) -> harness.Measured:
        with tempfile.TemporaryDirectory(prefix="mmssl-") as folder:
            path = make(pathlib.Path(folder), clips=clips[quick])
            resolved = loaded(config, path)
            found = rates(resolved, rounds=rounds, batches=1 if quick else 4)
        wall, cpu = found["wall"], found["cpu"]
        summary = {
            f"{name}_{arm}_samples_per_second": harness.spread(
                [1 / s for s in wall[arm]], unit="1/s"
            )
            for arm in ARMS
        }
        for arm in ARMS:
            summary[f"{name}_{arm}_cpu_ms"] = harness.spread(
                [1e3 * s for s in cpu[arm]], unit="ms"
            )
        for other in ("pyav", "decoder"):
            for kind, times in (("", wall), ("_cpu", cpu)):
                summary[f"{name}_loader_over_{other}{kind}"] = harness.spread(
                    harness.ratios(times[other], times["loader"])
                )
        data = {k: resolved["data"][k] for k in ("seconds", "video", "audio", "text")}
        settings = {name: {"config": config, "clips": clips[quick], "data": data}}
        shared = {"batch": resolved["batch"], "workers": WORKERS}
        return harness.Measured(summary, {**settings, **shared}, {name: found})

    return part


def _resident(pids: Sequence[int]) -> float:
    """MiB that these processes have in memory."""
    pages = 0
    for pid in pids:
        pages += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(quick: bool, rounds: int) -> harness.Measured:
    """A part: memory of the loader over 10,000 samples of GRID."""
    samples = 640 if quick else 10_000
    rows: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="mmssl-") as folder:
        config = loaded("grid.py", grid_clips(pathlib.Path(folder), clips=100))
        with DecodePool(WORKERS) as pool:
            stream = streams.train_pipeline(Experiment(config), pool)
            with contextlib.closing(stream):
                while stream.seen < samples:
                    next(stream)
                    if stream.seen % (5 * BATCH) == 0:
                        here = _resident([os.getpid()])
                        rows.append((stream.seen, here, _resident(pool.pids())))
    # The first tenth loads code and fills buffers.
    later = rows[len(rows) // 10 :]
    first, last = later[: len(later) // 4], later[-(len(later) // 4) :]
    summary: dict[str, harness.Figure] = {}
    for column, who in ((1, "process"), (2, "workers")):
        before, after = (np.median([r[column] for r in part]) for part in (first, last))
        summary[f"memory_{who}_mib"] = {"median": float(after), "unit": "MiB"}
        summary[f"memory_{who}_growth_mib"] = {
            "median": float(after - before),
            "unit": "MiB",
        }
    details = {"memory": {"seen_process_workers": rows}}
    return harness.Measured(summary, {"memory_samples": samples}, details)


def _host_colour(frames: np.ndarray, draws: Sequence[float]) -> np.ndarray:
    """`models.colour.jitter` of one clip in NumPy, frame by frame in the cache."""
    brightness, contrast, saturation, hue = draws
    angle = 2 * np.pi * hue
    turn = np.eye(3)
    turn[1:, 1:] = saturation * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix = colour.RGB @ turn @ colour.YIQ
    mean = matrix @ frames.mean((0, 1, 2), dtype=np.float32)
    offset = ((1 - contrast) * mean + 255 * brightness + 0.5).astype(np.float32)
    matrix = (contrast * matrix).T.astype(np.float32)
    out = np.empty_like(frames)
    for frame, made in zip(frames, out, strict=True):
        x = frame.reshape(-1, 3).astype(np.float32) @ matrix + offset
        made[:] = np.clip(x, 0, 255, out=x).reshape(frame.shape)
    return out


def _host_mel(wave: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Windows of 25 ms every 10 ms at 48 kHz, 80 bands, in NumPy."""
    cut = np.lib.stride_tricks.sliding_window_view(wave, 1200)[::480]
    hann = np.hanning(1201)[:-1].astype(np.float32)
    return np.log(np.abs(np.fft.rfft(cut * hann, n=2048)) @ bank + 1e-5)


def places(quick: bool, rounds: int) -> harness.Measured:
    """A part: CPU time per sample of VATT's size, on the host and on this device."""
    import jax
    import jax.numpy as jnp

    rng, rows = np.random.default_rng(0), 2 if quick else 8
    clip = rng.integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
    wave = rng.standard_normal(153_600, dtype=np.float32)
    draws = (0.1, 1.2, 0.8, 0.1)
    bank = logmel.mel_matrix(bins=1025, rate=48000, mels=80, fmin=60.0, fmax=7600.0)
    texts = [" ".join(rng.choice(WORDS, 16)) for _ in range(5)]
    with tempfile.TemporaryDirectory(prefix="mmssl-") as folder:
        file = pathlib.Path(folder) / "text.txt"
        file.write_text("\n".join(texts * 20))
        model = file.with_name("text.model")
        tokenizer.train_tokenizer(files=[file], out=model, vocab_size=64)
        words = text.load_tokenizer(model)
    clips = jnp.asarray(np.stack([clip] * rows))
    waves, changes = jnp.asarray(np.stack([wave] * rows)), jnp.array([draws] * rows)
    noise = jax.jit(lambda x, key: x + 0.01 * jax.random.normal(key, x.shape))
    mel = jax.jit(lambda x: logmel.log_mel(x, rate=48000, window=1200, hop=480))
    jitter, key = jax.jit(colour.jitter), jax.random.key(0)

    def encode() -> None:
        text.encode_candidates(words, texts, count=5, length=16)

    arms: dict[str, tuple[int, Callable[[], Any]]] = {
        "text_host": (1, encode),
        "noise_host": (1, lambda: audio.add_noise(wave, rng, strength=0.01)),
        "noise_device": (rows, lambda: noise(waves, key)),
        "mel_host": (1, lambda: _host_mel(wave, bank.astype(np.float32))),
        "mel_device": (rows, lambda: mel(waves)),
        "colour_host": (1, lambda: _host_colour(clip, draws)),
        "colour_device": (rows, lambda: jitter(clips, changes)),
    }
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, (samples, work) in arms.items():
            begin = time.process_time()
            jax.block_until_ready(work())
            if turn:  # the first one compiles
                spent[name].append(1e3 * (time.process_time() - begin) / samples)
    summary = {
        f"place_{name}_cpu_ms": harness.spread(values, unit="ms")
        for name, values in spent.items()
    }
    return harness.Measured(summary, {"place_rows": rows})


PARTS: dict[str, harness.Part] = {
    "places": places,
    "grid": compared("grid", "grid.py", grid_clips, clips=(200, 40)),
    "vatt": compared("vatt", "vatt_ma_medium.py", clips_224, clips=(12, 4)),
    "memory": memory,
}


def measure(arguments: Any) -> harness.Measured:
    """The parts that were asked for."""
    rounds = 2 if arguments.quick else 12
    return harness.measure_parts(PARTS, arguments, names=list(PARTS), rounds=rounds)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
