"""CLIP_benchmark's own functions on one model, with nothing of clipling: run in an environment of its own.

    python -m venv peer && peer/bin/pip install clip-benchmark torch torchvision
    peer/bin/python benchmarks/peers/zero_shot.py MODEL_FOLDER PAIRS.tar CLASSES_FOLDER OUT.json

MODEL_FOLDER: open_clip's layout. PAIRS.tar: webdataset with `.jpg` and `.json` ({"caption": [...]}). CLASSES_FOLDER: CLIP_benchmark's.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from clip_benchmark.models.open_clip import load_open_clip
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Tar(Dataset):
    """(transformed picture, its captions) of every pair, as CLIP_benchmark's retrieval datasets yield them."""

    def __init__(self, path: str, transform) -> None:
        self.rows: list[tuple[bytes, list[str]]] = []
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        for name in sorted(name for name in files if name.endswith(".jpg")):
            self.rows.append((files[name], json.loads(files[name.removesuffix(".jpg") + ".json"])["caption"]))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        data, captions = self.rows[i]
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB")), captions


def collate(batch):
    return torch.stack([picture for picture, _ in batch]), [captions for _, captions in batch]


def main() -> None:
    folder, pairs, classes, out = sys.argv[1:]
    torch.set_num_threads(1)
    model, transform, tokenizer = load_open_clip(f"local-dir:{folder}", pretrained=None, device="cpu")
    model.eval()
    made = {}
    loader = DataLoader(Tar(pairs, transform), batch_size=100, collate_fn=collate)
    made["retrieval"] = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    data = build_dataset("wds/" + Path(classes).name, root=classes, transform=transform, split="test", download=False)
    loader = DataLoader(data, batch_size=100)
    found = zeroshot_classification.evaluate(model, loader, tokenizer, data.classes, data.templates, "cpu", amp=False)
    made["classification"] = {name: found[name] for name in ("acc1", "acc5", "mean_per_class_recall")}
    made["versions"] = {name: version(name) for name in ("clip-benchmark", "open-clip-torch", "torch", "torchvision")}
    Path(out).write_text(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
