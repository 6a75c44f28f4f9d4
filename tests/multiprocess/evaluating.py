"""An evaluation of a toy by one of several processes; process 0 prints what it found.

python -m tests.multiprocess.evaluating HOST:PORT PROCESSES PROCESS
"""

import json
import sys
from typing import Any

import jax
import numpy as np

from mmssl import evaluation
from mmssl.data import device
from mmssl.data.pipeline import HostBatch
from mmssl.errors import UserError
from mmssl.evals import embeddings, evaluate
from mmssl.parallel import distributed
from mmssl.parallel import mesh as mesh_lib
from mmssl.types import RawBatch

CLIPS, BATCH, WIDTH = 21, 16, 6


def batches(mesh: jax.sharding.Mesh) -> Any:
    """This process's rows: two windows of some clips, texts in common, padding."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((CLIPS, WIDTH)).astype(np.float32)
    words = rng.integers(1, 4, (CLIPS, 2, 3)).astype(np.int32)
    mine, of = mesh_lib.process_rows(mesh)
    for start in range(0, CLIPS, BATCH):
        rows = np.arange(start, start + BATCH).reshape(of, -1)[list(mine)].ravel()
        real = rows < CLIPS
        at = np.minimum(rows, CLIPS - 1)
        raw: Any = RawBatch(
            media={"audio": x[at], "text": words[at] * real[:, None, None]},
            present={"audio": real & (rows % 7 > 0), "text": real},
            example_id=rows.astype(np.uint32),
        )
        labels = [{"kind": "ab"[row % 2]} for row in rows[real]]
        ids = [f"clip-{row // 2 if row < 6 else row}" for row in rows[real]]
        info = [{"id": i, "labels": k} for i, k in zip(ids, labels, strict=True)]
        yield HostBatch(raw, info)


def judged() -> dict[str, Any]:
    """Retrieval, and the clips with their labels."""
    mesh = mesh_lib.make_mesh({"data": -1})
    rows = mesh_lib.batch_sharding(mesh)

    @jax.jit
    def embed(raw: RawBatch) -> Any:
        text = jax.nn.one_hot(raw.media["text"], WIDTH).sum(2) + 0.1
        norm = jax.numpy.linalg.norm
        audio = raw.media["audio"]
        unit = {
            "audio": audio / norm(audio, axis=-1, keepdims=True),
            "text": text / norm(text, axis=-1, keepdims=True),
        }
        return {"audio": audio, "text": text}, {"at": unit}

    def call(raw: RawBatch) -> Any:
        return jax.tree.map(distributed.fetch, embed(device.put(raw, rows)))

    whole = evaluation.whole_batch(mesh)
    found = embeddings.embed(batches(mesh), {"": call}, whole=whole)[""]
    arm = evaluate.Arm(found)

    def judge() -> Any:
        return evaluate.evaluate(arm, protocols=("retrieval",)).sections

    return {
        "sections": distributed.from_first(judge),
        "ids": list(found.ids),
        "kinds": found.labels["kind"].tolist(),
        "failed": failed(),
        "sums": [float(x.sum()) for x in found.spaces["at"].values()],
    }


def failed() -> str:
    """What all find where the last process has no second batch."""
    last = jax.process_index() == jax.process_count() - 1

    def rows() -> Any:
        yield 1
        if last:
            raise OSError("no storage")
        yield 2

    found = []
    try:
        found.extend(evaluation.until_told(rows(), lambda: None))
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing failed"


if __name__ == "__main__":
    address, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    distributed.initialize(coordinator=address, processes=count, process=index)
    print(json.dumps(judged()), flush=True)
    distributed.leave(0)
