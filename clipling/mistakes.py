"""How a program of ours ends: a user's mistake in one line, no traceback. For `clipling <verb>`, and for scripts such as the examples."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from clipling.errors import UserError, missing_extra

USERS, INTERRUPTED = 2, 130
# The extra that brings each package which a plain `pip install clipling` leaves out.
EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "open_clip", "safetensors", "pyarrow", "sklearn", "scipy", "matplotlib", "psutil"), "train"
    ),
    **dict.fromkeys(("transformers", "sentence_transformers"), "guides"),
    **dict.fromkeys(("onnxruntime", "tokenizers", "ftfy"), "runtime"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
    **dict.fromkeys(("fsspec", "aiohttp"), "remote"),
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "usearch", "python_multipart"), "serve"),
}


def ending(program: str, call: Callable[[], int], needs: str = "this verb") -> int:
    """The exit code of `call`: its own, 2 after a user's mistake, 130 after Ctrl-C, each said in one line on the error stream."""
    try:
        return call()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return USERS
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        print(f"{program}: {missing_extra(f'the package {package!r}, which {needs} needs,', EXTRA_OF[package])}", file=sys.stderr)
        return USERS
    except KeyboardInterrupt as stopped:
        print(f"\n{program}: stopped. {stopped}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def script(main: Callable[..., Any]) -> None:
    """Runs `main` with the words of the command line and exits. Where they do not fit, its module's docstring says how to call it."""

    def call() -> int:
        words = sys.argv[1:]
        try:
            inspect.signature(main).bind(*words)
        except TypeError as error:
            said = (sys.modules[main.__module__].__doc__ or "").strip()
            raise UserError(f"{error}\n\n{said}\n\narguments: {_words(main)}") from None
        main(*words)
        return 0

    sys.exit(ending(os.path.basename(sys.argv[0]), call, "this script"))


def _words(main: Callable[..., Any]) -> str:
    """`source [out=runs/x] [settings ...]` of the parameters."""
    made = []
    for name, one in inspect.signature(main).parameters.items():
        optional = f"[{name}]" if one.default in (None, "") else f"[{name}={one.default}]"
        made.append(f"[{name} ...]" if one.kind is one.VAR_POSITIONAL else name if one.default is one.empty else optional)
    return " ".join(made)
