"""The TFDS builder: records to ArrayRecord shards that plain TFDS reads.

Imports tensorflow_datasets, so import this module where it is used.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from mmssl.data import records, shards

_FORMAT = tfds.core.FileFormat.ARRAY_RECORD
# The names that `shards.file_name` gives.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"

Work = Callable[[str | None, Any], Mapping[str, list[int]]]
"""(Beam runner or None, its options) to {split: rows of each of its shards}."""


def write_shard(
    path: pathlib.Path, rows: Iterable[records.Record], label_columns: Sequence[str]
) -> int:
    """Writes one shard, in the order of the rows; returns how many there were."""
    features = records.features(label_columns)
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    count = 0

    def examples() -> Iterator[tuple[int, bytes]]:
        nonlocal count
        for record in rows:
            example = features.encode_example(records.to_example(record))
            proto = serializer.get_tf_example(example)
            # Its fields in one order: the same records are the same bytes.
            yield count, proto.SerializeToString(deterministic=True)
            count += 1

    tfds.core.ExampleWriter(file_format=_FORMAT).write(path, examples())
    return count


class MmsslClips(dataset_builder.FileReaderBuilder):
    """Clips of encoded media with text, times and labels.

    Features, file format, metadata and the choice of a Beam runner are those of TFDS;
    its writers are not used, as they keep nothing of a build that was killed.

    Args:
      data_dir: gets the metadata.
      label_columns: every record has exactly these labels.
      work: writes the shards.
    """

    VERSION = tfds.core.Version(f"{records.SCHEMA_VERSION}.0.0")

    def __init__(
        self, *, data_dir: str, label_columns: Sequence[str], work: Work
    ) -> None:
        self._label_columns = tuple(label_columns)
        self._work = work
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips of encoded media with text, times and labels.",
            features=records.features(self._label_columns),
        )

    def _download_and_prepare(
        self, dl_manager: Any, download_config: Any = None
    ) -> None:
        lengths = self._work(download_config.beam_runner, download_config.beam_options)
        self.info.set_splits(
            tfds.core.SplitDict(
                [self._split(name, rows) for name, rows in lengths.items()]
            )
        )

    def _split(self, name: str, lengths: list[int]) -> tfds.core.SplitInfo:
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=shards.DATASET,
            split=name,
            filetype_suffix=_FORMAT.file_suffix,
            template=_TEMPLATE,
        )
        return tfds.core.SplitInfo(
            name=name, shard_lengths=lengths, num_bytes=0, filename_template=template
        )

    # TFDS prints these two to stdout, which belongs to the command.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def prepare(
    folder: str,
    *,
    label_columns: Sequence[str],
    work: Work,
    runner: str | None = None,
    options: Any = None,
) -> pathlib.Path:
    """Does the work on a runner of Apache Beam, or here; describes what it wrote.

    Args:
      folder: an empty one.
      runner: the name of a Beam runner; None: no Beam.
      options: `PipelineOptions` of the runner.

    Returns:
      The folder of TFDS's metadata, which goes beside the shards.

    Raises:
      UserError: one that the work raises.
    """
    tfds.disable_progress_bar()
    builder = MmsslClips(data_dir=folder, label_columns=label_columns, work=work)
    config = tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
    builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_dir)
