"""Clips of a run's datasets as its model sees them, for the report."""

from collections.abc import Collection, Iterator

from mmssl.data import records, sources, views
from mmssl.errors import UserError
from mmssl.experiment import Experiment
from mmssl.report import media as report_media

SEARCHED = 5000
"""Training rows that are read to find clips by id."""


def training_rows(
    experiment: Experiment, ids: Collection[str]
) -> Iterator[records.Record]:
    """Records of these ids among the first `SEARCHED` of each dataset."""
    left = set(ids)
    split = experiment.config["data"].get("split", "train")
    for path, _ in experiment.datasets if left else ():
        try:
            source = sources.open_dataset(path, split)
        except UserError:
            continue  # the dataset has gone; the run's files are still worth a page
        for i in range(min(len(source), SEARCHED)):
            record = source[i]
            if record.id in left:
                left.discard(record.id)
                yield record
            if not left:
                return


def sample(record: records.Record, view: views.View) -> report_media.Sample:
    """A clip as the model sees it in evaluation."""
    example = view(record)
    present = example["present"]
    return {
        "id": record.id,
        "frames": example["video"] if present.get("video") else None,
        "audio": example["audio"] if present.get("audio") else None,
        "rate": view.audio.rate if view.audio else 0,
        "text": [str(t) for t in example["info"]["texts"]],
        "labels": {k: v for k, v in record.labels.items() if v},
        "swapped": str(record.meta.get("swapped", "")),
    }
