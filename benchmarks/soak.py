"""Memory over thousands of decodes: of the worker, and of the process that asks.

python benchmarks/soak.py --out soak.json
"""

import argparse
import pathlib
import sys
import time

import harness
import numpy as np

from mmssl.data.media import AudioRequest, ClipRequest, VideoRequest
from mmssl.data.pool import DecodePool, MediaFault


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = harness.parser(
        "soak",
        about="Memory of one decode worker that is never replaced, and of the process "
        "that asks,\nafter every tenth of many decodes of all the files in turn: clips "
        "and full probes,\nof good files and of broken ones.",
        example="python benchmarks/soak.py --media shared/data/robust",
    )
    made.add_argument(
        "--media", metavar="DIR", required=True, help="media files, searched deep"
    )
    made.add_argument(
        "--decodes", metavar="N", type=int, help="default: 10000 (quick: 200)"
    )
    made.add_argument(
        "--largest",
        metavar="KB",
        type=int,
        default=50,
        help="files above are left out (default: %(default)s)",
    )
    return made


def resident(pid: int | str) -> float:
    """MiB of memory that a process holds now."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(arguments: argparse.Namespace) -> harness.Measured:
    """Decodes all files in turn, at drawn times."""
    decodes = arguments.decodes or (200 if arguments.quick else 10_000)
    paths = sorted(p for p in pathlib.Path(arguments.media).rglob("*") if p.is_file())
    files = [
        p.read_bytes() for p in paths if p.stat().st_size < arguments.largest * 1e3
    ]
    rng = np.random.default_rng(0)
    rows, pids, faults = [], set(), 0
    begin = time.perf_counter()
    with DecodePool(1, recycle=10 * decodes) as pool:
        for done in range(1, decodes + 1):
            data, start = files[done % len(files)], float(rng.uniform(0, 1))
            times = tuple(start + i / 10 for i in range(8))
            request = ClipRequest(
                VideoRequest(times, size=(112, 112)), AudioRequest(start, 16000, 16000)
            )
            try:
                if done % 10:
                    pool.clip(data, request)
                else:
                    pool.probe(data)
            except MediaFault:
                faults += 1
            if done % (decodes // 10) == 0:
                [pid] = pool.pids()
                pids.add(pid)
                rows.append((done, resident(pid), resident("self")))
                print(
                    "{:>6} decodes: worker {:.1f} MiB, asker {:.1f} MiB".format(
                        *rows[-1]
                    )
                )
    # The first tenth loads every decoder.
    grown = [
        (rows[-1][i] - rows[0][i]) * 1024 / (rows[-1][0] - rows[0][0]) for i in (1, 2)
    ]
    summary = {
        "worker_kib_per_decode": {"median": grown[0], "unit": "KiB"},
        "asker_kib_per_decode": {"median": grown[1], "unit": "KiB"},
        "worker_mib": harness.spread([row[1] for row in rows], unit="MiB"),
        "asker_mib": harness.spread([row[2] for row in rows], unit="MiB"),
        "workers": {"median": len(pids)},
        "faults": {"median": faults},
    }
    settings = {"decodes": decodes, "files": len(files)}
    return harness.Measured(
        summary, settings, {"rows": rows, "seconds": time.perf_counter() - begin}
    )


if __name__ == "__main__":
    sys.exit(harness.main(options(), measure))
