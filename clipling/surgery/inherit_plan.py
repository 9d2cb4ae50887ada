"""Which layers and units of a source tower a smaller tower of the same family gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models import EfficientNet, MobileNetV3
from torch import Tensor, nn

from clipling.errors import UserError, near
from clipling.surgery.inherit_convolutions import mobile, parts, resnet
from clipling.surgery.inherit_transformers import bert, image_transformer, text_transformer
from clipling.surgery.shapes import EMBED, FIXED, POSITIONS, Layout, counts, positions

Depth = Literal["interval_front", "uniform", "first"]
DEPTHS = ("interval_front", "uniform", "first")
State = dict[str, Tensor]


def layout_of(tower: nn.Module) -> Layout:
    """The layout of an image or text tower. One of an unknown kind can be inherited as a whole only."""
    if isinstance(tower, VisionTransformer):
        return image_transformer(tower)
    if isinstance(tower, TextTransformer):
        return text_transformer(tower)
    if isinstance(tower, ModifiedResNet):
        return resnet(tower)
    if isinstance(tower, TimmModel) and isinstance(tower.trunk, EfficientNet | MobileNetV3):
        return mobile(tower)
    if isinstance(tower, HFTextEncoder) and tower.config.model_type == "bert":
        return bert(tower)
    return Layout({name: (FIXED,) * value.ndim for name, value in tower.state_dict().items()}, kinds={"": parts(tower)})


def kept_layers(given: int, own: int, depth: Depth) -> list[int]:
    """Which `own` of `given` layers are kept, ascending.

    `interval_front` is TinyCLIP's rule: every (given // own)-th from the first, so that a ratio below 2 keeps the first
    layers. `uniform` spreads them evenly and keeps the first and the last; `first` keeps the first.
    """
    if depth not in DEPTHS:
        raise UserError(f"depth is {depth!r}. {near(str(depth), DEPTHS)}")
    if not 0 < own <= given:
        raise UserError(f"a tower of {own} layers cannot inherit from one of {given}: it must be 1 to {given} layers deep")
    if depth == "uniform" and own > 1:
        return [(2 * i * (given - 1) + own - 1) // (2 * (own - 1)) for i in range(own)]  # i (given-1)/(own-1), rounded
    step = given // own if depth == "interval_front" else 1
    return [i * step for i in range(own)]


# What people are told of the sets of units, whose names the layouts give.
WORDS = {
    "hidden": "hidden channels",
    "heads": "attention heads",
    "mlp": "MLP units",
    EMBED: "dimensions of the shared space",
    POSITIONS: "text positions",
    **dict.fromkeys(("narrow", "middle", "expanded", "squeezed"), "channels inside blocks"),
    **dict.fromkeys(("stem", "stem1", "stem2", "stem3"), "channels of the stem"),
    "features": "channels before pooling",
    "projection": "units of the projection",
}


def _words(name: str) -> str:
    last = name.split(" ")[0].split(".")[-1]
    return WORDS.get(last, "channels between blocks")


def _of_layers(kept: list[int], among: int) -> str:
    """`2 of 4 layers (0 and 2, counted from 0)`, or `all 4 layers`."""
    if len(kept) == among:
        return f"all {among} layers" if among > 1 else "the only layer"
    numbers = " ".join(map(str, kept))
    return f"{len(kept)} of {among} layers (number{'s' * (len(kept) > 1)} {numbers}, counted from 0)"


@dataclass
class TowerCut:
    """What one tower got: layers by stage, units by set (those of the target's layers, by the target's names)."""

    layers: list[list[int]]
    of_layers: list[int]
    rule: str
    units: dict[str, Tensor] = field(default_factory=dict)  # kept units, ascending numbers in the source
    of_units: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    inherited: int = 0  # elements of parameters and buffers that came from the source: all of the target's

    def lines(self) -> list[str]:
        """Layers by stage and units by kind of set, for people."""
        if [len(kept) for kept in self.layers] == self.of_layers:
            out = [_of_layers(list(range(sum(self.of_layers))), sum(self.of_layers))]
        else:
            out = [_of_layers(kept, among) for kept, among in zip(self.layers, self.of_layers)]
        totals: dict[str, list[int]] = {}
        for name, kept in self.units.items():
            total = totals.setdefault(_words(name), [0, 0, 0])
            for i, number in enumerate((len(kept), self.of_units[name], 1)):
                total[i] += number
        for name, (kept, among, places) in totals.items():
            out.append(
                (f"all {among:,} {name}" if kept == among else f"{kept:,} of {among:,} {name}")
                + (f", in {places} places together" if places > 1 else "")
            )
        return out + self.notes


class Cutter:
    """Cuts the tensors of a target tower (`own`) out of those of a source tower (`given`)."""

    def __init__(self, own: Layout, own_state: State, given: Layout, given_state: State, depth: Depth, rule: str) -> None:
        self.own, self.own_state, self.given, self.given_state = own, own_state, given, given_state
        self.own_counts, self.given_counts = counts(own, own_state), counts(given, given_state)
        if len(own.stages) != len(given.stages):
            raise UserError(f"a tower of {len(own.stages)} stages cannot inherit from one of {len(given.stages)}")
        kept = [kept_layers(len(theirs), len(ours), depth) for ours, theirs in zip(own.stages, given.stages)]
        self.cut = TowerCut(kept, [len(stage) for stage in given.stages], rule)
        self.layer = {
            ours: theirs[i]
            for stage, theirs, indices in zip(own.stages, given.stages, kept)
            for ours, i in zip(stage, indices)
        }  # fmt: skip
        self.source_of: dict[str, str] = {}

    def run(self, embed: Tensor, scores: dict[str, Tensor] | None) -> tuple[State, TowerCut]:
        """The tensors of the target, none of them missing, and what they are.

        embed: kept units of the shared space; scores by the source's sets, or None to keep the first units.
        """
        self._same_kinds()
        twins = {name: self._twin(name) for name in self.own_state}
        self._nothing_left_over(twins)
        state = {name: self._tensor(name, twins[name], embed, scores) for name in self.own_state}
        self.cut.inherited = sum(value.numel() for value in state.values())
        return state, self.cut

    def _twin(self, name: str) -> str:
        """The source's name of a tensor or set of the target."""
        for ours, theirs in self.layer.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def _same_kinds(self) -> None:
        for ours, theirs in {"": "", **self.layer}.items():
            if self.own.kinds.get(ours) != self.given.kinds.get(theirs):
                where = f"the layers {ours}* and {theirs}*" if ours else "the towers"
                raise UserError(
                    f"{where} of target and source are of different kinds (kernels, strides, activations, "
                    "normalisation or padding): the target must be a smaller member of the source's family"
                )
            own, given = self.own.skips.get(ours, False), self.given.skips.get(theirs, False)
            if own != given:
                does, other = ("adds", "does not") if own else ("does not add", "does")
                self.cut.notes.append(f"{ours}* {does} its input, {theirs}* of the source {other}: the widths decide")

    def _nothing_left_over(self, twins: dict[str, str]) -> None:
        missing = [name for name, twin in twins.items() if twin not in self.given_state]
        dropped = tuple({p for stage in self.given.stages for p in stage} - set(self.layer.values())) or ("\0",)
        used = set(twins.values())
        unused = [name for name in self.given_state if not name.startswith(dropped) and name not in used]
        if missing or unused:
            raise UserError(
                f"target and source are built differently: the source lacks {len(missing)} of the target's tensors "
                f"{missing[:3]}, the target has no place for {len(unused)} of the source's {unused[:3]}"
            )

    def _tensor(self, name: str, twin: str, embed: Tensor, scores: dict[str, Tensor] | None) -> Tensor:
        value = self.given_state[twin]
        for dim, (own, given) in enumerate(zip(self.own.axes[name], self.given.axes[twin])):
            size, found = self.own_state[name].shape[dim], value.shape[dim]
            if own.units is None or given.units is None:
                if size != found:
                    raise UserError(f"axis {dim} of {name} is {size} in the target and {found} in the source, and cannot be cut")
                continue
            if own.inner != given.inner:
                raise UserError(f"the heads are {own.inner} wide in the target and {given.inner} in the source ({name}): use equal heads")
            kept = self._kept(own.units, given.units, embed, scores)
            if len(kept) < self.given_counts[given.units]:
                value = value.index_select(dim, positions(kept, given, self.given_counts[given.units]))
        return value

    def _kept(self, own: str, given: str, embed: Tensor, scores: dict[str, Tensor] | None) -> Tensor:
        """The source's units that the target's set `own` keeps where the source has the set `given`."""
        # Two sets of the source become one where a block of the target alone adds its input.
        name = own if self.source_of.setdefault(own, given) == given else f"{own} from {given}"
        if name not in self.cut.units:
            count, among = self.own_counts[own], self.given_counts[given]
            if count > among:
                raise UserError(f"{own} of the target has {count} units, but the source has {among}: a target must not be larger")
            if own == EMBED:
                kept = embed
            elif scores is None or own == POSITIONS:
                kept = torch.arange(count)
            else:
                kept = scores[given].topk(count).indices.sort().values
            self.cut.units[name], self.cut.of_units[name] = kept, among
        return self.cut.units[name]
