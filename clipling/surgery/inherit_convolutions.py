"""Layouts of convolutional towers: open_clip's ModifiedResNet, and timm's EfficientNets and MobileNets."""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.layers import DropPath
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, EdgeResidual, InvertedResidual, UniversalInvertedResidual
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipling.errors import UserError
from clipling.models.convolutions import SubsampledConv2d
from clipling.surgery.shapes import EMBED, FIXED, Axis, Layout


class _Rules:
    """Collects the rules of a tower while it is walked through in the order of its forward pass."""

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower
        self.layout = Layout({})

    def conv(self, name: str, out: str, into: str | None, norm: str | None = None) -> str:
        """A convolution from the channels `into` (None: RGB) to `out`, and the normalisation after it; returns `out`.

        A depthwise one has a filter a channel, so it keeps the channels `into`.
        """
        module = self.tower.get_submodule(name)
        if module.groups == 1:
            first = (Axis(out), Axis(into))
        elif module.groups == module.in_channels == module.out_channels:
            first, out = (Axis(into), FIXED), into
        else:
            raise UserError(f"inheritance does not know convolutions in groups ({name} has {module.groups})")
        self.layout.axes |= {f"{name}.weight": (*first, FIXED, FIXED), f"{name}.bias": (Axis(out),)}
        if norm is not None:
            self.norm(norm, out)
            if isinstance(self.tower.get_submodule(norm), _BatchNorm):
                self.layout.folds[f"{name}.weight"] = norm
        return out

    def norm(self, name: str, units: str) -> None:
        self.layout.axes |= {f"{name}.{part}": (Axis(units),) for part in ("weight", "bias", "running_mean", "running_var")}
        self.layout.axes[f"{name}.num_batches_tracked"] = ()

    def linear(self, name: str, rows: Axis, columns: Axis) -> None:
        self.layout.axes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def squeeze(self, block: str, units: str) -> None:
        """Squeeze-and-excite over the channels `units`, where the block has it."""
        if not isinstance(self.tower.get_submodule(f"{block}se"), nn.Identity):
            self.conv(f"{block}se.conv_reduce", f"{block}squeezed", units)
            self.conv(f"{block}se.conv_expand", units, f"{block}squeezed")


def resnet(tower: ModifiedResNet) -> Layout:
    """The layout of CLIP's ResNet: three convolutions, four stages of bottlenecks, attention pooling."""
    rules = _Rules(tower)
    layout = rules.layout
    channels = rules.conv("conv1", "stem1", None, "bn1")
    channels = rules.conv("conv2", "stem2", channels, "bn2")
    channels = rules.conv("conv3", "stem3", channels, "bn3")
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks = [f"{stage}.{i}." for i in range(len(getattr(tower, stage)))]
        for p in blocks:
            if tower.get_submodule(p[:-1]).downsample is not None:
                rules.conv(f"{p}downsample.0", stage, channels, f"{p}downsample.1")
            inner = rules.conv(f"{p}conv1", f"{p}narrow", channels, f"{p}bn1")
            inner = rules.conv(f"{p}conv2", f"{p}middle", inner, f"{p}bn2")
            channels = rules.conv(f"{p}conv3", stage, inner, f"{p}bn3")
        layout.stages.append(blocks)
    pool = tower.attnpool
    heads = Axis("attnpool.heads", 1, pool.q_proj.out_features // pool.num_heads)
    layout.axes["attnpool.positional_embedding"] = (FIXED, Axis(channels))
    for name in ("q_proj", "k_proj", "v_proj"):
        rules.linear(f"attnpool.{name}", heads, Axis(channels))
    rules.linear("attnpool.c_proj", Axis(EMBED), heads)
    layout.grid = ("attnpool.positional_embedding", tower.image_size // 32)
    return layout


def mobile(tower: TimmModel) -> Layout:
    """The layout of timm's EfficientNets and MobileNets of inverted residual blocks."""
    trunk = tower.trunk
    rules = _Rules(tower)
    layout = rules.layout
    channels = rules.conv("trunk.conv_stem", "stem", None, "trunk.bn1")
    for s, stage in enumerate(trunk.blocks):
        prefixes = [f"trunk.blocks.{s}.{b}." for b in range(len(stage))]
        for p, block in zip(prefixes, stage):
            layout.kinds[p], layout.skips[p] = parts(block), block.has_skip
            # What is added to the input has the input's channels; otherwise the first block gives the stage its own.
            out = channels if block.has_skip else f"trunk.blocks.{s}" if p == prefixes[0] else f"{p}out"
            channels = _block(rules, p, block, channels, out)
        layout.stages.append(prefixes)
    layout.kinds[""] = parts(trunk, outside="blocks")
    norm = next((name for name in ("trunk.norm_head", "trunk.bn2") if hasattr(trunk, name.removeprefix("trunk."))), None)
    channels = rules.conv("trunk.conv_head", "features", channels, norm)
    rules.linear("trunk.classifier", Axis(EMBED), Axis(channels))
    rules.linear("head.proj", Axis(EMBED), Axis(channels))
    rules.linear("head.mlp.fc1", Axis("projection"), Axis(channels))
    rules.linear("head.mlp.fc2", Axis(EMBED), Axis("projection"))
    return layout


def _block(rules: _Rules, p: str, block: nn.Module, into: str, out: str) -> str:
    """The rules of one block from the channels `into` to `out`, which it returns."""
    kind = type(block)
    if kind is ConvBnAct:
        return rules.conv(f"{p}conv", out, into, f"{p}bn1")
    if kind is DepthwiseSeparableConv:
        rules.conv(f"{p}conv_dw", into, into, f"{p}bn1")
        rules.squeeze(p, into)
        return rules.conv(f"{p}conv_pw", out, into, f"{p}bn2")
    if kind is InvertedResidual:
        wide = rules.conv(f"{p}conv_pw", f"{p}expanded", into, f"{p}bn1")
        rules.conv(f"{p}conv_dw", wide, wide, f"{p}bn2")
        rules.squeeze(p, wide)
        return rules.conv(f"{p}conv_pwl", out, wide, f"{p}bn3")
    if kind is EdgeResidual:
        wide = rules.conv(f"{p}conv_exp", f"{p}expanded", into, f"{p}bn1")
        rules.squeeze(p, wide)
        return rules.conv(f"{p}conv_pwl", out, wide, f"{p}bn2")
    if kind is UniversalInvertedResidual:
        return _universal(rules, p, block, into, out)
    raise UserError(f"inheritance does not know timm's block {kind.__name__}")


def _universal(rules: _Rules, p: str, block: UniversalInvertedResidual, into: str, out: str) -> str:
    """MobileNetV4's block: depthwise convolutions before, within and after the expansion, each optional."""
    if not isinstance(block.dw_start, nn.Identity):
        rules.conv(f"{p}dw_start.conv", into, into, f"{p}dw_start.bn")
    wide = rules.conv(f"{p}pw_exp.conv", f"{p}expanded", into, f"{p}pw_exp.bn")
    if not isinstance(block.dw_mid, nn.Identity):
        rules.conv(f"{p}dw_mid.conv", wide, wide, f"{p}dw_mid.bn")
    rules.squeeze(p, wide)
    rules.conv(f"{p}pw_proj.conv", out, wide, f"{p}pw_proj.bn")
    if not isinstance(block.dw_end, nn.Identity):
        rules.conv(f"{p}dw_end.conv", out, out, f"{p}dw_end.bn")
    rules.layout.axes[f"{p}layer_scale.gamma"] = (Axis(out),)
    return out


def parts(module: nn.Module, outside: str = "\0") -> list[Any]:
    """What a block is made of, but for its widths: two blocks of equal parts compute the same with the same weights."""
    found: list[Any] = []
    for name, part in module.named_modules():
        if name.startswith(outside) or (next(part.children(), None) is not None and not isinstance(part, _BatchNorm)):
            continue
        if isinstance(part, nn.Conv2d):
            kind = nn.Conv2d if isinstance(part, SubsampledConv2d) else type(part)
            found.append((kind.__name__, part.kernel_size, part.stride, part.padding))
        elif not isinstance(part, nn.Identity | nn.Dropout | DropPath):
            found.append((type(part).__name__, getattr(part, "eps", None)))
    return found
