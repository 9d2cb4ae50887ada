"""Manual weight inheritance: a small student whose every tensor is cut out of a larger one's.

After TinyCLIP (Wu et al., ICCV 2023, section 3.2 and its released code): layers are chosen by a rule of depth, units by a rule
of width, attention head by head. Ours to add: other rules of depth, width by importance, convolutional towers of timm, BERT,
positions for another picture size, and a full account of what came from where. Nothing is rescaled and no statistics are
corrected, so an inherited student starts bad and learns fast: warm the learning rate up.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, resize_pos_embed
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor

from clipling.errors import UserError, near
from clipling.models.dual import Student
from clipling.models.hub import new_student
from clipling.surgery.importance import Importance, magnitude
from clipling.surgery.inherit_plan import Cutter, Depth, State, TowerCut, layout_of
from clipling.surgery.shapes import EMBED, Layout, counts, unit_scores

Width = Literal["position", "magnitude", "first_order"]
WIDTHS = ("position", "magnitude", "first_order")
WIDTH_RULES = {
    "position": "of channels, heads and units the first are kept (--width position)",
    "magnitude": "of channels, heads and units those of the largest weights are kept (--width magnitude)",
    "first_order": "of channels, heads and units those that matter most to the loss are kept (--width first_order)",
}
# What a smaller member of a family may have otherwise; everything else in vision_cfg and text_cfg changes the function.
VISION_SIZES = {"layers", "width", "mlp_ratio", "image_size", "patch_dropout", "timm_model_name", "timm_drop", "timm_drop_path"}
TEXT_SIZES = {"layers", "width", "heads", "mlp_ratio", "context_length", "hf_model_name", "hf_tokenizer_name", "hf_model_pretrained"}
INIT_ONLY = {"ls_init_value", "output_tokens", "timm_model_pretrained"}


@dataclass
class Report:
    """What an inherited student got from where. Elements are those of parameters and buffers."""

    image: TowerCut
    text: TowerCut
    sizes: dict[str, int]  # of the student, as `Student.sizes()`
    source_sizes: dict[str, int]
    fresh: dict[str, str] = field(default_factory=dict)  # tensor: why it was not inherited

    @property
    def inherited_elements(self) -> int:
        """Elements of both towers that came from the source: all of them."""
        return self.image.inherited + self.text.inherited

    def lines(self) -> list[str]:
        """The report for people."""
        size, whole = self.sizes["total_without_token_rows"], self.source_sizes["total_without_token_rows"]
        out = [f"{size:,} parameters without token rows, {size / whole:.1%} of the source's {whole:,}; {WIDTH_RULES[self.image.rule]}"]
        for side, cut in (("image", self.image), ("text", self.text)):
            counted = "token rows and buffers included" if side == "text" else "buffers included"
            out.append(f"{side} tower: all its {cut.inherited:,} numbers ({counted}) come from the source")
            out += [f"  {line}" for line in cut.lines()]
        return out + [f"{name} is fresh: {why}" for name, why in self.fresh.items()]


def inherit(
    source: Student,
    target_config: dict[str, Any],
    *,
    depth: Depth = "interval_front",
    width: Width = "position",
    importance: Importance | None = None,
    text_from: Student | None = None,
    cut_embed: bool = False,
    logit_scale: Literal["inherit", "fresh"] = "inherit",
    seed: int = 0,
) -> tuple[Student, Report]:
    """A student of `target_config`, in training mode, both of whose towers are cut out of trained ones.

    The image tower comes from `source`, the text tower from `text_from` or `source`. depth: see `kept_layers`. width: which
    units a narrower tower keeps: `position` (the first, TinyCLIP's rule), `magnitude` (those whose weights have the largest
    squares) or `first_order` (`importance`, made by `importance.first_order` on the source; for `text_from` pass its
    "text." entries). cut_embed: allows a smaller shared space; both towers keep the same of its dimensions. The logit scale
    is inherited (TinyCLIP's code does not) unless `fresh`. Normalisation of pictures and QuickGELU are taken over from the
    source, whatever the config says. Every tensor of the target is accounted for; UserError when one cannot be.
    """
    _known("width", width, WIDTHS)
    _known("logit_scale", logit_scale, ("inherit", "fresh"))
    if (importance is not None) != (width == "first_order"):
        raise UserError("width 'first_order' needs `importance` (see clipling.surgery.importance.first_order), and no other width does")
    texts = text_from or source
    config = _taken_over(target_config, source, texts)
    target = new_student(config, seed=seed)
    _same_function(target, source, texts)
    _sizes_of_the_shared_space(target, source, texts, cut_embed)
    image, text = _Side("visual", target, source), _Side("text", target, texts)
    scores = [_scores(side, width, importance) for side in (image, text)]
    embed = _kept_embed(target.embed_dim, source.embed_dim, scores)
    cuts = [
        Cutter(side.own, side.own_state, side.given, side.given_state, depth, width).run(embed, score)
        for side, score in zip((image, text), scores)
    ]
    report = Report(*(cut for _, cut in cuts), sizes=target.sizes(), source_sizes=_source_sizes(source, texts))
    with torch.no_grad():
        for side, (state, _) in zip((image, text), cuts):
            for name, value in side.own_state.items():
                value.copy_(state[name])
        _scalars(target, source, logit_scale, report)
    return target, report


def _known(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{what} is {value!r}. {near(str(value), allowed)}")


class _Side:
    """One tower of target and source: layouts and tensors, the source's positions already on the target's grid."""

    def __init__(self, part: str, target: Student, source: Student) -> None:
        self.part, self.student = part, source
        tower, given = getattr(target.model, part), getattr(source.model, part)
        self.own, self.given = layout_of(tower), layout_of(given)
        self.own_state: State = tower.state_dict()
        self.given_state = _part_of(source.stock_state(), part)
        if type(tower) is not type(given):
            raise UserError(
                f"a {part} tower of the kind {type(tower).__name__} cannot inherit from a {type(given).__name__}: "
                "source and target must be of one family"
            )
        if self.own.grid is not None:
            _resample(self.given_state, self.own)


def _part_of(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def _resample(state: State, own: Layout) -> None:
    """The positions of the source's pictures on the target's grid, by open_clip's interpolation."""
    name, side = own.grid
    key = "visual.positional_embedding"
    table = {key: state[name]}
    resize_pos_embed(table, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    state[name] = table[key]


def _taken_over(target_config: dict[str, Any], source: Student, texts: Student) -> dict[str, Any]:
    """The target's config with the source's normalisation of pictures and its activation."""
    config = copy.deepcopy(target_config)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise UserError("inherit needs the target's config as a mapping with 'model_cfg', as in models/zoo/*.json or from target_of")
    # Only these two read the flag; both towers of a model share it.
    reading = [(source, source.model.visual, VisionTransformer), (texts, texts.model.text, TextTransformer)]
    quick = {bool(s.config["model_cfg"].get("quick_gelu")) for s, tower, kind in reading if isinstance(tower, kind)}
    if len(quick) == 2:
        raise UserError("the image tower's source and the text tower's differ in quick_gelu, and one model has one activation")
    if quick:
        config["model_cfg"]["quick_gelu"] = quick.pop()
    config["preprocess_cfg"] = dict(config.get("preprocess_cfg") or {})
    for key in ("mean", "std"):
        config["preprocess_cfg"][key] = list(source.preprocess_cfg[key])
    return config


def _same_function(target: Student, source: Student, texts: Student) -> None:
    """UserError unless the configs agree in all that is not a size."""
    for part, kind, sizes, given in (
        ("vision_cfg", CLIPVisionCfg, VISION_SIZES, source),
        ("text_cfg", CLIPTextCfg, TEXT_SIZES, texts),
    ):
        ours, theirs = (asdict(kind(**student.config["model_cfg"][part])) for student in (target, given))
        for key in ours:
            if key not in sizes | INIT_ONLY and ours[key] != theirs[key]:
                raise UserError(
                    f"model_cfg.{part}.{key} is {ours[key]!r} in the target and {theirs[key]!r} in the source. A student that inherits "
                    "may differ from its source in sizes only: use the source's value"
                )


def _sizes_of_the_shared_space(target: Student, source: Student, texts: Student, cut_embed: bool) -> None:
    if source.embed_dim != texts.embed_dim:
        raise UserError(f"the towers' sources have embeddings of {source.embed_dim} and {texts.embed_dim}: one shared space has one size")
    own, given = target.embed_dim, source.embed_dim
    if own > given or (own < given and not cut_embed):
        raise UserError(
            f"the target's embed_dim is {own}, the source's is {given}. "
            + ("A target must not be larger" if own > given else f"Use {given}, or allow the cut with cut_embed=True")
        )


def _scores(side: _Side, width: Width, importance: Importance | None) -> dict[str, Tensor] | None:
    """The importance of the source tower's units; None for the rule by position."""
    if width == "position":
        return None
    if importance is None:
        folds = {f"{side.part}.{weight}": f"{side.part}.{norm}" for weight, norm in side.given.folds.items()}
        importance = magnitude(side.student, folds)
    own = _part_of(importance, side.part)
    if not own:
        raise UserError(f"the importance has no entries for the {side.part} tower, whose names begin with '{side.part}.'")
    return unit_scores(side.given, counts(side.given, side.given_state), own)


def _kept_embed(own: int, given: int, scores: list[dict[str, Tensor] | None]) -> Tensor:
    """The kept dimensions of the shared space, the same for both towers."""
    by_tower = [score[EMBED] for score in scores if score is not None and EMBED in score]
    return torch.stack(by_tower).sum(0).topk(own).indices.sort().values if by_tower and own < given else torch.arange(own)


def _source_sizes(source: Student, texts: Student) -> dict[str, int]:
    image, text = source.sizes(), texts.sizes()
    bare = image["total_without_token_rows"] - image["text"] + text["text"]
    return {**text, "image": image["image"], "total": bare + text["token_rows"], "total_without_token_rows": bare}


def _scalars(target: Student, source: Student, logit_scale: str, report: Report) -> None:
    """The logit scale and, where the target has one, the logit bias."""
    if logit_scale == "inherit":
        target.logit_scale.copy_(source.logit_scale)
    else:
        report.fresh["logit_scale"] = "as asked"
    if target.logit_bias is not None:
        if source.logit_bias is None:
            report.fresh["logit_bias"] = "the source has none"
        else:
            target.logit_bias.copy_(source.logit_bias)
