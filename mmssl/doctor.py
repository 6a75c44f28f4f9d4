"""What `mmssl doctor` looks at. Each look is one function; none stops the others."""

import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

GIB = 2**30

MODULES = {
    "orbax-checkpoint": "orbax.checkpoint",
    "array-record": "array_record.python.array_record_module",
    "tensorflow-datasets": "tensorflow_datasets",
    "ml-collections": "ml_collections",
    "scikit-learn": "sklearn.linear_model",
    "importlib-resources": "importlib_resources",
}
"""What to import of a package where its name does not say so."""

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
AUDIO_DECODERS = ("aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
      name: what was looked at.
      state: broken = mmssl cannot work; warning = worth a look.
      detail: what was found and, unless ok, what to do.
    """

    name: str
    state: Literal["ok", "warning", "broken"]
    detail: str

    def line(self) -> str:
        mark = {"ok": "ok     ", "warning": "look   ", "broken": "BROKEN "}[self.state]
        return f"{mark} {self.name:<19} {self.detail}"


def examine(paths: Sequence[str] = ()) -> Iterator[Finding]:
    """Looks at everything; a look that raises is a broken finding, never a crash.

    Args:
      paths: folders or buckets to read, write and delete a small file in.
    """
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", machine),
        ("packages", packages),
        ("devices", devices),
        ("codecs", codecs),
        ("disk", disk),
        *((path, lambda path=path: storage(path)) for path in paths),
        ("loader", loader),
    ]
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:
            yield Finding(name, "broken", f"{type(error).__name__}: {error}")


def machine() -> Iterator[Finding]:
    """Python, cores, memory."""
    good = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "ok" if good else "broken",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}"
        + ("" if good else "; mmssl needs 3.11 or newer"),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Finding(
        "machine",
        "ok" if memory >= 4 else "warning",
        f"{cores()} cores, {memory:.0f} GiB memory"
        + ("" if memory >= 4 else "; the demo wants about 4 GiB"),
    )


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def packages() -> Iterator[Finding]:
    """Every declared dependency: its version within the bounds, and it imports."""
    from packaging.requirements import Requirement

    declared = importlib.metadata.requires("mmssl") or []
    for text in declared:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        yield package(wanted.name, str(wanted.specifier))


def package(name: str, bounds: str) -> Finding:
    """One dependency.

    Args:
      name: as in pyproject.toml.
      bounds: version specifiers, e.g. ">=1,<2".
    """
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", f"missing; pip install '{name}{bounds}'")
    if version not in SpecifierSet(bounds, prereleases=True):
        remedy = f"pip install '{name}{bounds}'"
        return Finding(name, "broken", f"{version} is outside {bounds}; {remedy}")
    module = MODULES.get(name.lower(), name.replace("-", "_"))
    try:
        importlib.import_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return Finding(name, "broken", f"{version} does not import: {why}")
    return Finding(name, "ok", f"{version} ({bounds})")


def devices() -> Iterator[Finding]:
    """What jax computes on."""
    import jax

    found = jax.devices()
    kinds = ", ".join(
        f"{sum(d.device_kind == kind for d in found)} x {kind}"
        for kind in sorted({d.device_kind for d in found})
    )
    unused = found[0].platform == "cpu" and (
        shutil.which("nvidia-smi") or pathlib.Path("/dev/accel0").exists()
    )
    yield Finding(
        "devices",
        "warning" if unused else "ok",
        f"{found[0].platform}: {kinds}; {jax.process_count()} process(es)"
        + (
            "; an accelerator is here but jax does not see it: "
            "pip install 'mmssl[gpu]' or 'mmssl[tpu]'"
            if unused
            else ""
        ),
    )
    if sum(jax.numpy.arange(4.0)) != 6.0:
        yield Finding("arithmetic", "broken", f"0+1+2+3 is not 6 on {found[0]}")


def codecs() -> Iterator[Finding]:
    """Encodes and decodes a short H.264 + AAC file; lists the other decoders."""
    import av

    with tempfile.TemporaryDirectory(prefix="mmssl-doctor-") as folder:
        path = pathlib.Path(folder) / "probe.mp4"
        write_probe(path, frames=25)
        with av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        with av.open(str(path)) as container:
            samples = sum(f.samples for f in container.decode(audio=0))
    good = frames == 25 and samples >= 16000
    yield Finding(
        "H.264 + AAC",
        "ok" if good else "broken",
        f"round trip gave {frames} of 25 frames, {samples} of 16000 samples",
    )
    wanted = DECODERS + AUDIO_DECODERS
    absent = [name for name in wanted if name not in av.codecs_available]
    present = ", ".join(name for name in wanted if name not in absent)
    yield Finding(
        "decoders",
        "warning" if absent else "ok",
        present + (f"; absent: {', '.join(absent)}" if absent else ""),
    )


def write_probe(path: pathlib.Path, *, frames: int) -> None:
    """Writes a moving 96x64 pattern at 25 fps with a 440 Hz tone of the same length."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(frames):
            row = np.arange(96, dtype=np.uint8) * 2 + i * 5
            image = np.broadcast_to(row[None, :, None], (64, 96, 3))
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        times = np.arange(frames * 16000 // 25) / 16000
        wave = np.float32(0.3) * np.sin(2 * np.pi * 440 * times).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def disk() -> Iterator[Finding]:
    """The current folder and the temporary folder."""
    for folder in (os.getcwd(), tempfile.gettempdir()):
        yield from storage(folder)
        free = shutil.disk_usage(folder).free / GIB
        if free < 2:
            detail = f"{free:.1f} GiB free in {folder}; a demo run wants about 1"
            yield Finding("disk", "warning", detail)


def storage(path: str) -> Iterator[Finding]:
    """Lists a folder or bucket, and writes, reads and deletes a small file in it."""
    from etils import epath

    try:
        folder = epath.Path(path)
        if not folder.exists():
            raise FileNotFoundError("it does not exist")
        next(iter(folder.iterdir()), None)
        probe = folder / f".mmssl-doctor-{uuid.uuid4().hex}"
        try:
            probe.write_text("mmssl")
            if probe.read_text() != "mmssl":
                raise OSError("what was written reads back differently")
        finally:
            probe.unlink(missing_ok=True)
    except Exception as error:
        yield Finding("storage", "broken", f"{path}: {_why(path, error)}")
        return
    yield Finding("storage", "ok", f"{path}: lists, writes, reads")


def _why(path: str, error: Exception) -> str:
    scheme = path.partition("://")[0]
    package = {"gs": "gcsfs", "s3": "s3fs"}.get(scheme)
    text = str(error) or type(error).__name__
    if package and isinstance(error, ImportError):
        return f"no reader for {scheme}:// here; pip install {package} ({text})"
    if isinstance(error, PermissionError):
        return "permission denied; check who may read and write it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text


def loader(clips: int = 64) -> Iterator[Finding]:
    """Decodes windows of a short file through worker processes, as training does."""
    from concurrent import futures

    from mmssl.data import clips as requests
    from mmssl.data.pool import DecodePool

    request = requests.ClipRequest(
        video=requests.VideoRequest(
            times=tuple(i / 10 for i in range(8)), size=(64, 64)
        ),
        audio=requests.AudioRequest(start=0.0, samples=12800, rate=16000),
    )
    with tempfile.TemporaryDirectory(prefix="mmssl-doctor-") as folder:
        path = pathlib.Path(folder) / "probe.mp4"
        write_probe(path, frames=50)
        media = path.read_bytes()
    with DecodePool(cores()) as pool, futures.ThreadPoolExecutor(cores()) as threads:
        start = time.perf_counter()
        pool.clip(media, request)
        first = time.perf_counter() - start
        list(threads.map(lambda _: pool.clip(media, request), range(cores())))
        start = time.perf_counter()
        done = list(threads.map(lambda _: pool.clip(media, request), range(clips)))
        rate = clips / (time.perf_counter() - start)
    good = all(clip.video is not None and clip.audio is not None for clip in done)
    yield Finding(
        "loader",
        "ok" if good else "broken",
        f"{rate:.0f} clips/s (8 frames 64x64, 0.8 s of sound) in {cores()} worker(s); "
        f"the first after {first:.1f} s"
        + ("" if good else "; some came back without picture or sound"),
    )
