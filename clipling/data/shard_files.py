"""The shards of a reinforced source as files: their names, the small file beside each, and whether the bytes are those written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clipling.errors import UserError
from clipling.store import write_json

MANIFEST = "reinforced.json"


@dataclass(frozen=True)
class ShardFile:
    """What was written of one tar: `00000.json` beside `00000.tar`. A tar without it is not done.

    checksum: blake2b of 128 bits of the tar. picture_bytes: of its pictures alone. left_out: [key, reason] of pairs whose picture could not
    be read. captions: how many synthetic ones by origin. errors: what storing changed, by the name of the rows (packing.error). made_from:
    digest of everything that the tar was made from, "" where it is not said.
    """

    checksum: str
    bytes: int
    pairs: int
    picture_bytes: int = 0
    left_out: list[list[str]] = field(default_factory=list)
    captions: dict[str, int] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    made_from: str = ""

    @property
    def asked(self) -> int:
        """Pairs that it was made from, those left out included."""
        return self.pairs + len(self.left_out)

    @classmethod
    def beside(cls, tar: Path) -> ShardFile | None:
        """What is said of a tar; None where nothing is said or the tar has another length."""
        try:
            found = cls(**json.loads(tar.with_suffix(".json").read_text(encoding="utf-8")))
            return found if tar.stat().st_size == found.bytes else None
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def of(cls, folder: Path, number: int) -> ShardFile | None:
        return cls.beside(folder / shard_name(number))


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def write_shard_file(tar: Path, said: ShardFile) -> None:
    write_json(tar.with_suffix(".json"), asdict(said))


def bytes_digest(path: Path) -> str:
    """Hexadecimal blake2b of 128 bits of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def refuse_damaged(tar: Path) -> None:
    """Raises UserError when a tar is not what was written, as far as something is said of it."""
    said = tar.with_suffix(".json")
    if not said.is_file():
        return
    found = ShardFile.beside(tar)
    if found is None or bytes_digest(tar) != found.checksum:
        raise UserError(
            f"the shard {tar.name} in {tar.parent} is not what was written (its checksum differs): it was damaged or changed. "
            "Run the same `clipling reinforce` command again with --check: this shard alone is made anew."
        )
