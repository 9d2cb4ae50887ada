"""The settings of a run: the dataclasses that a recipe is made of. What is read into them, and their mistakes: recipe.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")


@dataclass(kw_only=True)
class Data:
    """Where pairs come from and what is kept away from training."""

    __pydantic_config__ = STRICT
    source: str = ""
    val: str | None = None
    """A source of its own for validation. Without it a fixed split of `source` is held out."""
    image_column: str | None = None
    caption_column: str | None = None
    separator: str | None = None
    group: str | None = None
    """Column that names a product: pairs of one group stay on one side of the split and are never negatives."""
    max_bad: float = 0.1
    """Share of bad rows above which the run stops."""
    limit: int | None = None
    """Train on this many pairs only (the first in an order that depends on the seed 0 alone)."""
    mask_false_negatives: bool = True
    """Pairs of a batch with the same caption, picture or group are not negatives of each other."""
    crop: tuple[float, float] = (0.5, 1.0)
    """Area of the random crop as a share of the picture; (1, 1) for none."""
    flip: float = 0.0
    """Probability of a mirror image. A mirror turns "left" into "right": captions decide."""
    workers: int = 1
    weights: list[float] | None = None
    """Shares of an epoch of sources that are joined by `::`. None: all pairs of all sources, once an epoch."""
    decode: Literal["exact", "fast"] = "exact"
    """`fast`: training pictures are decoded by torchvision, and large JPEGs at 1/2, 1/4 or 1/8 of their size: nearly the same pixels."""
    cache_gb: float = 16.0
    """Pixels of the training pictures that fit in so many gigabytes are decoded once and kept; others at every step."""
    bare: bool = False
    """`source` is photos without captions (those that are there are not read), for distillation."""
    texts: str | None = None
    """A list of texts that belong to no picture, drawn at random beside bare photos."""


@dataclass(kw_only=True)
class Inherit:
    """Weights cut out of a larger model (TinyCLIP's manual inheritance)."""

    __pydantic_config__ = STRICT
    source: str = "teacher"
    """A run, a folder, NAME@TAG, or the name of a teacher of this recipe."""
    text_source: str | None = None
    """Another model for the text tower."""
    to: str | None = None
    """Size to reach without token rows, `50%` of the source or `20M` parameters; the student's config is then made to fit."""
    depth: Literal["interval_front", "uniform", "first"] = "interval_front"
    width: Literal["position", "magnitude", "first_order"] = "position"


@dataclass(kw_only=True)
class StudentSpec:
    """The small dual encoder."""

    __pydantic_config__ = STRICT
    config: str = "mobilenetv3_small_64"
    """A name of the zoo, a JSON file with model_cfg and preprocess_cfg, `init`: that of the model in `init`, or `inherit`: one
    made to fit `inherit.to`."""
    init: dict[str, str] = field(default_factory=dict)
    """Where weights start: {"model": run or folder or NAME@TAG}, or {"image": encoder, "text": encoder}. Empty: random."""
    inherit: Inherit | None = None
    """Weights cut out of a larger model; instead of `init`."""
    text: str = "config"
    """`config`: as the student's config says; `teacher`: the text tower of the (only) teacher, weights and all; a share such as
    `50%`: that tower cut down."""
    space: Literal["own", "teacher"] = "own"
    """`teacher`: embeddings have the size of the (only) teacher's, whatever the config says."""
    vocabulary: Literal["auto", "restricted", "full"] = "auto"
    """`restricted`: only the token rows of the training captions are trained; `full`: all rows. `auto`: restricted where the text
    tower has CLIP's own tokens, else full."""
    norm: Literal["local", "sync", "frozen"] = "local"
    """BatchNorm of the student: statistics of each process, of all processes, or not trained."""


@dataclass(kw_only=True)
class GuideSpec:
    """Frozen unimodal encoders, their bank, and how neighbours are drawn from it."""

    __pydantic_config__ = STRICT
    bank: str = "auto"
    """A bank folder. `auto`: built from the training source and kept in the cache."""
    image_encoder: str = "efficientnet_lite0"
    text_encoder: str = "all-MiniLM-L6-v2"
    image_size: int | None = None
    """Pixels at which the image encoder sees pictures; None: its own size."""
    k: int = 5
    """Neighbours kept for each pair; one of them is drawn at random at each step."""
    centre: bool = True
    """Subtract the mean of the training rows from bank features (pooled CNN features lie in a cone)."""
    caption: Literal["random", "mean", "nearest"] = "random"
    """Which caption of the neighbour is the text target."""
    query: Literal["mean", "caption"] = "mean"
    """Text-space neighbours of the pair's mean caption, or of the caption that was drawn."""
    control: Literal["none", "random"] = "none"
    """`random`: neighbours of another pair (a fixed derangement), the control for what neighbours add."""
    active: Literal["none", "online", "views"] = "none"
    """A-CLIP-PING: the image query is the frozen encoder's feature of the student's own crop."""
    views: int = 4
    """Crops of each picture that exist when `active` is `views`."""
    max_in_degree: int | None = None
    """Cap on how many pairs may have one pair as neighbour."""


@dataclass(kw_only=True)
class TeacherSpec:
    """A frozen CLIP that sees the student's crops and captions."""

    __pydantic_config__ = STRICT
    model: str = ""
    """A run, a folder of a model, or NAME@TAG of open_clip."""
    scale: float | None = None
    """What its similarities are multiplied by; None: the scale it learned."""
    gate: bool = True
    """Stop at the start when the teacher cannot tell the pairs apart better than chance."""


@dataclass(kw_only=True)
class ReinforcedSpec:
    """Knowledge that teachers left beside the pairs (`clipling reinforce`, or tars in DataCompDR's layout)."""

    __pydantic_config__ = STRICT
    origins: str = ".*"
    """Which synthetic captions are used: a regular expression that the whole name of their origin fits."""
    mix: float = 0.5
    """Of terms that see one caption a picture (`student.text:mix`): how often it is a synthetic one."""
    pictures: Literal["held", "source"] = "held"
    """`held`: crops are cut out of the pictures held in the cache, as in other recipes. `source`: every picture is decoded again, and the
    crop is the teacher's pixel for pixel where the sizes agree."""
    changed: Literal["refuse", "rescale"] = "refuse"
    """Of a picture with other bytes than when its crops were drawn: stop, or scale the crops to its size."""
    teachers: dict[str, int] = field(default_factory=dict)
    """Names and embedding sizes of the teachers, in their order, where the tars do not say (Apple's)."""


@dataclass(kw_only=True)
class SurgerySpec:
    """A change of the student between two stages."""

    __pydantic_config__ = STRICT
    use: str
    """`module:function` of (student, objective, **options) that returns the new student."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TermSpec:
    """One part of the objective."""

    __pydantic_config__ = STRICT
    use: str
    """`module:Class` or `./file.py:Class` of a Term."""
    weight: float | dict[str, float] = 1.0
    """One weight for all values of the term, or one for each value by name."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Stage:
    """A stretch of training with an optimiser of its own."""

    __pydantic_config__ = STRICT
    name: str = "train"
    epochs: float = 20.0
    learning_rate: float = 1e-3
    warmup: float = 1.0
    """Epochs of linear warm-up; then half a cosine to 0."""
    freeze: list[Literal["image", "text"]] = field(default_factory=list)
    """Towers that stay as they are (LiT freezes `image`)."""
    freeze_projections: bool = False
    """A frozen tower's linear map into the shared space is frozen too."""
    surgery: SurgerySpec | None = None
    """What is done to the student before this stage."""
    drop: list[str] = field(default_factory=list)
    """Terms of the objective that end before this stage."""


@dataclass(kw_only=True)
class Optimiser:
    """AdamW with the field's groups: no decay of biases, norms and scales."""

    __pydantic_config__ = STRICT
    batch: int = 256
    """Pairs of a step over all processes."""
    micro_batch: int | None = None
    """Gradient caching: the step runs in parts of this size, the negatives stay those of the whole batch."""
    weight_decay: float = 0.2
    layer_decay: float | None = None
    """Layer-wise decay: the learning rate of a layer is this to the power of its distance from the tower's output."""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    ema: float | None = None
    """Decay of the moving average of weights that is evaluated and saved; None: none."""
    autocast: Literal["none", "bf16"] = "none"
    stop_after_nonfinite: int = 20
    """Consecutive steps with a loss or gradient that is not finite after which the run stops."""


@dataclass(kw_only=True)
class Compute:
    """How the same training is computed. Nothing here changes what is learned, up to rounding."""

    __pydantic_config__ = STRICT
    compile: bool = False
    """`torch.compile` of both towers: a minute or more at the start, quicker steps afterwards. On a CPU it needs a C++ compiler."""
    activation_checkpointing: bool = False
    """What is inside of a tower's blocks is made again in the backward pass: much less memory, about a third more time."""


@dataclass(kw_only=True)
class Evaluation:
    """What is measured on val while training, and which checkpoint is kept as best."""

    __pydantic_config__ = STRICT
    every: float = 1.0
    """Epochs between evaluations."""
    best: str = "mean_recall"
    """What picks the best checkpoint: a metric by name; `recall@k`, the mean of both directions; `mean_recall`, the mean of all
    recalls (it does not saturate on a small val set); or `last`: keep the last. By a recall on fewer than 100 held-out pairs, the
    latest within one standard error of the highest is kept."""
    log_every: int = 10
    patience: int | None = None
    """Stop after this many evaluations in a row without a better value of `best`."""
    watch: list[str] = field(default_factory=list)
    """Sources that are not trained on (pairs or labelled pictures), measured at every evaluation: what is being forgotten."""
    interpolate: list[float] = field(default_factory=list)
    """WiSE-FT (arXiv 2109.01903): shares of the trained weights, the rest being the start's; one is chosen on val at the end."""


@dataclass(kw_only=True)
class Recipe:
    """Everything a run is made from."""

    __pydantic_config__ = STRICT
    name: str
    seed: int = 0
    data: Data = field(default_factory=Data)
    student: StudentSpec = field(default_factory=StudentSpec)
    guide: GuideSpec | None = None
    teachers: dict[str, TeacherSpec] = field(default_factory=dict)
    reinforced: ReinforcedSpec | None = None
    objective: dict[str, TermSpec] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    optimiser: Optimiser = field(default_factory=Optimiser)
    compute: Compute = field(default_factory=Compute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    max_steps: int | None = None
    """Stop after this many steps (the smoke test sets it)."""
