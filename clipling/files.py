"""A model on files: embeddings to parquet or npy, and predicted classes to a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from clipling.data.classes import DEFAULT_TEMPLATES, read_lines, read_templates
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.subject import Subject
from clipling.exported import Exported, is_exported
from clipling.store import atomic_produce, atomic_write
from clipling.subjects import subject_of

GUESSES = 3
BLOCK = 4096  # rows in memory at once
PREDICTION_FILES = (".csv", ".jsonl", ".parquet")


def embed(model: str, source: str, out: Path, columns: dict[str, str | None] | None = None) -> dict[str, Any]:
    """Unit rows of all pictures and captions of a source.

    out: a `.parquet` file with the columns key, kind (image or text), caption, hash and embedding (float32 [d]), or a folder that
    gets `image.npy` [P, d], `text.npy` [T, d] (float32) and `rows.jsonl` (key, hash and captions of each picture, in order).
    Features are cached, so a run that was stopped goes on. Raises UserError for another ending.
    """
    if out.suffix not in ("", ".parquet"):
        raise UserError(f"--out {out}: give a .parquet file, or a folder for .npy files")
    subject, dataset = _opened(model), _pictures(source, columns or {})
    pairs = dataset.pairs
    image = subject.images(dataset)
    captions = [] if pairs.unpaired else pairs.captions
    text = subject.texts(captions)
    made = {"model": subject.name, "pictures": len(image), "captions": len(text), "dimensions": int(image.shape[1])}
    if out.suffix == ".parquet":
        atomic_produce(out, lambda path: _parquet(path, pairs, captions, image, text))
    else:
        for name, rows in (("image", image), ("text", text)):
            atomic_produce(out / f"{name}.npy", lambda path, rows=rows: _npy(path, rows))
        lines = ({"key": pairs.keys[i], "hash": pairs.hashes[i], "captions": pairs.captions_of(i)} for i in range(len(pairs)))
        atomic_write(out / "rows.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {**made, "bad_rows": len(pairs.problems), "out": str(out)}


def predict(
    model: str,
    images: str,
    classes: str,
    *,
    templates: Path | None = None,
    top: int | None = None,
    out: Path | None = None,
    columns: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """The `top` most probable classes of every picture (3 where there are as many).

    Probabilities are the softmax over the classes of scale times cosine.

    classes: a file with one name a line, or names separated by commas. out: a `.csv`, `.jsonl` or `.parquet` file; without it the
    first rows are returned alone. Raises UserError for fewer than two names, for repeated ones, for another ending of `out`, and
    for a model whose features or scale are not finite.
    """
    names = class_names(classes)
    top = min(GUESSES, len(names)) if top is None else top
    if not 1 <= top <= len(names):
        raise UserError(f"--top is {top}; expected 1 to {len(names)}, the number of classes")
    if out is not None and out.suffix not in PREDICTION_FILES:
        raise UserError(f"--out {out}: give a {', '.join(PREDICTION_FILES)} file")
    prompts = read_templates(templates) if templates else list(DEFAULT_TEMPLATES)
    subject, dataset = _opened(model), _pictures(images, columns or {})
    image, text = subject.images(dataset), subject.prompted(names, prompts)
    keys, rows = dataset.pairs.keys, lambda: _rows(image, text, names, dataset.pairs.keys, subject.scale, top)
    if out is not None:
        atomic_produce(out, lambda path: WRITERS[out.suffix](path, rows(), top))
    first = [row for row, _ in zip(rows(), range(20))]
    counts = np.zeros(len(names), dtype=int)
    for row in rows():
        counts[names.index(row["guesses"][0][0])] += 1
    return {
        "model": subject.name,
        "pictures": len(keys),
        "bad_rows": len(dataset.pairs.problems),
        "classes": {name: int(count) for name, count in zip(names, counts)},
        "first": first,
        **({"out": str(out)} if out is not None else {}),
    }


def class_names(classes: str) -> list[str]:
    """Names out of a file, or out of a list separated by commas."""
    path = Path(classes).expanduser()
    named = "," in classes and not path.is_file()
    if not named and not path.is_file():
        raise UserError(f"--classes {classes} is no file. Give a file with one name a line, or names separated by commas, such as cat,dog")
    names = [name.strip() for name in classes.split(",") if name.strip()] if named else read_lines(path)
    if len(names) < 2:
        raise UserError(f"--classes names {len(names)}: at least two are needed to choose between")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"--classes names {name!r} twice")
    return names


def _opened(model: str) -> Subject | Exported:
    return Exported(model, torch.get_num_threads()) if is_exported(model) else subject_of(model)


def _pictures(spec: str, columns: dict[str, str | None]) -> Dataset:
    pairs = open_pairs(spec, captions_optional=True, max_bad=1.0, **columns)  # what cannot be read is left out, counted and listed
    return Dataset(spec, pairs, spec)


def _rows(image: np.ndarray, text: np.ndarray, names: list[str], keys: list[str], scale: float, top: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(image), BLOCK):
        p = softmax(scale * (np.asarray(image[start : start + BLOCK], np.float64) @ text.T.astype(np.float64)), axis=1)
        order = np.argsort(-p, axis=1, kind="stable")[:, :top]
        for i, best in enumerate(order):
            yield {"key": keys[start + i], "guesses": [[names[c], float(p[i, c])] for c in best]}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    made = {"key": row["key"]}
    for place, (name, probability) in enumerate(row["guesses"], start=1):
        made |= {f"class_{place}": name, f"probability_{place}": probability}
    return made


def _columns(top: int) -> list[str]:
    return ["key", *(f"{what}_{place}" for place in range(1, top + 1) for what in ("class", "probability"))]


def _csv(path: Path, rows: Iterator[dict[str, Any]], top: int) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, _columns(top))
        writer.writeheader()
        writer.writerows({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in _flat(row).items()} for row in rows)


def _jsonl(path: Path, rows: Iterator[dict[str, Any]], top: int) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(_flat(row), ensure_ascii=False) + "\n" for row in rows)


def _prediction_parquet(path: Path, rows: Iterator[dict[str, Any]], top: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"key": pa.string(), **{name: pa.string() if name.startswith("class") else pa.float64() for name in _columns(top)[1:]}}
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(path, schema) as writer:
        held: list[dict[str, Any]] = []
        for row in rows:
            held.append(_flat({**row, "key": _text(row["key"])}))
            if len(held) == BLOCK:
                writer.write_table(pa.Table.from_pylist(held, schema))
                held = []
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema))


WRITERS: dict[str, Callable[[Path, Iterator[dict[str, Any]], int], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _prediction_parquet,
}


def _parquet(path: Path, pairs: Pairs, captions: Sequence[str], image: np.ndarray, text: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    owner = np.repeat(np.arange(len(pairs)), np.diff(pairs.offsets)) if captions else np.zeros(0, np.int64)
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("kind", pa.string()),
            ("caption", pa.string()),
            ("hash", pa.string()),
            ("embedding", pa.list_(pa.float32(), image.shape[1])),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for kind, features in (("image", image), ("text", text)):
            for start in range(0, len(features), BLOCK):
                part = np.asarray(features[start : start + BLOCK])
                of = range(start, start + len(part)) if kind == "image" else [int(i) for i in owner[start : start + len(part)]]
                said = [None] * len(part) if kind == "image" else [_text(caption) for caption in captions[start : start + len(part)]]
                columns = [[_text(pairs.keys[i]) for i in of], [kind] * len(part), said, [pairs.hashes[i] for i in of]]
                rows = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), image.shape[1])
                arrays = [pa.array(column, kind_of) for column, kind_of in zip(columns, schema.types)]
                writer.write_table(pa.Table.from_arrays([*arrays, rows], schema=schema))


def _text(text: str) -> str:
    """Parquet holds UTF-8: parts of file names that are not become `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _npy(path: Path, rows: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, rows)
