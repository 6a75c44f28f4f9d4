"""Hundreds of decodes leave memory where it was. Thousands: benchmarks/soak.py."""

import pathlib

from mmssl.data.media import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.pool import DecodePool, MediaFault
from mmssl.data.storage import Storage
from tests.data import media_files

TIMES = [i / 10 for i in range(10)]
WAVE = media_files.tone(1.0)
GOOD = [
    media_files.encode(times=TIMES, wave=WAVE),
    media_files.encode(times=TIMES, wave=WAVE, format="matroska", audio_codec="flac"),
    media_files.encode(times=TIMES, rotation=90),
    media_files.encode(wave=WAVE),
]
FILES = [*GOOD, GOOD[0][: len(GOOD[0]) // 2], b"no media", b""]
REQUEST = ClipRequest(
    VideoRequest((0.1, 0.4, 0.7), size=(96, 96)), AudioRequest(0.1, 12000, 16000)
)
WARM, DECODES = 100, 500


def resident(pid: int | str) -> int:
    """KiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_memory_is_flat_over_many_decodes() -> None:
    with DecodePool(1, recycle=10**9) as pool:

        def decode(count: int) -> tuple[int, int]:
            for i in range(count):
                data = FILES[i % len(FILES)]
                try:
                    if i % 20 == 7:
                        pool.transcode(data, Storage("jpeg", fps=5))
                    elif i % 5 == 3:
                        pool.probe(data)
                    else:
                        pool.clip(data, REQUEST)
                except MediaFault:
                    assert data not in GOOD
            return resident(pool.pids()[0]), resident("self")

        before = decode(WARM)
        [pid] = pool.pids()
        after = decode(DECODES)
        assert pool.pids() == [pid]  # one process served all, faults and all
    # A frame that stayed behind would be 27 KiB a decode, a file 5 KiB.
    for old, new in zip(before, after, strict=True):
        assert (new - old) / DECODES < 4, (before, after)
