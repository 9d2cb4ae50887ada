"""open_clip's own training loop on a student of ours, timed between optimiser steps. Needs open_clip_torch, webdataset and pandas.

    python benchmarks/peers/open_clip_loop.py CONFIG.json 'train-{00000..00005}.tar' [--source CHECKOUT/src] [--precision amp_bf16] ...

Prints one line of JSON: the version, its parameters, and seconds and processor seconds of every step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("tars")
    parser.add_argument("--source", type=Path, help="a checkout's src folder, instead of the installed package")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.source:
        sys.path.insert(0, str(given.source))
    import open_clip
    import torch
    from open_clip_train.main import main as train
    from step_times import StepTimes

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        # open_clip names a config by its file.
        configs = Path(folder) / "configs"
        configs.mkdir()
        model_cfg = json.loads(given.config.read_text())["model_cfg"]
        (configs / "the_student.json").write_text(json.dumps(model_cfg))
        open_clip.add_model_config(configs)
        # Warm-up of 10 steps, AdamW as in clipling's recipes; every step of one long epoch, nothing evaluated or saved meanwhile.
        arguments = ["--model", "the_student", "--dataset-type", "webdataset", "--train-data", given.tars]
        arguments += ["--train-num-samples", str(given.steps * given.batch), "--batch-size", str(given.batch), "--epochs", "1"]
        arguments += ["--workers", str(given.workers), "--precision", given.precision, "--device", "cpu", "--lr", "1e-3", "--wd", "0.2"]
        arguments += ["--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--warmup", "10", "--grad-clip-norm", "1.0"]
        arguments += ["--logs", str(Path(folder) / "logs"), "--name", "run", "--save-frequency", "0", "--zeroshot-frequency", "0"]
        arguments += ["--val-frequency", "0", "--log-every-n-steps", "10"]
        times = StepTimes()
        train(arguments)
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()  # TemporaryDirectory removes it again
    print(json.dumps({"version": open_clip.__version__, "parameters": times.parameters, **times.found()}))


if __name__ == "__main__":
    main()
