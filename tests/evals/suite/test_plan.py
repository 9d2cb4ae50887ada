"""Plans from names and YAML: every mistake is named, paths are the file's, nothing is ignored."""

from __future__ import annotations

import pytest

from clipling.errors import UserError
from clipling.evals.results import SUITE_TASKS
from clipling.evals.suite.catalogue import EVALUATIONS, SUITES, evaluation
from clipling.evals.suite.found import LABELLED, PAIRS
from clipling.evals.suite.plan import DatasetSpec, Plan, named_plan, read_groups, short
from clipling.evals.suite.plan_file import read_plan
from tests.toy import toy_folder


@pytest.mark.parametrize("task", EVALUATIONS)
def test_every_task_has_an_evaluator_that_keeps_the_contract(task):
    made = evaluation(task)
    assert made.task == task
    assert made.takes
    assert made.takes <= {PAIRS, LABELLED}
    assert made.headline
    assert made.version >= 1
    assert isinstance(made.lower, frozenset)


def test_suites_name_tasks_once():
    for tasks in SUITES.values():
        assert len(set(tasks)) == len(tasks)
        assert set(tasks) <= set(SUITE_TASKS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a list", "must be a mapping"),
        ("suite: quik\ndatasets: {a: {data: b}}", "no suite 'quik'. Did you mean 'quick'"),
        ("suite: quick\ntasks: [cost]\ndatasets: {a: {data: b}}", "give `suite` or `tasks`, not both"),
        ("datasets: {}", "at least one dataset"),
        ("datasets: {a: {dat: b}}", "unknown key 'dat'. Did you mean 'data'"),
        ("datasets: {a: {data: b, outside: 3}}", "datasets.a: outside is 3"),
        ("datasets: {a: {data: b, task: zero}}", "task is 'zero'"),
        ("dataset: {a: {data: b}}", "unknown key 'dataset'. Did you mean 'datasets'"),
        ("tasks: [cots]\ndatasets: {a: {data: b}}", "no evaluator 'cots'. Did you mean 'cost'"),
        ("tasks: [cost]\ndatasets: {a: {data: b}}\nsettings: {knn: {ks: [1]}}", "settings are given for 'knn', which does not run"),
        (
            "tasks: [corruptions]\ndatasets: {a: {data: b}}\nsettings: {corruptions: {sampel: 1}}",
            "no setting 'sampel'. Did you mean 'sample'",
        ),
        ("tasks: [corruptions]\ndatasets: {a: {data: b}}\nsettings: {corruptions: {sample: x}}", "corruptions.sample is 'x'"),
        ("suite: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, said):
    (tmp_path / "suite.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_plan(tmp_path / "suite.yaml")
    assert said in str(error.value)


def test_paths_are_relative_to_the_file(tmp_path):
    toy_folder(tmp_path / "photos", count=3)
    (tmp_path / "suite.yaml").write_text("tasks: [cost]\ndatasets: {mine: {data: photos}, emoji: {data: 'demo:emoji'}}")
    plan = read_plan(tmp_path / "suite.yaml")
    assert plan.datasets["emoji"].data == "demo:emoji"
    assert len(plan.datasets["mine"].open("mine")) == 3


@pytest.mark.parametrize("given", [{"classes": "c.txt"}, {"outside": ("x",)}, {"groups": "g.csv"}])
def test_what_pairs_would_ignore_is_refused(tmp_path, given):
    with pytest.raises(UserError, match="would be ignored, for it is read as pairs"):
        DatasetSpec(data=str(tmp_path), task="retrieval", **given).open("mine")


def test_what_labelled_pictures_would_ignore_is_refused(tmp_path):
    with pytest.raises(UserError, match="queries would be ignored, for it is read as labelled pictures"):
        DatasetSpec(data=str(tmp_path), task="zeroshot", queries="q.csv").open("mine")


def test_groups_are_read_by_key(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("key,group\na,snow\nb,grass\nb,grass\nunknown,sand\n")
    assert read_groups(path, ["b", "a", "c"]) == ["grass", "snow", ""]
    path.write_text("key,group\na,snow\na,grass\n")
    with pytest.raises(UserError, match="'a' into two groups, 'snow' and 'grass'"):
        read_groups(path, ["a"])
    path.write_text("picture,group\na,snow\n")
    with pytest.raises(UserError, match="columns key and group"):
        read_groups(path, ["a"])
    path.write_text("key,group\nx,snow\n")
    with pytest.raises(UserError, match="names none of the pictures"):
        read_groups(path, ["a"])


def test_names_of_sources():
    assert short("data/flickr8k/dev-00000.tar") == "dev-00000.tar"
    assert short("cifar10/") == "cifar10"
    assert short("demo:emoji/val") == "emoji/val"
    plan = named_plan("quick", [DatasetSpec(data="a/x"), DatasetSpec(data="b/x")])
    assert list(plan.datasets) == ["x", "x-2"]
    with pytest.raises(UserError, match="given twice"):
        named_plan("quick", [DatasetSpec(data="a/x"), DatasetSpec(data="a/x")])
