"""The place of an exported folder: it appears whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from clipling.errors import UserError
from clipling.runtime.manifest import NAME
from clipling.store import disk_error

EXPORTED = (NAME, "gate.json", "README.md", "tokenizer.json", "kit", "image*.onnx", "text*.onnx")


def check_place(out: Path, overwrite: bool, mark: str = NAME, made: Sequence[str] = EXPORTED) -> None:
    """UserError when `out` is not free, or may not be replaced: only exported folders are, known by their file `mark`, and only where
    nothing else lies in them. made: patterns of the names that an export makes."""
    if out.is_symlink() and not out.exists():
        raise UserError(f"{out} is a link to {os.readlink(out)}, which does not exist. Mend the link, or choose another --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / mark).is_file():
        raise UserError(f"{out} exists and is no exported folder (it holds no {mark}). Choose another --out.")
    if not overwrite:
        raise UserError(f"{out} is an exported folder already. Use --overwrite to replace it, or another --out.")
    strange = sorted(path.name for path in out.iterdir() if not any(fnmatch(path.name, pattern) for pattern in made))
    if strange:
        raise UserError(f"--overwrite: {out} holds what no export made ({', '.join(strange[:5])}). Move it, or choose another --out.")


@contextlib.contextmanager
def made_whole(out: Path, overwrite: bool = False, mark: str = NAME, made: Sequence[str] = EXPORTED) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and vanishes otherwise. Of a link, what it leads
    to is replaced."""
    check_place(out, overwrite, mark, made)
    out = Path(os.path.realpath(out))
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    old = out.parent / f".{out.name}.{secrets.token_hex(4)}.old"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_place(out, overwrite, mark, made)
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
    except OSError as error:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
