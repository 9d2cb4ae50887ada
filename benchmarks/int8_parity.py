"""What int8 costs each tower: recall@10 on Flickr8k dev for models that were trained on this machine, cosine for the rest of the zoo.

    python benchmarks/zoo_students.py                           first: towers of the zoo, briefly trained (about an hour and a half)
    python benchmarks/int8_parity.py [NAME ...] [--minutes 60]

Trained: runs with a summary under runs/ (`samples`: what they saw). Their gate is that of `clipling export --precision int8 --data
flickr8k-dev`, and a refusal is a result. Towers that are too large to be trained here have random weights (batch normalisation has seen
pictures) and the gate of an export without pairs, cosines on 128 photos and captions: that says that the graphs work, and nothing of
quality. Resumable: arms that are there are kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import FLICKR, RUNS, load, save
from onnx_parity import student_of

from clipling.deploy.export import export_fp32
from clipling.deploy.gate import Finding
from clipling.deploy.precisions import add_precisions
from clipling.deploy.samples import take
from clipling.errors import UserError
from clipling.models.catalogue import zoo_names
from clipling.models.hub import open_student
from clipling.runtime.manifest import read_manifest
from clipling.store import read_json


def trained() -> dict[str, Path]:
    """Finished runs by a short name."""
    found = sorted(path.parent for path in RUNS.glob("*/**/summary.json") if (path.parent / "model").is_dir())
    return {"/".join(path.relative_to(RUNS).parts): path for path in found}


def measure(name: str, run: Path | None) -> dict[str, list[Any]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        folder.mkdir()
        export_fp32(open_student(run) if run else student_of(name), folder, name)
        samples = take(read_manifest(folder).image, data=str(FLICKR / "dev-00000.tar"))
        if run is None:
            samples = replace(samples, retrieval=None)
        try:
            found, refused = add_precisions(folder, ("int8",), samples, say=print), ""
        except UserError as error:
            found, refused = [], str(error).replace(str(FLICKR), "flickr8k")
    seen = read_json(run / "summary.json")["samples_seen"] if run else 0
    return columns(found) | {"seed": [0], "trained": [run is not None], "samples": [seen], "refused": [refused]}


def columns(found: list[Finding]) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {}
    for finding in found:
        side = finding.file.partition(".")[0]
        made |= {
            f"{side}_cosine": [finding.cosine.mean],
            f"{side}_least_cosine": [finding.cosine.least],
            f"{side}_method": [finding.settings["method"]],
        }
        made |= {f"{side}_kept_layers": [len(finding.settings["kept_fp32"])], f"{side}_mb": [finding.settings["bytes"] / 1e6]}
    for name, value in found[-1].drops.items() if found else ():
        made |= {f"{name}_fp32": [value.reference], f"{name}_int8": [value.here], f"{name}_drop": [value.drop]}
        made |= {f"{name}_drop_low": [value.low], f"{name}_drop_high": [value.high]}
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    end, runs = time.monotonic() + 60 * given.minutes, trained()
    wanted = given.names or [*runs, *(name for name in zoo_names() if f"zoo/{name}" not in runs)]
    for name in wanted:
        result = load("int8_parity")
        if name in result["arms"] or time.monotonic() > end:
            continue
        result["arms"][name] = measure(name, runs.get(name))
        result["arms"].pop(name.removeprefix("zoo/") if name.startswith("zoo/") else None, None)  # with random weights, of before
        print(name, result["arms"][name], flush=True)
        save(result)


if __name__ == "__main__":
    main()
