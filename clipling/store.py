"""Where files go and how they are written: the cache folder, and writes that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipling.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL = 2**20  # bytes: a disk with less room than this is why a write failed


def cache_dir() -> Path:
    """The folder of everything that can be made again: indexes, pixels, banks. `CLIPLING_CACHE` moves it."""
    given = os.environ.get("CLIPLING_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("clipling", appauthor=False))


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Writes a file so that a reader, or a kill at any instant, finds the old content or the new, never a part.

    Text is written as UTF-8; parts of file names that are not UTF-8 (lone surrogates) are written as `\\udcff`.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    atomic_produce(path, lambda temporary: temporary.write_bytes(data))


def atomic_produce(path: Path | str, produce: Callable[[Path], Any]) -> None:
    """Calls `produce(temporary path)`, flushes the result to disk and renames it to `path`.

    Raises UserError when the folder is not writable or the disk is full; the temporary file is removed then.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        # Not mkstemp, whose files only their owner may read: made like any other file, under the user's umask.
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary = name
        mode = name.stat().st_mode
        produce(temporary)
        temporary.chmod(mode)  # safetensors puts a file in its place that only its owner may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path) from error
    except Exception as error:
        # torch and safetensors report a failed write by errors of their own.
        if shutil.disk_usage(path.parent).free < FULL:
            raise disk_error(OSError(errno.ENOSPC, str(error)), path) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Makes a folder where it is absent, and holds it for this process; the system lets go when the process dies, however it dies.

    doing: what it is held for, such as `packing into`. Where another process holds it: a UserError, or with `wait` a word on stderr, and a
    wait for its end. Raises UserError when the folder cannot be made. Without locks (Windows, some file systems) nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY) if fcntl else None  # the folder itself: no file of ours is left in it
    except OSError as error:
        raise disk_error(error, folder) from error
    if held is None:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise UserError(f"another process is {doing} {folder}. Wait for its end, or choose another folder.") from None
                print(f"another process is {doing} {folder}: waiting for it", file=sys.stderr)
                fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def disk_error(error: OSError, path: Path | str) -> Exception:
    """A UserError for what a user can mend (no room, no permission); otherwise the error itself."""
    cached = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(cache_dir()))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        other = ", or name a folder on another disk by the environment variable CLIPLING_CACHE," if cached else ""
        return UserError(f"no space left on the disk while writing {path}. Free some space{other} and run the same command again.")
    advice = "Name another folder by the environment variable CLIPLING_CACHE." if cached else "Choose another folder with --out."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: permission denied. {advice}")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"cannot write {path}: a file stands where a folder is needed. {advice}")
    return error


def write_json(path: Path | str, content: Any) -> None:
    """Atomic, sorted, readable JSON."""
    atomic_write(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Raises UserError when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
