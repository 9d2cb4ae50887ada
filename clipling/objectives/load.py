"""Opens a class or function by name, from an installed module or from a user's own file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from clipling.errors import UserError, near

USER_MODULE = "clipling_user_"  # how the modules of users' files are called in sys.modules


def load_object(spec: str) -> Any:
    """The object that `spec` names: "package.module:Name" or "path/to/file.py:Name".

    A file is executed once per content, its folder is importable from it as when it is run by hand. Raises UserError when
    the file or the name is missing (with near matches) or when importing fails (with the line of the user's file).
    """
    where, name = _split(spec)
    module = _from_file(Path(where)) if where.endswith(".py") else _from_module(where, spec)
    if not name:
        raise UserError(f"{spec!r} does not say what to take from it: write {where}:NAME. {_offers(module)}")
    if not hasattr(module, name):
        offers = _names(module)
        raise UserError(f"{where} has no {name!r}. " + (near(name, offers) if offers else _offers(module)))
    return getattr(module, name)


def _split(spec: str) -> tuple[str, str]:
    # from the right: a Windows path has a colon of its own
    where, colon, name = spec.rpartition(":")
    return (where, name) if colon and not name.endswith(".py") else (spec, "")


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: expected 'file.py:NAME' with a path from {Path.cwd()} or an absolute one")
    path = path.resolve()
    content = path.read_bytes()
    digest = hashlib.blake2b(str(path).encode() + content, digest_size=6).hexdigest()
    known = f"{USER_MODULE}{path.stem}_{digest}"
    if known in sys.modules:
        return sys.modules[known]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    found = importlib.util.spec_from_file_location(known, path)
    module = importlib.util.module_from_spec(found)
    sys.modules[known] = module  # before it runs: dataclasses and pickle look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[known]
        raise UserError(f"{path} cannot be imported: {explain(error, path)}") from error
    return module


def _from_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {error.name!r} (in {spec!r}): expected 'package.module:NAME' or 'file.py:NAME'") from error
        raise UserError(f"{name} cannot be imported: {explain(error)}") from error


def explain(error: BaseException, path: Path | None = None) -> str:
    """One line for an exception: its type, its message, and the last line of `path` (or of any file) that led to it."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return said  # names its own line
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is not None and Path(frame.filename) == path]
    if own or frames:
        frame = (own or frames)[-1]
        said += f" (line {frame.lineno} of {Path(frame.filename).name}: {frame.line})"
    return said


def _names(module: ModuleType) -> list[str]:
    """Public classes and functions that the module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _offers(module: ModuleType) -> str:
    names = _names(module)
    return f"It defines {', '.join(names)}." if names else "It defines no public class or function."
