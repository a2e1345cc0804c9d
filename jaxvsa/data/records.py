"""ArrayRecord files of a tensorflow-datasets builder: written by it, read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError

_CHUNK = 256  # records read at once: a chunk of videos stays around 50 MB


def write_records(
    folder: Path,
    name: str,
    description: str,
    spec: Mapping[str, Any],
    parts: Mapping[str, Iterable[Mapping[str, Any]]],
) -> dict[str, int]:
    """Writes one data set as `folder/<name>/1.0.0` through a `GeneratorBasedBuilder`.

    The order of the examples is kept (`disable_shuffling`).

    Args:
        folder: an existing folder.
        name: of the data set, lower case.
        description: one sentence, stored beside the records.
        spec: field -> tensorflow-datasets feature, may be nested.
        parts: split -> its examples, none empty.

    Returns:
        Path relative to `folder` -> number of records, in reading order.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _make_builder(name, description, spec, parts)(
        data_dir=str(folder), file_format="array_record"
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    downloads = folder / "downloads"  # made in any case, and empty
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare(download_dir=str(downloads), download_config=config)
        shutil.rmtree(downloads)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of ArrayRecord
        why = str(error).split("\n")[0]
        raise UserError(
            f"cannot write {name} in {folder.parent}: {why}; free space there, or choose another "
            "--out"
        ) from error
    files: dict[str, int] = {}
    for split in parts:
        info = builder.info.splits[split]
        for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
            files[str(Path(path).relative_to(folder))] = count
            _open(Path(path), count).close()
    return files


def read_records(path: Path, count: int) -> Iterator[Mapping[str, Any]]:
    """The fields of each record of a file, as features of `tf.train.Example`, in order.

    Args:
        path: an ArrayRecord file.
        count: records it must hold.

    Raises:
        UserError: missing, damaged, or another number of records; the file is named.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    reader = _open(path, count)
    try:
        for start in range(0, count, _CHUNK):
            for raw in reader.read(start, min(start + _CHUNK, count)):
                yield tf_example_pb2.Example.FromString(raw).features.feature
        reader.close()
    except (RuntimeError, ValueError, IndexError, DecodeError) as error:
        raise _damaged(path, error) from error


def _make_builder(
    name: str,
    description: str,
    spec: Mapping[str, Any],
    parts: Mapping[str, Iterable[Mapping[str, Any]]],
) -> Any:
    """The class that tensorflow-datasets writes `parts` with; arguments of `write_records`."""
    import tensorflow_datasets as tfds

    class Info(tfds.core.DatasetInfo):
        """Of data that nobody has prepared before."""

        def initialize_from_bucket(self) -> None:
            """Seeks nothing on the network; the inherited one leaves a folder in /tmp each time."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The data set as tensorflow-datasets wants it described."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # nothing is downloaded, so no checksums are sought beside our code

        def _info(self) -> Any:
            return Info(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(dict(spec)),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: enumerate(examples) for split, examples in parts.items()}

        def _generate_examples(self) -> Any:
            """Abstract in the base class; `_split_generators` hands over the examples."""

    Builder.name = name
    return Builder


def _open(path: Path, count: int) -> Any:
    """A reader of `path`, which must hold `count` records."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the data again")
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        if found != count:
            reader.close()  # says why, if the file is damaged
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error
    if found != count:
        raise UserError(f"{path} holds {found} records, expected {count}; prepare the data again")
    return reader


def _damaged(path: Path, error: Exception) -> UserError:
    """One line about a file that cannot be read."""
    why = (str(error).strip() or "cut short").split("\n")[0][:120]
    return UserError(f"{path} is damaged ({why}); prepare the data again")
