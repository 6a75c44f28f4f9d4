"""Built datasets as random-access sources of records."""

import functools
import os
from typing import Any

from mmssl.data import records
from mmssl.errors import UserError, nearest


class RecordSource:
    """The records of one split; a `grain.RandomAccessDataSource`.

    Args:
      path: the dataset's folder.
      split: a split's name or a TFDS slice of one ("train[:10%]").
      data: TFDS's data source of examples.
    """

    def __init__(self, path: str, split: str, data: Any) -> None:
        self.path = path
        self.split = split
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> records.Record:
        try:
            return records.from_example(self._data[int(index)])
        except (RuntimeError, ValueError, KeyError) as error:
            # ArrayRecord gives a damaged shard an empty message.
            raise UserError(
                f"{self.path}: row {index} of split {self.split!r} cannot be read "
                f"({type(error).__name__}: {error}); find damaged files with "
                f"`mmssl data validate {self.path}`"
            ) from error

    def __repr__(self) -> str:
        return f"RecordSource({self.path!r}, {self.split!r})"


@functools.cache
def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(path)


def open_dataset(path: str | os.PathLike[str], split: str) -> RecordSource:
    """Opens one split of a dataset that `mmssl data build` wrote.

    Raises:
      UserError: no dataset there, another schema version, an unknown or empty split,
        damaged files.
    """
    folder = os.path.abspath(path)
    metadata = records.read_metadata(folder)
    name = split.split("[")[0]
    if name not in metadata["splits"]:
        names = sorted(metadata["splits"])
        raise UserError(
            f"{path}: no split {name!r}, it has {names}{nearest(name, names)}"
        )
    try:
        data = _builder(folder).as_data_source(split=split)
        rows = len(data)
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        raise UserError(
            f"{path}: split {split!r} cannot be opened ({type(error).__name__}: "
            f"{error}); check the files with `mmssl data validate {path}`"
        ) from error
    if rows == 0:
        raise UserError(f"{path}: split {split!r} is empty; build with more clips")
    return RecordSource(str(path), split, data)
