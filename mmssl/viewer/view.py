"""`view_dataset`: which rows to look at, and the page of what was seen."""

import os
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any

from mmssl import config as config_lib
from mmssl.data import records, survey, text
from mmssl.data.faults import Limits
from mmssl.data.intake import Progress
from mmssl.errors import UserError
from mmssl.experiment import TOKENIZER_FILES, Experiment
from mmssl.report import dataset as page
from mmssl.report.clip import Clip
from mmssl.viewer import look as look_lib
from mmssl.viewer import summary as summary_lib
from mmssl.viewer import training


def view_dataset(
    path: str,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    samples: int = 24,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Writes a page that opens offline.

    Time, memory and the size of the page depend on `samples`, not on the dataset: what
    is said of the whole comes from its metadata and the build's report, and from at
    most 500 rows, evenly spread.

    Args:
      path: the dataset's folder.
      out: an .html file; replaced if it is there. About 0.8 MiB a sample at most.
      split: a split or a TFDS slice of one; None: all of them.
      samples: rows to show; a quarter of them are rows with faults if there are so
        many among those looked at, the others are evenly spaced.
      config: a resolved training config, whose view and model show what they make of
        the samples.
      seed: of the training view's draws; another one takes other rows, too.
      workers: decoding processes; None: one per core.
      progress: called with (done, total, "decoding").

    Raises:
      UserError: no dataset, split or tokenizer there, a mistyped config, or `out` is
        no .html file in a folder that is there.
    """
    out = pathlib.Path(out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"{out}: expected the name of a file that ends in .html")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no such folder: {out.absolute().parent}; make it")
    rows = survey.Rows(path, split)
    found = survey.survey(rows)
    even = survey.evenly(len(rows), samples, seed=seed)
    wanted = survey.chosen(found.faulty, even, samples)
    limits = None
    experiment = None
    if config is not None:
        data = {**config["data"], "path": path}
        experiment = Experiment({**config, "data": data})
        limits = config_lib.build(Limits, "data.limits", **(data.get("limits") or {}))
    cards: list[Clip] = []
    with (pool := training.WatchedPool(workers, limits)):
        draws = None
        if experiment is not None:
            draws = training.Training(experiment, pool, seed)
        look = look_lib.Look(rows, pool, _tokenizer(path), draws)
        executor = futures.ThreadPoolExecutor(pool.workers)
        try:
            for made in executor.map(look, wanted):
                cards.append(made)
                if progress:
                    progress(len(cards), len(wanted), "decoding")
        finally:
            executor.shutdown(cancel_futures=True)
    name = os.path.basename(path if records.in_bucket(path) else os.path.abspath(path))
    summary = summary_lib.summarize(path, name, found)
    drawn = "" if experiment is None else _drawn(experiment, seed)
    page.write_dataset(out, summary, cards, view=drawn)
    return out


def _drawn(experiment: Experiment, seed: int) -> str:
    """What the page shows of a config, in words."""
    told = (
        "White boxes and blue bands are the crops and windows of one draw "
        f"(seed {seed}) of the training view."
    )
    if experiment.model.keep:
        told += " Covered are the tokens that DropToken hides"
        every = experiment.model.drop_per_sample
        told += "." if every else ", the same ones in all clips of a batch."
    return told


def _tokenizer(path: str) -> text.Tokenizer | None:
    """The one beside the dataset, if there is one."""
    files = [records.folder(path) / name for name in TOKENIZER_FILES]
    there = next((file for file in files if file.is_file()), None)
    return None if there is None else text.load_tokenizer(there)
