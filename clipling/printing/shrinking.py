"""Distilled and compressed models as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.printing.shown import level_of, percent, remark_on, table
from clipling.printing.training import COMPARE, about_run, best_by, ending, heading, shown_train

AGREEMENTS = ("teacher_cosine", "image_match@1", "text_cosine", "text_match@1", "neighbour_match@1", "text_choice@1")


AGREEMENT = """\
teacher_cosine and text_cosine: how alike student and teacher see one photo, or text; match@1: how often the student's feature is
nearest to the teacher's of the same; neighbour_match@1: both find the same nearest other photo; text_choice@1: the same nearest text.
The teacher itself has 100 everywhere, and so has its own text tower, where that is kept, in the text figures of texts alone."""


def shown_distill(result: Mapping[str, Any]) -> str:
    """As `train`; of bare photos, what agreement with the teacher means."""
    val, photos = result["val"], result["val_pairs"]
    if "neighbour_match@1" not in val:
        return shown_train(result)
    levels = {"image_match@1": percent(1 / photos), "neighbour_match@1": percent(1 / (photos - 1))}
    texts = about_run(result).get("texts")
    if texts:
        levels |= dict.fromkeys(("text_match@1", "text_choice@1"), percent(1 / texts["count"]))
    names = [*(name for name in AGREEMENTS if name in val), *(name for name in val if name not in AGREEMENTS)]
    rows = [[name, levels.get(name, ""), percent(result["untrained"].get(name, 0.0)), percent(val[name])] for name in names]
    before = about_run(result).get("before", "untrained")
    measured = table([f"on {photos} photos held out, %", "chance", before, "best"], rows)
    end = ending(result, data="CLASS_FOLDERS_OR_PAIRS")
    said = [AGREEMENT, *_texts(texts), best_by({"about": {"best_by": "teacher_cosine", **about_run(result)}})]
    return "\n\n".join([heading(result, "photos"), measured + remark_on(["recall@1"], photos), *said, end])


def _texts(texts: Mapping[str, Any] | None) -> list[str]:
    """On which texts the agreement is measured."""
    if not texts:
        return []
    count = f"{texts['count']:,}"
    if texts["held_out"]:
        return [f"The texts are {count} of the list that were kept away from training."]
    return [f"The texts are the {count} that were trained on: with about 400 or more, a twentieth of them is held out."]


def shown_compress(result: Mapping[str, Any]) -> str:
    header = ["on val, %", "parameters", "size", "asked", "with tokens", "image ms", "text ms"]
    header += ["i2t@1", "i2t@10", "t2i@1", "t2i@10", "mean", "of teacher's"]
    rows, whole = [], result["rows"][0]["parameters"]
    for row in result["rows"]:
        share = [f"{100 * row[key] / whole:.0f} %" for key in ("parameters", "asked")]
        sizes = [f"{row['parameters'] / 1e6:.2f} M", *share, f"{row['parameters_with_token_rows'] / 1e6:.2f} M"]
        recalls = [percent(row[f"{way}_recall@{k}"]) for way in ("i2t", "t2i") for k in (1, 10)]
        times = [f"{row[key]:.1f}" for key in ("image_ms", "text_ms")]
        rows.append([row["name"], *sizes, *times, *recalls, percent(row["mean_recall"]), f"{100 * row['relative_recall']:.0f} %"])
    pairs, model = result["val_pairs"], result["model"]
    levels = [level_of(k, pairs) for k in (1, 5, 10)]
    guessed, best = sum(levels) / 3, result["rows"][0]["mean_recall"]
    by_chance = [*(percent(level_of(k, pairs)) for _ in ("i2t", "t2i") for k in (1, 10)), percent(guessed), f"{100 * guessed / best:.0f} %"]
    rows.append(["chance", *[""] * 6, *by_chance])
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    said = (
        f"On {pairs} pairs held out. size: parameters without token rows, of the teacher's; asked: what --to asks for;\n"
        f"ms: one picture, one caption, {threads}; mean: of both directions at 1, 5 and 10."
    )
    remark = remark_on(result["rows"][0], pairs)
    end = ending({"model": model}, COMPARE)
    return f"{table(header, rows)}\n\n{said}{remark}\n\n{end}"
