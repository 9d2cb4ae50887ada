"""The catalogue of an index: one SQLite file, the single truth about what is indexed.

A *picture* is content: the bytes of a file, known by their hash, with its embedding and thumbnail. A *file* is a place
where such bytes are. Files that are equal share one picture; a file that was renamed finds its picture again. Picture
numbers are never given twice, so what is derived from them (the HNSW file, thumbnails that a browser keeps) never
means another picture.

Every change is one transaction of SQLite's rollback journal: a kill at any instant leaves the state before it or after it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipling.errors import UserError
from clipling.store import disk_error

NAME = "catalogue.sqlite"
FORMAT = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE, width INTEGER, height INTEGER, format TEXT, embedding BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS thumbnails (picture INTEGER PRIMARY KEY, webp BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    key TEXT PRIMARY KEY, path BLOB NOT NULL, start INTEGER, size INTEGER, length INTEGER, changed INTEGER,
    picture INTEGER, problem TEXT
);
CREATE INDEX IF NOT EXISTS files_by_picture ON files (picture);
"""
_BUSY = 30.0  # seconds to wait for the other side's transaction, which takes milliseconds


@dataclass(frozen=True, slots=True)
class File:
    """A place of a picture: a whole file (`start` 0, `size` -1) or `size` bytes of a tar from `start` on.

    `path` is relative to the indexed folder, with `/` between its parts (a name that is not UTF-8 as `os.fsdecode` reads
    it; `key` is always UTF-8). `length` bytes and `changed` (nanoseconds; -1: look again) are those of the file on disk.
    """

    key: str
    path: str
    start: int
    size: int
    length: int
    changed: int

    @property
    def state(self) -> tuple[str, int, int, int, int]:
        return self.path, self.start, self.size, self.length, self.changed


class Picture(NamedTuple):
    """What is kept of the content of a file. embedding: float32 [d], unit."""

    hash: str
    width: int
    height: int
    format: str
    embedding: np.ndarray
    webp: bytes


class Shown(NamedTuple):
    """What is told of a picture: its files in order, the first of which names it."""

    id: int
    hash: str
    width: int
    height: int
    format: str
    files: list[File]


class Catalogue:
    """An open catalogue; of one thread, except that read-only ones may be shared under a lock of the caller's."""

    def __init__(self, folder: Path, write: bool = False) -> None:
        """Raises UserError when there is none (reading), or it is damaged or of another format."""
        self.path = Path(folder) / NAME
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.path.is_file():
                raise UserError(f"{folder} is not a search index. Make one: clipling search index MODEL IMAGES --out {folder}")
            self._db = _connect(self.path, write)
            if write:
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(_TABLES)
            found = self.about("format")
        except OSError as error:
            raise disk_error(error, self.path) from error
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be opened as the catalogue of a search index: {error}") from error
        if found not in (None, FORMAT):
            raise UserError(
                f"{folder} was made by another version of clipling (format {found}, this one reads {FORMAT}): index again with --overwrite"
            )

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One transaction: all of it or, by an error or a kill, nothing. Raises UserError when the disk is full."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            raise UserError(f"{self.path} cannot be written: {error}. What is in it stays; run the same command again.") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def about(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def version(self) -> int:
        """Another number once another connection has changed anything."""
        return self._db.execute("PRAGMA data_version").fetchone()[0]

    def set_about(self, values: dict[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values.items())

    def clear(self) -> None:
        """Forgets all pictures and files; their numbers stay used."""
        for table in ("files", "thumbnails", "pictures", "about"):
            self._db.execute(f"DELETE FROM {table}")

    def files(self) -> dict[str, tuple[str, int, int, int, int]]:
        """The state of every file by key."""
        rows = self._db.execute("SELECT key, path, start, size, length, changed FROM files")
        return {key: (os.fsdecode(path), *state) for key, path, *state in rows}

    def problems(self) -> list[tuple[str, str]]:
        """(key, what is wrong) of every file that is not a usable picture, by key."""
        return self._db.execute("SELECT key, problem FROM files WHERE problem IS NOT NULL ORDER BY key").fetchall()

    def known(self) -> dict[str, int]:
        """The number of every picture by the hash of its bytes."""
        return dict(self._db.execute("SELECT hash, id FROM pictures"))

    def add_picture(self, picture: Picture) -> int:
        blob = np.ascontiguousarray(picture.embedding, dtype="<f4").tobytes()
        values = (picture.hash, picture.width, picture.height, picture.format, blob)
        added = self._db.execute("INSERT INTO pictures (hash, width, height, format, embedding) VALUES (?, ?, ?, ?, ?)", values)
        self._db.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", (added.lastrowid, picture.webp))
        return int(added.lastrowid)

    def put_file(self, file: File, picture: int | None, problem: str | None = None) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (file.key, os.fsencode(file.path), *file.state[1:], picture, problem),
        )

    def drop_files(self, keys: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM files WHERE key = ?", ((key,) for key in keys))

    def drop_pictures_without_files(self) -> int:
        """Returns how many there were."""
        lost = "SELECT id FROM pictures WHERE id NOT IN (SELECT picture FROM files WHERE picture IS NOT NULL)"
        self._db.execute(f"DELETE FROM thumbnails WHERE picture IN ({lost})")
        return self._db.execute(f"DELETE FROM pictures WHERE id IN ({lost})").rowcount

    def count(self) -> int:
        return self._db.execute("SELECT count(DISTINCT picture) FROM files WHERE picture IS NOT NULL").fetchone()[0]

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers int64 [n] ascending, embeddings float32 [n, d]) of every picture that a file has."""
        query = "SELECT id, embedding FROM pictures WHERE id IN (SELECT picture FROM files) ORDER BY id"
        ids, blobs = [], []
        for number, blob in self._db.execute(query):
            ids.append(number)
            blobs.append(blob)
        rows = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(ids), -1) if ids else np.zeros((0, 1), np.float32)
        return np.asarray(ids, dtype=np.int64), rows

    def shown(self, numbers: Iterable[int]) -> list[Shown]:
        """What is told of these pictures, in their order; those that are not there are left out."""
        found = []
        for number in numbers:
            row = self._db.execute("SELECT hash, width, height, format FROM pictures WHERE id = ?", (number,)).fetchone()
            query = "SELECT key, path, start, size, length, changed FROM files WHERE picture = ? ORDER BY key"
            files = [File(key, os.fsdecode(path), *state) for key, path, *state in self._db.execute(query, (number,))]
            if row and files:
                found.append(Shown(number, *row, files))
        return found

    def thumbnail(self, number: int) -> bytes | None:
        row = self._db.execute("SELECT webp FROM thumbnails WHERE picture = ?", (number,)).fetchone()
        return row[0] if row else None


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    """Reading also opens for writing where it may: a journal that a kill left is rolled back by whoever comes next."""
    modes = ("rwc",) if write else ("rw", "ro")
    for mode in modes:
        try:
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return db
        except sqlite3.OperationalError:
            if mode == modes[-1]:
                raise
    raise AssertionError("no mode")
