"""What tells one model from another: a hash over all that decides what it says."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

from clipling.models.dual import Student
from clipling.models.hub import TEXT_FILES


def state_hash(student: Student) -> str:
    """SHA-256 over names and values of all weights, for models that were not read from a file of ours."""
    digest = hashlib.sha256()
    for name, value in sorted(student.stock_state().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def model_hash(student: Student, weights: str = "") -> str:
    """SHA-256 over all that decides what a model says: weights (`weights`: their hash, where it is known), config and tokenizer files.

    The same weights with other heads, another activation or other preprocessing are another model. Folders are named by their last
    part, so that the hash of a model is the same wherever it lies.
    """
    config = copy.deepcopy({key: student.config.get(key) for key in ("model_cfg", "preprocess_cfg", "pruned")})
    text = config["model_cfg"]["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if text.get(key):
            text[key] = Path(text[key]).name
    digest = hashlib.sha256((weights or state_hash(student)).encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name in TEXT_FILES if student.text_folder is not None else ():
        path = student.text_folder / name
        if path.is_file():
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()
