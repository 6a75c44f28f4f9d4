"""The TFDS builder: records to ArrayRecord shards that plain TFDS reads.

Imports tensorflow_datasets, so import this module where it is used.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mmssl.data import records
from mmssl.errors import UserError

Records = Callable[[], Iterable[records.Record]]


class MmsslClips(tfds.core.GeneratorBasedBuilder):
    """Clips of encoded media with text, times and labels."""

    VERSION = tfds.core.Version(f"{records.SCHEMA_VERSION}.0.0")

    def __init__(
        self,
        *,
        data_dir: str,
        label_columns: Sequence[str],
        splits: Mapping[str, Records],
    ) -> None:
        self._label_columns = tuple(label_columns)
        self._splits = dict(splits)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips of encoded media with text, times and labels.",
            features=records.features(self._label_columns),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(s) for name, s in self._splits.items()}

    def _generate_examples(self, split: Records) -> Iterable[tuple[str, Any]]:
        for record in split():
            yield record.id, records.to_example(record)

    # TFDS prints these two to stdout, which belongs to the command.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def write(
    root: pathlib.Path, *, label_columns: Sequence[str], splits: Mapping[str, Records]
) -> pathlib.Path:
    """Writes the splits below `root`; returns the folder of the shards.

    Args:
      root: an empty folder.
      label_columns: every record has exactly these labels.
      splits: name to a function that gives the split's records; none may be empty.

    Raises:
      UserError: one that a split raises.
    """
    tfds.disable_progress_bar()
    builder = MmsslClips(data_dir=str(root), label_columns=label_columns, splits=splits)
    try:
        builder.download_and_prepare()
    except Exception as e:
        link: BaseException | None = e
        while link is not None:  # TFDS wraps what a split raises in a RuntimeError
            if isinstance(link, UserError):
                raise link from None
            link = link.__cause__
        raise
    return pathlib.Path(builder.data_dir)
