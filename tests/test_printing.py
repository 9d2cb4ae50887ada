"""What a terminal shows of runs: which figure picked, what was measured on what, what guessing reaches, what comes next."""

from __future__ import annotations

import pytest

from clipling.printing import text

RUN = {
    **{"name": "finetune", "seed": 0, "train_pairs": 190, "val_pairs": 100, "samples_seen": 640, "seconds": 1.0, "best_step": 7},
    "parameters": {"total_without_token_rows": 1e6},
    "val": {"i2t_recall@1": 0.5, "watch/cifar10/acc1": 0.25, "watch/flickr/i2t_recall@10": 0.5},
    "untrained": {"i2t_recall@1": 0.4, "watch/cifar10/acc1": 0.3, "watch/flickr/i2t_recall@10": 0.75},
    "model": "runs/x/model",
}
WATCH = {"cifar10": {"pictures": 10000, "classes": 10}, "flickr": {"pairs": 1000}}
PHOTOS = {"teacher_cosine": 0.9, "text_match@1": 0.5, "neighbour_match@1": 0.5, "text_choice@1": 0.25}


def row(said: str, name: str) -> list[str]:
    return next(line.split() for line in said.splitlines() if line.startswith(name))


def test_watched_sets_have_their_own_size_and_chance():
    said = text("finetune", {**RUN, "about": {"before": "start", "best_by": "mean_recall", "patience": 4, "watch": WATCH}})
    assert row(said, "watch/cifar10/acc1") == ["watch/cifar10/acc1", "10,000", "pictures", "10.0", "30.0", "25.0"]
    assert row(said, "watch/flickr/i2t") == ["watch/flickr/i2t_recall@10", "1,000", "pairs", "1.0", "75.0", "50.0"]
    held_out = said[said.index("on 100 pairs held out") : said.index("only watched")]
    assert "watch/" not in held_out
    assert row(held_out, "on 100")[-2:] == ["start", "best"]
    assert "highest mean_recall, the mean of all recalls above" in held_out
    assert "after 4 evaluations without a higher one the run stops (--patience)" in held_out
    assert "clipling compare runs/x OTHER_RUN" in said


@pytest.mark.parametrize(("by", "said"), [("last", "best: the last checkpoint"), ("recall@5", "the highest recall@5")])
def test_the_figure_that_picks_is_named(by, said):
    assert said in text("train", {**RUN, "about": {"best_by": by, "before": "untrained"}})


def test_a_summary_of_before_is_still_printed():
    said = text("train", RUN)
    assert row(said, "on 100")[-2:] == ["untrained", "best"]
    assert "mean_recall" in said


def test_what_the_column_val_of_the_shares_is():
    rows = [{"share": s, "score": 0.4} for s in (0.0, 1.0)]
    found = {"interpolation": {"share": 1.0, "reason": "because", "rows": rows}}
    assert "val: the mean of all recalls on the pairs held out; " in text("finetune", {**RUN, **found})
    assert "val: recall@1 on the pairs held out; " in text("finetune", {**RUN, **found, "about": {"best_by": "recall@1"}})


@pytest.mark.parametrize(("held_out", "where"), [(True, "that were kept away from training"), (False, "the 20 that were trained on")])
def test_texts_of_bare_photos_have_a_chance_level_and_a_source(held_out, where):
    about = {"before": "start", "best_by": "teacher_cosine", "texts": {"count": 20, "held_out": held_out, "trained_on": 9}}
    said = text("distill", {**RUN, "val_pairs": 10, "val": PHOTOS, "untrained": PHOTOS, "about": about})
    assert row(said, "text_match@1")[1] == row(said, "text_choice@1")[1] == "5.0"
    assert row(said, "neighbour_match@1")[1] == "11.1"
    assert row(said, "on 10 photos")[-2:] == ["start", "best"]
    assert where in said
    assert "highest teacher_cosine on what is held out" in said
    assert "--data CLASS_FOLDERS_OR_PAIRS" in said


def test_a_service_that_was_stopped_says_so():
    assert text("search serve", None) == "stopped"


def learned(before: float, after: float, pairs: int) -> dict:
    both = lambda value: {f"{way}_recall@{k}": value for way in ("i2t", "t2i") for k in (1, 5, 10)}  # noqa: E731
    return {**RUN, "val_pairs": pairs, "untrained": both(before), "val": both(after)}


@pytest.mark.parametrize(
    ("before", "after", "pairs", "said"),
    [
        (0.02, 0.03, 1000, "training did not help, as far as can be told: 3.0 % recall@10 (both directions) against 2.0 %"),
        (0.02, 0.03, 1000, "1000 held-out pairs cannot tell apart what differs by less than 1.1 points"),
        (0.02, 0.04, 1000, None),
        (0.1, 0.25, 50, None),
        (0.1, 0.19, 50, "whether training helped cannot be said: 19.0 % recall@10 (both directions) against 10.0 %"),
        (0.1, 0.19, 50, "differs by less than 11.1 points. Give --val"),
        (0.0, 0.07, 50, "whether training helped cannot be said"),
        (0.6, 0.2, 50, "training did harm: 20.0 % recall@10 (both directions) against 60.0 %"),
        (0.5, 0.9, 4, None),
    ],
)
def test_a_run_that_did_not_beat_its_start_says_so(before, after, pairs, said):
    """Two standard errors of 3 % over 1,000 pairs are 1.08 points, of 19 % over 50 pairs 11.1; four pairs judge nothing. That few pairs
    show no gain is no sign that there was none."""
    shown = text("train", learned(before, after, pairs))
    assert ("warning: " in shown) == (said is not None)
    assert said is None or said in shown


def test_a_run_of_few_steps_that_did_not_help_names_them():
    few = text("train", {**learned(0.02, 0.03, 1000), "steps": 3})
    assert "less than 1.1 points. It had 3 steps only: a lower --batch" in few
    assert "steps only" not in text("train", {**learned(0.02, 0.03, 1000), "steps": 300})


def test_the_kept_checkpoint_is_named_by_epoch_and_step():
    about = {"best_by": "mean_recall", "steps_per_epoch": 6, "latest_within_noise": False}
    said = text("train", {**RUN, "best_step": 48, "steps": 120, "about": about})
    assert "best: epoch 8 of 20 (step 48 of 120), the highest mean_recall" in said
    few = text("train", {**RUN, "val_pairs": 15, "best_step": 48, "steps": 120, "about": {**about, "latest_within_noise": True}})
    assert "the latest within one standard error of the highest mean_recall" in few
    assert "15 held-out pairs" in few


def test_a_reinforced_source_that_is_not_whole_says_so():
    """The first of several processes may end before the others."""
    made = {"pairs": 100, "shards": 3, "shards_there": 1, "made": 1, "bytes": 1000, "picture_bytes": 500, "left_out": [], "out": "o"}
    made |= {"captions": {"rules": 5, "coca": 0}, "errors": {}, "damaged": [], "checked": False}
    said = text("reinforce", made)
    assert "2 tars are not there yet" in said
    assert "warning: no captions of 'coca' were made" in said
    assert "not there yet" not in text("reinforce", {**made, "shards_there": 3})
