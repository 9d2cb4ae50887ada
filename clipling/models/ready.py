"""Small pre-trained models that this machine already has: what could be had without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRANSFORMERS = "transformers"
# Small models with published weights, the strongest first (ImageNet zero-shot accuracy as their cards state it): open_clip's by
# name and tag, those of transformers by `transformers` and the hub's name.
SMALL = (
    ("MobileCLIP2-S2", "dfndr2b"),
    (TRANSFORMERS, "google/siglip-base-patch16-224"),
    ("MobileCLIP-S2", "datacompdr"),
    ("MobileCLIP-S1", "datacompdr"),
    ("MobileCLIP2-S0", "dfndr2b"),
    ("ViT-B-32-256", "datacomp_s34b_b86k"),
    ("ViT-B-32", "datacomp_xl_s13b_b90k"),
    (TRANSFORMERS, "openai/clip-vit-base-patch16"),
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B-32-quickgelu", "openai"),
    (TRANSFORMERS, "openai/clip-vit-base-patch32"),
    ("RN50-quickgelu", "openai"),
)
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
MOST = 900_000_000  # bytes of weights: what is called small here, up to a SigLIP of base size in fp32


def cached() -> dict[str, str]:
    """Small models whose weights lie in the hub's cache already: what `open_student` opens, by name. Nothing is downloaded.

    The order is a rule: first those of SMALL, in its order; then other CLIP and SigLIP of transformers of at most MOST bytes of
    weights, whose strength nobody stated here, the largest first and equal ones by name.
    """
    folders = _transformers()
    listed = [repo for kind, repo in SMALL if kind == TRANSFORMERS]
    others = sorted(folders.keys() - set(listed), key=lambda repo: (-folders[repo][1], repo))
    found = {}
    for name, tag in (*SMALL, *((TRANSFORMERS, repo) for repo in others)):
        if name != TRANSFORMERS and _has_open_clip(name, tag):
            found[f"{name}@{tag}"] = f"{name}@{tag}"
        elif name == TRANSFORMERS and tag in folders:
            found[tag] = f"{TRANSFORMERS}:{folders[tag][0]}"  # its folder: by its name the hub would be asked
    return found


def _has_open_clip(name: str, tag: str) -> bool:
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    repo = str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub") or "").strip("/")
    # Some configs name a file in the repository after its two parts.
    repo, files = "/".join(repo.split("/")[:2]), [*repo.split("/")[2:], *FILES]
    return bool(repo) and any(isinstance(try_to_load_from_cache(repo, file), str) for file in files)


def _transformers() -> dict[str, tuple[Path, int]]:
    """(folder, bytes of weights) of every CLIP and SigLIP of transformers in the hub's cache that is small, by the hub's name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    found = {}
    for repo in repos:
        revision = next((each for each in repo.revisions if "main" in each.refs), None)
        size = _size(revision.snapshot_path) if repo.repo_type == "model" and revision is not None else None
        if revision is not None and size is not None and size <= MOST:
            found[repo.repo_id] = (revision.snapshot_path, size)
    return found


def _size(folder: Path) -> int | None:
    """Bytes of the safetensors of a transformers CLIP or SigLIP; None for another folder, or one that is not all there."""
    from clipling.errors import UserError
    from clipling.models.transformers_files import CONFIG, model_type, weight_files

    if not (folder / CONFIG).is_file():
        return None
    try:
        kind: Any = model_type(folder)
        files = weight_files(folder) if kind in ("clip", "siglip") else []
        return sum(file.stat().st_size for file in files) or None
    except (UserError, OSError):  # a download that was broken off
        return None
