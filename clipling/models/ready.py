"""Small pre-trained models that this machine already has: what could be had without training."""

from __future__ import annotations

# open_clip names of small models with published weights, the strongest first (ImageNet zero-shot accuracy as their cards state it).
SMALL = (
    ("MobileCLIP2-S2", "dfndr2b"),
    ("MobileCLIP-S2", "datacompdr"),
    ("MobileCLIP-S1", "datacompdr"),
    ("MobileCLIP2-S0", "dfndr2b"),
    ("ViT-B-32-256", "datacomp_s34b_b86k"),
    ("ViT-B-32", "datacomp_xl_s13b_b90k"),
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B-32-quickgelu", "openai"),
    ("RN50-quickgelu", "openai"),
)
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def cached() -> list[str]:
    """`NAME@TAG` of those small models whose weights lie in the hub's cache already, the strongest first. Nothing is downloaded."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    found = []
    for name, tag in SMALL:
        repo = str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub") or "").strip("/")
        # Some configs name a file in the repository after its two parts.
        repo, files = "/".join(repo.split("/")[:2]), [*repo.split("/")[2:], *FILES]
        if repo and any(isinstance(try_to_load_from_cache(repo, file), str) for file in files):
            found.append(f"{name}@{tag}")
    return found
