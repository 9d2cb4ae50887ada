"""The neighbour tables of a bank's training pairs in a folder, with what later tables can be made from.

image-*.npz, text-*.npz    the tables
pairs.parquet              key, image hash, hash of captions and group of the pairs that they number
centre.npz                 the means that were subtracted from the features, where any were
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from clipling.data.pairs import Pairs
from clipling.errors import UserError
from clipling.guides.guidance import open_tables
from clipling.guides.progress import Progress
from clipling.guides.stored import PAIRS_FILE, Bank, BankRows, captions_digest, differ, read_pairs_file, write_pairs_file
from clipling.guides.table import Table, load_arrays_by_name, save_arrays
from clipling.guides.update import Base

CENTRE_FILE = "centre.npz"


def make_tables(
    bank: Path,
    pairs: Pairs,
    folder: Path,
    *,
    k: int = 5,
    cap: int | None = None,
    centre: bool = True,
    query: Literal["mean", "caption"] = "mean",
    method: Literal["auto", "exact"] = "auto",
    update: Path | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Table]:
    """The tables of the `image` and the `text` space over all of `pairs`, where training looks for them (`build.tables_folder`).

    update: the folder of older tables; only pairs that are new there are compared with all, and the older means are kept.
    Raises UserError when the bank is of another source, or the older tables cannot be brought up to date.
    """
    joined, rows = Bank.open(bank).join(pairs), np.arange(len(pairs))
    if centre:
        joined = centred(joined, rows, folder if update is None else update, wanted=update is not None)
    base = None if update is None else _bases(update, pairs)
    if update is not None:
        _no_other_tables(folder, update)
    tables = open_tables(
        joined, pairs, rows, folder, k=k, cap=cap, query=query, method=method, base=base, progress=progress, rank=rank, world=world
    )
    if rank == 0:
        digests = [_told(pairs, i) for i in range(len(pairs))]
        write_pairs_file(folder / PAIRS_FILE, pairs.keys, pairs.hashes, digests, np.diff(pairs.offsets))
        if joined.image.centre is not None and joined.text.centre is not None:
            save_arrays(folder / CENTRE_FILE, image=joined.image.centre.mean, text=joined.text.centre.mean)
        for name in (PAIRS_FILE, CENTRE_FILE):
            for left in folder.glob(f".{name}.*.tmp"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
    return tables


def centred(bank: BankRows, rows: np.ndarray, folder: Path, wanted: bool = False) -> BankRows:
    """The bank less the means kept in `folder`; where there are none, less those of the training pairs `rows`.

    wanted: UserError where there are none.
    """
    path = folder / CENTRE_FILE
    if not path.is_file():
        if wanted and not folder.is_dir():
            raise UserError(f"--update {folder} does not exist; expected a folder of older tables")
        if wanted and (folder / "tables").is_dir():
            there = ", ".join(sorted(str(path) for path in (folder / "tables").iterdir() if path.is_dir())) or "none yet"
            raise UserError(f"--update {folder} is a bank; expected a folder of its tables: {there}")
        if wanted:
            raise UserError(
                f"{folder} holds no {CENTRE_FILE}: its tables were made with --no-centre, or by training. "
                "Make them by `clipling neighbours`."
            )
        return bank.centred(rows)
    try:
        means = load_arrays_by_name(path)
        return bank.less(means["image"], means["text"])
    except Exception as error:  # numpy and zipfile have errors of many kinds for a wrong byte
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}). Remove it and the tables beside it.") from error


def _no_other_tables(folder: Path, update: Path) -> None:
    """Raises UserError where the folder holds tables over features less other means: means and tables would not belong together."""
    try:
        here, older = load_arrays_by_name(folder / CENTRE_FILE), load_arrays_by_name(update / CENTRE_FILE)
        same = all(np.array_equal(here[side], older[side]) for side in ("image", "text"))
    except Exception:  # absent, or damaged in one of many ways: it is written anew
        return
    if not same:
        raise UserError(
            f"{folder} holds tables of these pairs already, made anew and not from {update}: other means were subtracted. "
            f"They are in use as they are; to have updated ones instead, remove {folder} first."
        )


def _bases(folder: Path, pairs: Pairs) -> dict[str, Base]:
    """The older tables, and what became of their pairs."""
    if not (folder / PAIRS_FILE).is_file():
        raise UserError(f"{folder} holds no tables of `clipling neighbours`: it has no {PAIRS_FILE}.")
    try:
        keys, images, told, _ = read_pairs_file(folder / PAIRS_FILE)
    except Exception as error:  # pyarrow has errors of many kinds for a wrong byte
        raise UserError(
            f"{folder / PAIRS_FILE} cannot be read ({type(error).__name__}: {error}). Make the tables anew, without --update."
        ) from error
    place = {key: i for i, key in enumerate(pairs.keys)}
    kept = np.array([place.get(key, -1) for key in keys], dtype=np.int64)
    for old in np.flatnonzero(kept >= 0).tolist():
        now = int(kept[old])
        if differ(images[old], pairs.hashes[now]) or differ(told[old], _told(pairs, now)):
            kept[old] = -1
    if not (kept >= 0).any():
        raise UserError(
            f"none of the {len(keys)} pairs of the tables in {folder} is among these {len(pairs)} as it was, so there is nothing to bring "
            "up to date. Give the tables of the older pairs, or leave out --update."
        )
    found = {}
    for space in ("image", "text"):
        files = sorted(folder.glob(f"{space}-*.npz"))
        if len(files) != 1:
            raise UserError(f"{folder} holds {len(files)} tables of the {space} space; expected one. Remove {folder} and make it anew.")
        found[space] = Base(Table.load(files[0]), kept)
    return found


def _told(pairs: Pairs, i: int) -> str:
    """Digest of a pair's captions and group. A group that changed is a link that went: its pairs may be neighbours now."""
    group = [f"\n{pairs.groups[i]}"] if pairs.groups[i] else []  # no caption begins with a line break
    return captions_digest([*pairs.captions_of(i), *group])
