"""`clipling reinforce SRC --teacher M --out SRC2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from clipling.errors import UserError


def reinforce(
    source: Positional[str],
    /,
    teacher: tuple[str, ...],
    out: Path,
    captions: tuple[str, ...] = (),
    augmentations: int = 10,
    crop: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.0,
    operations: Literal["rand-augment", "none"] = "rand-augment",
    storage: Literal["fp32", "fp16", "int8"] = "fp16",
    shard: int = 1000,
    seed: int = 0,
    gate: Literal["on", "off"] = "on",
    check: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    group: str | None = None,
    threads: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Stores what teachers make of your pairs beside them, once, to train from (`clipling train mobileclip`). Continues where it stopped.

    Args:
        source: The pairs.
        teacher: Models to ask: a run, a folder of a model, NAME@TAG of open_clip; several are an ensemble.
        out: The folder of tars that is made; it also reads as plain pairs.
        captions: Synthetic captions: others, field:NAME, template:NAME, rules, ./file.py:function, coca:MODEL@TAG, transformers:NAME.
        augmentations: Crops of each picture that the teachers see; training shows one of them at each step.
        crop: Area of a crop as a share of the picture, from and to.
        flip: Probability that a crop is mirrored.
        operations: rand-augment changes colours and shapes of crops as well.
        storage: How embeddings are stored; what that changes is measured.
        shard: Pairs of one tar.
        seed: Seed of the augmentations.
        gate: off asks teachers too that cannot tell the pairs apart.
        check: Read all tars that are there, and make those anew that are not what was written.
        image_column: Column of the picture's path, when it cannot be guessed.
        caption_column: Column of the caption, when it cannot be guessed.
        group: Column that names a product; its pairs stay on one side of a split.
        threads: Threads of torch (default: OMP_NUM_THREADS, or all cores).
        json: Print as JSON.
    """
    import sys

    from clipling.card_rows import last_parts
    from clipling.data.source import open_pairs
    from clipling.data.views import Augment
    from clipling.guides.captions import Captions, captioner
    from clipling.guides.captions_found import captions_found
    from clipling.guides.progress import ShowProgress, silent
    from clipling.guides.reinforce import Settings
    from clipling.guides.reinforce import reinforce as make
    from clipling.guides.teacher import gate as pass_gate
    from clipling.models.hub import open_student
    from clipling.models.licences import UNKNOWN, licences_of, told_of_run
    from clipling.processes import rank_and_world
    from clipling.run import threads as set_threads

    rank, world = rank_and_world()
    settings = Settings(augmentations, Augment(scale=crop, flip=flip), operations != "none", storage, shard, seed)
    if not teacher:
        raise UserError("reinforce asks at least one teacher: give --teacher MODEL")
    if len(teacher) > len(dict.fromkeys(teacher)):
        raise UserError(f"--teacher {' '.join(teacher)}: one is given twice. It would be asked twice, and two equal teachers teach as one.")
    asked = Captions([captioner(spec) for spec in captions])
    set_threads(threads)
    models = {f"teacher{n}" if n > 1 else "teacher": open_student(spec) for n, spec in enumerate(teacher, 1)}
    pairs = open_pairs(source, image_column=image_column, caption_column=caption_column, group=group)
    lacking = [f"warning: {said}" for said in captions_found(pairs, asked)]
    if lacking and rank == 0:
        print("\n".join(lacking), file=sys.stderr, flush=True)
    progress = silent if json or rank else ShowProgress()
    begun = (out / "reinforced.json").is_file()  # then they have passed
    for (name, model), spec in zip(models.items(), teacher, strict=True):
        if gate == "on" and not begun:  # in every process: none begins what another one refuses
            _passes(pass_gate, name, model, pairs, spec)
    known = {spec: licences_of(spec) for spec in teacher}
    licences = {last_parts(name): found.text for of_one in known.values() for name, found in of_one.items()}
    licences |= {last_parts(spec): said for spec in teacher if (said := told_of_run(spec) or ("" if known[spec] else UNKNOWN))}
    named = {name: last_parts(spec) for name, spec in zip(models, teacher, strict=True)}
    told: dict[str, Any] = {"licences": licences, "named": named, "progress": progress}
    try:
        made = make(pairs, out, models, asked, settings, check=check, rank=rank, world=world, **told)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(out, -(-len(pairs) // shard))) from None
    return {"out": str(out), "checked": check, **made}


def _stopped(out: Path, shards: int) -> str:
    """After Ctrl-C: what is there, and how to go on."""
    from clipling.data.shard_files import ShardFile

    there = sum(ShardFile.of(out, number) is not None for number in range(shards))
    return f"{there} of {shards} tars are finished and stay in {out}: the same command goes on from there."


def _passes(gate: Any, name: str, model: Any, pairs: Any, spec: str) -> None:
    """Says in the verb's own flags how to go on with a teacher that knows nothing."""
    try:
        gate(name, model, pairs, spec)
    except UserError as error:
        raise UserError(str(error).replace(f"--set teachers.{name}.gate=false", "--gate off")) from error
