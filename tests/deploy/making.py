"""An exported folder of a tiny student, made once a test run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from clipling.deploy.export import export
from clipling.models.dual import Student
from tests.models.making_masks import vit


@functools.cache
def tiny_export() -> tuple[Student, Path]:
    """A student of 32-pixel pictures (shortest side resized, centre cut), every weight moved, and its exported folder. Change neither."""
    student = vit()
    student.preprocess_cfg["resize_mode"] = "shortest"
    folder = Path(tempfile.mkdtemp(prefix="clipling-export-")) / "tiny"
    export(student, folder, name="tiny")
    return student, folder
