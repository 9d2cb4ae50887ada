"""Are our zero-shot numbers CLIP_benchmark's? The same model, Flickr8k dev and CIFAR-10, each by its own code.

    python benchmarks/compression_curve.py             first: its teacher is the model (default; any of open_clip's own towers will do)
    python benchmarks/zero_shot_parity.py --peer PYTHON_WITH_CLIP_BENCHMARK

The other side runs in its own environment (see benchmarks/peers/zero_shot.py) and shares nothing with ours but the folder of the
model. Differences are fractions; 1e-4 is a tenth of one picture of Flickr8k dev.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import FLICKR, load, save
from compression_curve import VIT
from teacher import DEV

from clipling.assess import assess
from clipling.store import read_json

NAMES = {
    f"{theirs}@{k}": f"{ours}@{k}"
    for ours, theirs in (("i2t_recall", "text_retrieval_recall"), ("t2i_recall", "image_retrieval_recall"))
    for k in (1, 5, 10)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the Python of an environment with clip-benchmark")
    parser.add_argument("--model", default=str(VIT), help="a run of ours")
    given = parser.parse_args()
    cifar = FLICKR.parent / "cifar10"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        script = Path(__file__).resolve().parent / "peers" / "zero_shot.py"
        subprocess.run(
            [given.peer, str(script), str(Path(given.model) / "model"), DEV, str(cifar), str(out)],
            check=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        theirs = read_json(out)
    ours = {"retrieval": assess(given.model, DEV)["metrics"], "classification": assess(given.model, str(cifar))["metrics"]}
    result = load("zero_shot_parity")
    result["arms"] = {
        "clipling": {name: [value] for part in ours.values() for name, value in part.items() if name not in NAMES},
        "CLIP_benchmark": {
            NAMES.get(name, name): [value] for part in ("retrieval", "classification") for name, value in theirs[part].items()
        },
    }
    both = result["arms"]["CLIP_benchmark"]
    result["differences"] = {name: result["arms"]["clipling"][name][0] - value[0] for name, value in both.items()}
    result["largest_difference"] = max(map(abs, result["differences"].values()))
    result["peer"] = theirs["versions"]
    save(result)
    print(result["arms"], result["differences"], sep="\n")


if __name__ == "__main__":
    main()
