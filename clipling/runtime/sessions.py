"""onnxruntime sessions on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipling.errors import UserError, missing_extra

MOST_THREADS = 256


def open_session(path: Path, threads: int | None = None, deterministic: bool = False) -> Any:
    """An `onnxruntime.InferenceSession` of a graph; UserError where the file is broken.

    threads: of one operator (None: all cores). deterministic: the same bits on every call, at some cost.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime, which runs exported models,", "runtime") from error
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UserError(f"threads is {threads!r}; expected a number of 1 or more, or None for all cores")
    if threads is not None and threads > MOST_THREADS:
        raise UserError(f"threads is {threads}; expected at most {MOST_THREADS}, or None for all cores")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.use_deterministic_compute = deterministic
    options.log_severity_level = 3  # warnings are about the graph, and nothing that a user could mend
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no other parent
        raise UserError(f"{path} is not a graph that onnxruntime {onnxruntime.__version__} runs: {str(error).strip()}") from error
