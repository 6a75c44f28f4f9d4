"""What each way to store media costs: bytes, time to write, rate of reading clips.

python benchmarks/storage.py --media my_videos --out storage.json
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import harness
import numpy as np

from mmssl import commands
from mmssl.data import media, transcode
from mmssl.data.media import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.storage import Storage
from mmssl.errors import UserError

WAYS = {
    "original": Storage(),
    "h264": Storage("h264", short_side=256),
    "h264_10fps": Storage("h264", short_side=256, fps=10),
    "jpeg_10fps": Storage("jpeg", short_side=256, fps=10),
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "storage",
        about="Bytes, seconds to write, and clips that a second of one core decodes, "
        "for each way\nto store the same files. A clip is 32 frames of 224 x 224, 10 a "
        "second from a random\ncrop, and 3.2 s of sound at 48 kHz; the same clips from "
        "each. All times are CPU times.",
        example="python benchmarks/storage.py --media my_videos",
    )
    made.add_argument(
        "--media", metavar="DIR", required=True, help="media files, searched deep"
    )
    made.add_argument("--rounds", metavar="N", type=int, help="default: 7 (quick: 1)")
    made.add_argument(
        "--clips", metavar="N", type=int, help="a round; default: 64 (quick: 4)"
    )
    return made


def _requests(durations: list[float], count: int) -> list[tuple[int, ClipRequest]]:
    """(file, clip) of random places."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        file = i % len(durations)
        start = float(rng.uniform(0, max(0.0, durations[file] - 3.2)))
        times = tuple(start + n / 10 for n in range(32))
        crop = tuple(map(float, rng.uniform((0.5, 0.8, 0, 0), (1, 1.25, 1, 1))))
        video = VideoRequest(times, size=(224, 224), attempts=(crop,))  # type: ignore
        sound = AudioRequest(start, round(3.2 * 48000), 48000)
        found.append((file, ClipRequest(video, sound)))
    return found


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Stores all files in every way, then decodes the same clips from each in turns."""
    rounds = arguments.rounds or (1 if arguments.quick else 7)
    clips = arguments.clips or (4 if arguments.quick else 64)
    paths = sorted(p for p in pathlib.Path(arguments.media).rglob("*") if p.is_file())
    originals = [path.read_bytes() for path in paths]
    if not originals:
        raise UserError(f"{arguments.media}: no files in it")
    durations = [media.probe(data).duration for data in originals]
    requests = _requests(durations, clips)
    stored: dict[str, list[bytes]] = {}
    writing: dict[str, float] = {}
    for name, way in WAYS.items():
        begin = time.process_time()
        stored[name] = [
            data
            if way.kind == "original"
            else transcode.transcode(data, way)[1][0].media
            for data in originals
        ]
        writing[name] = (time.process_time() - begin) / sum(durations)

    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name, files in stored.items():
            begin = time.process_time()
            for file, request in requests:
                media.decode_clip(files[file], request)
            if turn:  # the first is not counted
                times[name].append(time.process_time() - begin)
    seconds = sum(durations)
    summary: dict[str, Any] = {}
    rows = []
    for name in WAYS:
        size = sum(map(len, stored[name])) / seconds * 3.2 / 1024
        rate = harness.spread([clips / t for t in times[name]], unit="1/s")
        times_faster = harness.spread(harness.ratios(times["original"], times[name]))
        summary[f"{name}_kib_per_clip"] = {"median": size, "unit": "KiB"}
        summary[f"{name}_clips_per_second"] = rate
        summary[f"{name}_over_original"] = times_faster
        summary[f"{name}_cpu_per_second_of_media"] = {"median": writing[name]}
        faster = f"{times_faster['median']:.2f}"
        rows.append((name, size, faster, f"{rate['median']:.1f}", writing[name]))
    head = ("stored as", "KiB per clip", "rate", "clips/s a core", "CPU s to write 1 s")
    text = commands.table(rows, header=head)
    settings = {
        "files": len(paths),
        "seconds": seconds,
        "clips": clips,
        "rounds": rounds,
        "ways": {name: vars(way) for name, way in WAYS.items()},
    }
    return harness.Measured(summary, settings, {"seconds": times}, text)


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
