"""Narrower towers of timm's families, under names that timm did not have.

timm builds EfficientNet-Lite0 at one width and the MobileNets at two or three, and open_clip hands a timm tower nothing but
its name. Here each family is registered at 25 to 95 % of its channels in steps of 5 %, by timm's own builders and rounding
(the stem and the head's features keep their width where the family keeps them): `tf_efficientnet_lite0_050` and so on.
clipling registers them whenever it builds a model; stock open_clip opens a saved student with such a tower after
`import clipling.models.lite`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models.efficientnet import _gen_efficientnet_lite
from timm.models.mobilenetv3 import _gen_mobilenet_v3, _gen_mobilenet_v4
from torch import nn

PERCENT = range(25, 100, 5)


@dataclass(frozen=True)
class Family:
    """Towers that differ in their channels alone: `stem`_025 ... `stem`_095, and `full` at 100 %."""

    stem: str
    full: str
    build: Callable[..., nn.Module]  # (name, multiplier of the channels, **timm's keywords)

    def name(self, percent: int) -> str:
        return f"{self.stem}_{percent:03d}"

    def names(self) -> list[str]:
        """All widths, narrowest first."""
        return [*map(self.name, PERCENT), self.full]


def _lite0(name: str, multiplier: float, **keywords: Any) -> nn.Module:
    # As timm's tf_efficientnet_lite0: the padding and the epsilon of the weights that TensorFlow trained.
    keywords = {"bn_eps": 1e-3, "pad_type": "same", **keywords}
    return _gen_efficientnet_lite(name, channel_multiplier=multiplier, **keywords)


FAMILIES = (
    Family("tf_efficientnet_lite0", "tf_efficientnet_lite0", _lite0),
    Family("mobilenetv3_small", "mobilenetv3_small_100", _gen_mobilenet_v3),
    Family("mobilenetv3_large", "mobilenetv3_large_100", _gen_mobilenet_v3),
    Family("mobilenetv4_conv_small", "mobilenetv4_conv_small", _gen_mobilenet_v4),
)


def narrower(name: str) -> list[str]:
    """The tower `name` and those of its family that are narrower, narrowest first; empty for a tower of no family here."""
    for family in FAMILIES:
        names = family.names()
        if name in names:
            return names[: names.index(name) + 1]
    return []


def _untrained(full: str) -> dict[str, Any]:
    """timm's description of a tower without weights: its layers' names and the normalisation of its family."""
    cfg = timm.get_pretrained_cfg(full)
    kept = ("num_classes", "input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier")
    return {key: getattr(cfg, key) for key in kept}


def _entry(family: Family, percent: int) -> Callable[..., nn.Module]:
    name = family.name(percent)

    def entry(pretrained: bool = False, **keywords: Any) -> nn.Module:
        return family.build(name, percent / 100, pretrained=pretrained, **keywords)

    entry.__name__ = entry.__qualname__ = name
    return entry


_NEW = [(family, percent) for family in FAMILIES for percent in PERCENT if not timm.is_model(family.name(percent))]
# timm's registry looks for this name in the module of the functions that it is given.
default_cfgs = generate_default_cfgs({f"{family.name(percent)}.untrained": _untrained(family.full) for family, percent in _NEW})
for _family, _percent in _NEW:
    register_model(_entry(_family, _percent))
