"""One arm of `clipling latency` in a process of its own, so that its memory is its own: answers requests, one JSON object a line.

{"do": "open", "arm": {...}, "threads": 1}                  -> {"gflops": ..., "file_mb": ..., "text": ...}
{"do": "run", "side": "image", "batch": 16, "calls": 3}     -> {"ms": [...], "cpu_ms": [...]}
{"do": "memory"}                                            -> {"peak_mb": ...}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipling.errors import UserError

CAPTION = "two dogs run over the wet sand of a beach"  # ten words
Call = Callable[[np.ndarray], Any]


def main() -> None:
    """Until the input ends. What the libraries print goes to stderr: stdout is for answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    arm: Arm | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                arm = opened(request["arm"], request["threads"])
                answer: dict[str, Any] = arm.about
            elif request["do"] == "run":
                answer = arm.run(request["side"], request["batch"], request["calls"])
            else:
                answer = {"peak_mb": peak_mb()}
        except UserError as error:
            answer = {"error": str(error)}
        except Exception as error:  # told to the parent, which says which arm it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Arm:
    """Two calls, `image` on uint8 [n, s, s, 3] and `text` on int64 [n, L], and inputs for them."""

    def __init__(self, image: Call, text: Call, size: int, tokens: np.ndarray, about: dict[str, Any]) -> None:
        self.calls = {"image": image, "text": text}
        self.about = about
        self.rows = {"image": np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8), "text": tokens}

    def run(self, side: str, batch: int, calls: int) -> dict[str, list[float]]:
        """Milliseconds of each of `calls` calls: of the clock, and of the processor (all threads)."""
        rows = np.repeat(self.rows[side], batch, axis=0)
        spent: dict[str, list[float]] = {"ms": [], "cpu_ms": []}
        for _ in range(calls):
            cpu, began = time.process_time(), time.perf_counter()
            self.calls[side](rows)
            spent["ms"].append(1000 * (time.perf_counter() - began))
            spent["cpu_ms"].append(1000 * (time.process_time() - cpu))
        return spent


def opened(arm: dict[str, Any], threads: int) -> Arm:
    """arm: {"backend": "onnx", "folder": ..., "precision": ...}, or {"backend": "torch", "model" or "reference": ...}."""
    return _onnx(Path(arm["folder"]), arm["precision"], threads) if arm["backend"] == "onnx" else _torch(arm, threads)


def _onnx(folder: Path, precision: str, threads: int) -> Arm:
    from clipling.runtime.manifest import read_manifest
    from clipling.runtime.sessions import open_session
    from clipling.runtime.tokens import Tokens

    manifest = read_manifest(folder)
    paths = {side: folder / getattr(manifest, side).files[precision] for side in ("image", "text")}
    sessions = {side: open_session(path, threads) for side, path in paths.items()}
    tokens = Tokens(folder, manifest.text)([CAPTION])
    return Arm(
        lambda rows: sessions["image"].run(["embedding"], {"pixels": rows}),
        lambda rows: sessions["text"].run(["embedding"], {"tokens": rows}),
        manifest.image.size,
        tokens,
        {"file_mb": {side: path.stat().st_size / 1e6 for side, path in paths.items()}, "size": manifest.image.size},
    )


def _torch(arm: dict[str, Any], threads: int) -> Arm:
    import torch

    from clipling.deploy.reference import reference_student
    from clipling.models.hub import open_student

    torch.set_num_threads(threads)
    student = (reference_student(arm["reference"]) if "reference" in arm else open_student(arm["model"])).eval()
    tokens = student.tokenise([CAPTION]).numpy()

    def image(rows: np.ndarray) -> Any:
        with torch.inference_mode():
            return student.encode_image(student.normalise(torch.from_numpy(rows).permute(0, 3, 1, 2)))

    def text(rows: np.ndarray) -> Any:
        with torch.inference_mode():
            return student.encode_text(torch.from_numpy(rows))

    size = {side: _bytes(getattr(student.model, name)) / 1e6 for side, name in (("image", "visual"), ("text", "text"))}
    return Arm(image, text, student.image_size, tokens, {"file_mb": size, "size": student.image_size})


def _bytes(module: Any) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def peak_mb() -> float:
    """The most memory that this process ever held, in 1e6 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: on Linux its maximum is inherited from the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


if __name__ == "__main__":
    main()
