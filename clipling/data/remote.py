"""Files that are not on this machine, by fsspec: pictures fetched with retries and limits, files copied once and resumed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from clipling.data.reading import is_url
from clipling.data.shards import expand_braces
from clipling.errors import UserError, missing_extra
from clipling.store import atomic_write, disk_error

CHUNK = 2**20
_GONE = (FileNotFoundError, PermissionError, IsADirectoryError)


class FetchError(Exception):
    """A picture that could not be fetched: `kind` groups it with others, the message says why."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Fetch:
    """How links are fetched: seconds for one attempt, attempts after the first, and the most bytes of one picture."""

    timeout: float = 20.0
    retries: int = 2
    most_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.retries < 0 or self.most_bytes < 1:
            raise UserError(
                f"timeout {self.timeout}, retries {self.retries}, most bytes {self.most_bytes}: expected a positive number of seconds, "
                "0 or more attempts, 1 or more bytes"
            )

    def read(self, url: str) -> bytes:
        """The bytes behind a link. Raises FetchError after the last attempt, at once for what is not there or is too large."""
        return self._retried(lambda: self._once(url))

    def state(self, url: str) -> dict[str, Any]:
        """What tells one version of a remote file from another: `url`, `size` (None where its server does not say) and marks.

        Raises FetchError when it is not there.
        """
        fs, name = filesystem(url, self.timeout)
        return self._retried(lambda: _state(fs, name))

    def copy(self, url: str, path: Path, progress: Callable[[int, int], Any] | None = None, state: dict[str, Any] | None = None) -> Path:
        """Copies a file to `path` and returns it; what an earlier call that was killed has got is not fetched again.

        state: as of `state`, where it was asked for before.
        Raises UserError when the disk is full, FetchError when the file cannot be fetched.
        """
        if path.is_file():
            return path
        fs, name = filesystem(url, self.timeout)
        part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
        state = self.state(url) if state is None else state
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (state["size"] and about.is_file() and about.read_text() == json.dumps(state)):
            part.unlink(missing_ok=True)  # another version of the file, or one that cannot be told from another
            atomic_write(about, json.dumps(state))
        failed = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _continue(fs, name, part, state["size"], progress)
                break
            except Exception as error:
                failed = 0 if part.exists() and part.stat().st_size > before else failed + 1
                self._give_up(error, failed, part)
                if not state["size"]:
                    part.unlink(missing_ok=True)
        os.replace(part, path)
        about.unlink(missing_ok=True)
        return path

    def _give_up(self, error: Exception, failed: int, part: Path) -> None:
        """Raises what a failed attempt ends in; returns, after a pause, where another attempt is due."""
        if isinstance(error, OSError) and error.errno and isinstance(mended := disk_error(error, part), UserError):
            raise mended from error
        if failed > self.retries or isinstance(error, _GONE):
            raise FetchError(*_reason(error)) from error
        _pause(failed)

    def _retried(self, attempt: Callable[[], Any]) -> Any:
        for number in range(self.retries + 1):
            try:
                return attempt()
            except (UserError, FetchError):
                raise
            except Exception as error:
                if number == self.retries or isinstance(error, _GONE):
                    raise FetchError(*_reason(error)) from error
            _pause(number)

    def _once(self, url: str) -> bytes:
        fs, name = filesystem(url, self.timeout)
        # Of http the body is streamed: no question for its size before, which not every server answers.
        options = {"block_size": 0, "size": 1} if _http(url) else {}
        parts, total, deadline = [], 0, time.monotonic() + self.timeout
        with fs.open(name, "rb", **options) as file:
            while data := file.read(min(CHUNK, self.most_bytes + 1 - total)):
                parts.append(data)
                total += len(data)
                if total > self.most_bytes:
                    raise FetchError("too large", f"more than {self.most_bytes:,} bytes")
                if time.monotonic() > deadline:  # a server that drips never times out by itself
                    raise TimeoutError
        return b"".join(parts)


def filesystem(url: str, timeout: float = 20.0) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a link. Raises UserError where a package is missing, or no such kind of link is known."""
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    try:
        import fsspec

        if _http(url):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
            }
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if error.name in ("fsspec", "aiohttp"):
            raise missing_extra(f"the package {error.name!r}, which reads {scheme}:// links,", "remote") from error
        raise UserError(f"{scheme}:// links need one more package: {error}") from error
    except ValueError as error:
        raise UserError(f"{url[:300]}: {error}. Known are https://, s3://, gs://, hf:// and what else fsspec reads") from error


def remote_files(part: str, timeout: float = 20.0) -> list[str]:
    """The links of the files of one remote source: itself, its brace range, what fits its pattern, or the tars or tables in a folder.

    Raises UserError when there are none, or the place cannot be listed.
    """
    urls = [part] if _http(part) and "{" not in part else expand_braces(part)
    if len(urls) > 1 or (suffix_of(part) and "*" not in part):
        return urls
    fs, name = filesystem(part, timeout)
    found: list[str] = []
    try:
        if "*" in part:
            found = sorted(fs.glob(name))
        elif not _http(part):
            for pattern in ("*.tar", "*.parquet", "data/*.parquet"):
                found = found or sorted(fs.glob(f"{name.rstrip('/')}/{pattern}"))
    except Exception as error:
        raise UserError(f"{part} cannot be listed: {_reason(error)[1]}") from error
    if not found:
        raise UserError(f"{part}: no file is found there. Give links of files, such as {part.rstrip('/')}/{{00000..00009}}.tar")
    return [fs.unstrip_protocol(path) for path in found]


def suffix_of(url: str) -> str:
    """`.tar` of `https://x.org/a.tar?version=2`; empty for a folder."""
    return PurePosixPath(urlsplit(url).path).suffix.lower()


def split_remote(spec: str) -> tuple[list[str], list[str]]:
    """(parts on this machine, remote parts) of a spec."""
    parts = [part.strip() for part in spec.split("::")]
    return [part for part in parts if not is_url(part)], [part for part in parts if is_url(part)]


def _http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _pause(failed: int) -> None:
    time.sleep(min(30.0, 0.2 * 4**failed))


def _state(fs: Any, name: str) -> dict[str, Any]:
    """What tells one version of a remote file from another; no size where its server does not say."""
    try:
        info = fs.info(name)
    except FileNotFoundError as error:
        # fsspec says so of every failure over http: a server that hangs or is overloaded is worth another attempt.
        why = error.__cause__
        if why is None or isinstance(why, _GONE) or 400 <= getattr(why, "status", 0) < 500:
            raise
        raise why from None
    marks = ("ETag", "etag", "mtime", "LastModified", "last_modified", "md5Hash", "created")
    return {"url": name, "size": info.get("size"), **{mark: str(info[mark]) for mark in marks if mark in info}}


def _continue(fs: Any, name: str, part: Path, size: int | None, progress: Callable[[int, int], Any] | None) -> None:
    """Appends to `part` what it lacks. Raises what the file system raises, and OSError when the file ends too early."""
    start = part.stat().st_size if part.exists() else 0
    with open(part, "ab") as out:
        if size is None:
            with fs.open(name, "rb", **({"block_size": 0, "size": 1} if _http(name) else {})) as file:
                shutil.copyfileobj(file, out, CHUNK)
        while size is not None and start < size:
            stop = min(size, start + 8 * CHUNK)
            data = fs.cat_file(name, start=start, end=stop)
            if len(data) == size:
                data = data[start:]  # a server that knows no ranges sends the whole file
            elif not data or len(data) > stop - start:
                raise OSError(f"{name}: asked for the bytes {start} to {stop} of {size}, the server sent {len(data)}")
            out.write(data)
            out.flush()
            start += len(data)
            if progress:
                progress(start, size)
        os.fsync(out.fileno())


def _reason(error: BaseException) -> tuple[str, str]:
    """(kind, detail) of a failure."""
    if isinstance(error, FileNotFoundError):
        return "not there", f"not there: {error}"[:300]
    if isinstance(error, TimeoutError) or "imeout" in type(error).__name__:
        return "timed out", "no answer in time"
    return "not fetched", f"{type(error).__name__}: {error}"[:300]
