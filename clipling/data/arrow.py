"""Folders of tables as Hugging Face datasets are kept: arrow files that `save_to_disk` wrote, and parquet files by split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipling.errors import UserError
from clipling.store import read_json

# What `datasets` calls its splits; other first words of a file name are no splits.
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")


class ArrowFile:
    """An arrow file with the methods of pyarrow's ParquetFile that the reader of parquet needs; its pages stay on the disk."""

    def __init__(self, path: Path) -> None:
        """Raises pyarrow.ArrowException for what is neither a stream nor a file of arrow."""
        self.path = path
        with self._source() as source:
            self.schema_arrow = self._reader(source).schema

    def iter_batches(self, batch_size: int, columns: list[str]) -> Iterator[Any]:
        """Record batches of at most `batch_size` rows, of these columns."""
        with self._source() as source:
            for batch in self._batches(self._reader(source)):
                chosen = batch.select(columns)
                for start in range(0, len(chosen), batch_size):
                    yield chosen.slice(start, batch_size)

    def _source(self) -> Any:
        import pyarrow

        return pyarrow.memory_map(str(self.path))

    def _reader(self, source: Any) -> Any:
        import pyarrow

        try:
            return pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source)

    def _batches(self, reader: Any) -> Iterator[Any]:
        if hasattr(reader, "num_record_batches"):
            return (reader.get_batch(i) for i in range(reader.num_record_batches))
        return iter(reader)

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *_: object) -> None: ...


def saved_dataset(folder: Path) -> list[Path] | None:
    """The arrow files of a folder that `datasets` saved (`save_to_disk`), of all its splits; None for any other folder.

    Raises UserError where files that it names are missing, or rows were chosen by an index that was not written out.
    """
    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json").get("splits", [])
        return [path for name in names for path in saved_dataset(folder / name) or _missing(folder / name)]
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} keeps its rows by an index. Save it as it is read: dataset.flatten_indices().save_to_disk(...)")
    files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    lost = next((path for path in files if not path.is_file()), None)
    if lost is not None or not files:
        _missing(lost or folder)
    return files


def _missing(path: Path) -> list[Path]:
    raise UserError(f"{path} is missing: the dataset was not saved, or copied, as a whole")


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder, or of `data` in it, where the hub keeps them."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def splits_of(files: list[Path]) -> dict[Path, str]:
    """The split of each file (`train-00000-of-00002.parquet`, `train/data-00000-of-00001.arrow`); empty unless all have one, and not
    the same."""
    found = {path: path.parent.name if path.suffix == ".arrow" else path.stem.partition("-")[0] for path in files}
    return found if len(set(found.values())) > 1 and set(found.values()) <= set(SPLITS) else {}
