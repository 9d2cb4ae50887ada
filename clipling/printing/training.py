"""Runs and fine-tuned models as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipling.printing.shown import chance_of, in_order, percent, remark_on, table

FEW_STEPS = 100


def shown_train(result: Mapping[str, Any]) -> str:
    if "seeds" in result:
        return _seeds(result)
    return "\n\n".join([heading(result), _measured(result), *_no_gain(result), ending(result, COMPARE)])


def _no_gain(result: Mapping[str, Any]) -> list[str]:
    """A run that did not learn must say so itself, and not only in a comparison."""
    from clipling.evals.learned import FEW, no_better_than_start, noise

    found = no_better_than_start(result)
    if found is None:
        return []
    metric, start, end = found
    before, pairs = about_run(result).get("before", "untrained"), result["val_pairs"]
    said = f"{percent(end)} % {metric} (both directions) against {percent(start)} % of the {before} model"
    doubt = noise(start, end, pairs)
    few = _few_steps(result)
    if end < start - doubt:
        return [f"warning: training did harm: {said}"]
    within = f"{pairs} held-out pairs cannot tell apart what differs by less than {100 * doubt:.1f} points"
    if pairs < FEW:
        return [f"warning: whether training helped cannot be said: {said}, and {within}. Give --val with a few hundred pairs.{few}"]
    return [f"warning: training did not help, as far as can be told: {said}; {within}.{few}"]


def _few_steps(result: Mapping[str, Any]) -> str:
    """A reason why little was learned, and what to do; empty of a run that had steps enough."""
    steps = result.get("steps")
    if steps is None or steps >= FEW_STEPS:
        return ""
    return f" It had {steps:,} step{'s' * (steps != 1)} only: a lower --batch or more --epochs gives more."


def about_run(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the numbers of a run are of; runs of before it was written have none."""
    return result.get("about") or {}


def heading(result: Mapping[str, Any], what: str = "pairs") -> str:
    early = f" (stopped early, best at step {result['best_step']:,})" if result.get("stopped_early") else ""
    return (
        f"{result['name']} (seed {result['seed']}): {result['train_pairs']} {what}, {result['samples_seen']:,} samples seen{early}, "
        f"{result['seconds']:.0f} s of steps, {result['parameters']['total_without_token_rows'] / 1e6:.2f} M parameters without token rows"
    )


def _measured(result: Mapping[str, Any], after: str = "best") -> str:
    pairs, val, before = result["val_pairs"], result["val"], about_run(result).get("before", "untrained")
    own = {name: value for name, value in val.items() if not name.startswith("watch/")}
    rows = [[name, chance_of(name, pairs), percent(result["untrained"].get(name, 0.0)), percent(own[name])] for name in in_order(own)]
    shown = table([f"on {pairs} pairs held out, %", "chance", before, after], rows)
    return f"{shown}{remark_on(own, pairs)}\n\n{best_by(result)}{_watched(result, before, after)}"


def best_by(result: Mapping[str, Any]) -> str:
    """Which figure picked the checkpoint, and stops the run."""
    by = about_run(result).get("best_by", "mean_recall")
    if by == "last":
        return "best: the last checkpoint"
    when = _when(result)
    meant = {"mean_recall": "mean_recall, the mean of all recalls above,"}.get(by, by)
    patience = about_run(result).get("patience")
    stops = f"; after {patience} evaluations without a higher one the run stops (--patience)" if patience else ""
    if about_run(result).get("latest_within_noise"):
        few = f"{result['val_pairs']} held-out pairs tell checkpoints apart only so far (--val gives more)"
        return f"best: {when}the latest within one standard error of the highest {meant} as {few}{stops}"
    return f"best: {when}the highest {meant} on what is held out{stops}"


def _when(result: Mapping[str, Any]) -> str:
    """`epoch 12 of 20 (step 120 of 200), ` of the checkpoint that was kept, where that is known."""
    per_epoch, best, last = about_run(result).get("steps_per_epoch"), result.get("best_step"), result.get("steps")
    if not (per_epoch and best and last):
        return "the checkpoint with "
    return f"epoch {best / per_epoch:.3g} of {last / per_epoch:.3g} (step {best:,} of {last:,}), "


def _watched(result: Mapping[str, Any], before: str, after: str) -> str:
    """The table of sets that were only watched, each with its own size; empty without any."""
    rows = []
    for name, value in result["val"].items():
        if name.startswith("watch/"):
            size = _watch_size(result, name)
            counted = next((f"{size[what]:,} {what}" for what in ("pictures", "pairs") if what in size), "")
            rows.append([name, counted, _watch_chance(name, size), percent(result["untrained"].get(name, 0.0)), percent(value)])
    return "\n\n" + table(["only watched, %", "on", "chance", before, after], rows) if rows else ""


def _watch_size(result: Mapping[str, Any], metric: str) -> Mapping[str, int]:
    return about_run(result).get("watch", {}).get(metric.removeprefix("watch/").rpartition("/")[0], {})


def _watch_chance(metric: str, size: Mapping[str, int]) -> str:
    return chance_of(metric.rpartition("/")[2], size.get("pairs"), size.get("classes"))


COMPARE = "clipling compare {run} OTHER_RUN    one page about runs of the same pairs"


def ending(result: Mapping[str, Any], more: str = "", data: str = "PAIRS_IT_HAS_NOT_SEEN") -> str:
    """Where the model is, and what to do next: measure it; `more`: the verb's own next step, with {run} for its folder."""
    model = str(result.get("model", "model"))
    run = model.removesuffix("model").rstrip("/") or model
    said = f"model: {model}\nnext:  clipling eval {run} --data {data}"
    return said + (f"\n       {more.format(run=run)}" if more else "")


def shown_finetune(result: Mapping[str, Any]) -> str:
    """As `train`, against the start; then what WiSE-FT measured between start and tuned weights, and what was forgotten."""
    begun = {**result, "about": {"before": "start", **about_run(result)}}
    after = "kept" if "interpolation" in result else "best"
    end = ending(result, COMPARE)
    return "\n\n".join([heading(result), _measured(begun, after), *_shares(result), end])


def _shares(result: Mapping[str, Any]) -> list[str]:
    found = result.get("interpolation")
    if not found:
        return []
    watched = [name for name in found["rows"][0] if name.startswith("watch/") and name.endswith(("recall@10", "acc1"))]
    rows = []
    for row in found["rows"]:
        mark = "  <- kept" if row["share"] == found["share"] else ""
        rows.append([f"{row['share']:g}", percent(row["score"]), *(percent(row[name]) for name in watched), mark])
    header = ["share of new weights", "val, %", *watched, ""]
    by = about_run(result).get("best_by", "mean_recall")
    meant = "the mean of all recalls on the pairs held out" if by in ("mean_recall", "last") else f"{by} on the pairs held out"
    said = [table(header, rows), f"val: {meant}; the watched sets have no say. {found['reason'][:1].upper()}{found['reason'][1:]}."]
    if found["share"] == 0:
        said.append(
            "The model is the start, unchanged: on so few held-out pairs, or after so little training, val does not show that the new "
            "weights are better. Give more pairs with --val, train longer, or keep the new weights with --no-wise."
        )
    return said


def _seeds(result: Mapping[str, Any]) -> str:
    summaries = result["seeds"]
    first = next(iter(summaries.values()))
    pairs = first.get("val_pairs")
    rows = []
    for name in in_order(first["val"]):
        values = [s["val"][name] for s in summaries.values()]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
        rows.append([name, chance_of(name, pairs), *map(percent, values), f"{percent(mean)} ± {percent(spread)}"])
    header = [f"{result['name']}, %", "chance", *(f"seed {s}" for s in summaries), "mean ± spread"]
    return f"{table(header, rows)}{remark_on(first['val'], pairs)}"
