"""What a run says of itself before its first step, and which of its metrics are worth a line while it trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clipling.adapt.wise_ft import standard_error
from clipling.batchsize import unit
from clipling.card_rows import model_named
from clipling.data.pairs import Pairs
from clipling.data.shard_files import MANIFEST, ShardFile
from clipling.engine.stages import spans
from clipling.engine.trainer import Job
from clipling.evals.chance import remark, shown
from clipling.evals.evaluators import Retrieval, ZeroShot
from clipling.evals.retrieval import metric_names
from clipling.evals.watch import PREFIX, Watch
from clipling.recipe import Recipe
from clipling.store import read_json

FEW = 100
FEW_PER_EPOCH = 10
PLAIN = ("acc1", "teacher_cosine", "match@1", "choice@1")


def announce(job: Job) -> None:
    """What is about to happen, in a few lines, before the first step."""
    if job.quiet:
        return
    recipe, sizes, opened = job.recipe, job.student.sizes(), job.opened
    planned = spans(recipe.stages, job.batches.steps_per_epoch, recipe.max_steps)
    steps, samples = planned[-1].end, planned[-1].end * recipe.optimiser.batch
    lines = [
        f"{what_there_is(opened.train)}, {len(opened.val):,} held out",
        f"student  {student_named(recipe)}: {sizes['total_without_token_rows'] / 1e6:.2f} M parameters"
        f" and {sizes['token_rows'] / 1e6:.2f} M in token rows{_as_saved(sizes)}",
        f"budget   {steps:,} steps of {recipe.optimiser.batch} {unit(recipe)} = {samples:,} samples seen"
        f"{_rounded(recipe, steps, job.batches.steps_per_epoch)}",
    ]
    lines += stored_shown(opened.knowledge.describe() if opened.knowledge else {})
    lines += _loading(job)
    if len(opened.source.problems):
        what = "skipped " if opened.source.problems.left_out() else "note    "
        lines.append(f"{what} {opened.source.problems.summary()}; listed in {job.folder / 'problems.tsv'}")
    lines += [f"note     {said}" for said in [*notes_on(opened.train, opened.val), *doubts_of_few(recipe, len(opened.val))]]
    lines += [f"note     {said}" for said in few_steps(recipe, steps, job.batches.steps_per_epoch)]
    lines += [f"note     {said}" for said in (opened.knowledge.unchecked() if opened.knowledge else ())]
    skipped = recipe.stages[len(planned) :]
    if any(stage.surgery for stage in skipped):
        lines.append(f"note     max_steps ends before stage {skipped[0].name!r}: the student keeps the size that it starts with")
    if opened.left_out:
        lines.append(f"         {opened.left_out:,} training pairs left out: also in the validation source (picture or group)")
    print("\n".join(lines), file=sys.stderr, flush=True)


def stored_shown(stored: Mapping[str, Any]) -> list[str]:
    """What teachers left beside the pairs, as the card has it."""
    if not stored:
        return []
    names = ", ".join(f"{stored['named'].get(t['name'], t['name'])} ({t['dim']})" for t in stored["teachers"])
    each = stored["augmentations"] / max(1, stored["pairs"])
    made = ", ".join(f"{count:,} {origin}" for origin, count in stored["synthetic_captions"].items())
    return [
        f"stored   by {names}: {each:.3g} augmentations a picture, embeddings as {stored['storage']}; "
        + (f"synthetic captions: {made}" if made else "no synthetic captions")
    ]


def half_made(source: str, pairs: int) -> list[str]:
    """Of a reinforced source of which tars are missing: training on a part of it should be known (run.with_a_batch says it)."""
    folder = Path(source)
    if not (folder / MANIFEST).is_file():
        return []
    whole = int(read_json(folder / MANIFEST).get("pairs") or 0)
    made = (ShardFile.beside(tar) for tar in folder.glob("[0-9]*.tar"))
    if pairs + sum(len(one.left_out) for one in made if one) >= whole:
        return []
    return [
        f"{folder.name} has {pairs:,} of the {whole:,} pairs that it was begun for: the same `clipling reinforce` command makes the rest"
    ]


def _as_saved(sizes: Mapping[str, int]) -> str:
    """A restricted vocabulary trains fewer rows than the saved model has: without this, one model seems to have two sizes."""
    whole = sizes["total_as_saved"]
    return f" that are trained (as saved, with all token rows: {whole / 1e6:.2f} M)" if whole != sizes["total"] else ""


def _loading(job: Job) -> list[str]:
    """What an epoch is made of where sources are mixed, and whether pictures are decoded at every step."""
    batches, lines = job.batches, []
    if batches.mix is not None:
        names = [part.strip() for part in job.recipe.data.source.split("::")]
        shares = ", ".join(
            f"{count:,} of {len(rows):,} of {name}" for name, count, rows in zip(names, batches.mix.counts, batches.mix.rows)
        )
        lines.append(f"mix      an epoch is {batches.mix.length:,} pairs: {shares}")
    if not batches.pixels.stored:
        faster = "" if batches.pixels.fast else "; --set data.decode=fast is faster"
        lines.append(f"loading  pictures are decoded at every step, for their pixels are more than {job.recipe.data.cache_gb:g} GB{faster}")
    return lines


def student_named(recipe: Recipe) -> str:
    """The student in a few words: a name of the zoo, or the model that its layout is that of."""
    spec = recipe.student
    if spec.config == "inherit" and spec.inherit:
        return f"cut out of {model_named(recipe, spec.inherit.source)}"
    return f"as {model_named(recipe, spec.init['model'])}" if spec.config == "init" else spec.config


def _rounded(recipe: Recipe, steps: int, per_epoch: int) -> str:
    """Says so where whole steps are not quite the epochs that were asked for."""
    asked = sum(stage.epochs for stage in recipe.stages)
    if recipe.max_steps is not None or asked < 1e-3 or abs(steps - asked * per_epoch) < 0.01 * steps:
        return ""
    return f" ({asked:g} epochs of {per_epoch} steps, rounded to whole steps)"


def what_there_is(pairs: Pairs) -> str:
    """`pairs    5,786 for training (5.0 captions each)`, or photos, with or without texts."""
    if not pairs.unpaired:
        return f"pairs    {len(pairs):,} for training ({len(pairs.captions) / len(pairs):.1f} captions each)"
    texts = f"beside {len(pairs.captions):,} texts" if any(pairs.captions) else "without captions"
    return f"photos   {len(pairs):,} for training, {texts}"


def notes_on(train: Pairs, val: Pairs) -> list[str]:
    """What weakens the numbers that will be measured."""
    if not val.unpaired:
        return [said] if (said := remark(metric_names(), len(val))) else []
    if any(val.captions) and not texts_held_out(train, val):
        return ["text_match@1 and text_choice@1 are measured on the training texts: there are too few to hold some out (about 400)"]
    return []


def few_steps(recipe: Recipe, steps: int, per_epoch: int) -> list[str]:
    """A budget in which little can be learned, because a batch takes most of the pairs; nothing where max_steps asks for so few."""
    if recipe.max_steps is not None or (per_epoch >= FEW_PER_EPOCH and steps >= FEW):
        return []
    batch = recipe.optimiser.batch
    smaller = next((size for size in (64, 32, 16, 8) if size < batch and per_epoch * batch >= FEW_PER_EPOCH * size), min(8, batch))
    ways = [f"use --batch {smaller} or lower"] if per_epoch < FEW_PER_EPOCH and smaller < batch else []
    ways += ["more epochs" if ways else "use more epochs"] if steps < FEW else []
    if not ways:
        return []
    each = f"{per_epoch:,} step{'s' * (per_epoch != 1)} an epoch, {steps:,} in all"
    return [f"{each}, are few to learn from: {', or '.join(ways)}"]


def doubts_of_few(recipe: Recipe, val_pairs: int) -> list[str]:
    """WiSE-FT keeps the start unless val shows a gain, and few pairs show none: better said before the training than after it."""
    if not recipe.evaluation.interpolate or val_pairs >= FEW:
        return []
    error = 100 * standard_error(0.5, val_pairs)
    return [
        f"{val_pairs} held-out pairs have a standard error of up to {error:.0f} points, and a gain below it keeps the start's weights: "
        "give --val with more pairs (a few hundred), or --no-wise"
    ]


def texts_held_out(train: Pairs, val: Pairs) -> bool:
    """Whether no text beside the held-out photos is one that was trained on."""
    return set(train.captions).isdisjoint(val.captions)


def sizes_of_watched(evaluators: Iterable[Any]) -> dict[str, dict[str, int]]:
    """How large each watched set is: {"cifar10": {"pictures": 10000, "classes": 10}, "flickr": {"pairs": 1000}}."""
    found = {}
    for watch in evaluators:
        if isinstance(watch, Watch):
            inner = watch.evaluator
            if isinstance(inner, ZeroShot):
                found[watch.name] = {"pictures": len(inner.labelled), "classes": len(inner.classnames)}
            elif isinstance(inner, Retrieval):
                found[watch.name] = {"pairs": len(inner.pairs)}
    return found


def shown_while_training(val_pairs: int, watch: Mapping[str, Mapping[str, int]]) -> Callable[[str], bool]:
    """Which metrics belong into a line of progress: of recalls, the one of the largest k that is not at chance level."""

    def tells(metric: str) -> bool:
        pairs = val_pairs
        if metric.startswith(PREFIX):
            pairs = watch.get(metric.removeprefix(PREFIX).rpartition("/")[0], {}).get("pairs", 0)
        return metric.endswith((f"_{shown(pairs)}", *PLAIN))

    return tells
