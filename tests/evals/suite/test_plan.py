"""Plans from names and YAML: every mistake is named, paths are the file's, nothing is ignored."""

from __future__ import annotations

import pytest

from clipling.errors import UserError
from clipling.evals.results import SUITE_TASKS
from clipling.evals.suite.catalogue import EVALUATIONS, SUITES, evaluation
from clipling.evals.suite.found import LABELLED, PAIRS
from clipling.evals.suite.plan import DatasetSpec, named_plan, read_groups, short
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
        ("datasets: {a: {data: b}, a: {data: c}}", "the key 'a' is there twice"),
        ("datasets:\n  a:\n    data: b\n    data: c\n", "the key 'data' is there twice"),
        ("tasks: [cost, geometry, cost]\ndatasets: {a: {data: b}}", "tasks names 'cost' twice"),
        ("tasks: cost\ndatasets: {a: {data: b}}", "tasks is 'cost': expected a list of texts"),
        ("datasets: {a: {data: b, outside: x}}", "outside is 'x': expected a list of texts"),
        ("datasets: [a]", "datasets is ['a']: expected a mapping"),
        (
            "tasks: [attacks]\ndatasets: {a: {data: b}}\nsettings: {attacks: {epsilons: 1}}",
            "attacks.epsilons is 1: expected a list of numbers",
        ),
        ("datasets: {1: {data: b}}", "datasets: the name 1 is no text for YAML. Put it in quotes."),
        ("datasets: {a: {data: 3}}", "datasets.a: data is 3: expected text"),
        ("datasets: {a b: {data: b}, a-b: {data: c}}", "'a b' and 'a-b' would write the same files"),
        ("datasets: {A: {data: b}, a: {data: c}}", "'A' and 'a' would write the same files"),
        ("datasets: {a: {data: b, languages: {de: de}, caption_column: x}}", "caption_column would be ignored beside languages"),
        ("datasets: {a: {data: b, languages: {de: de}, queries: x.csv}}", "queries would be ignored beside languages"),
        ("datasets: {a: {data: b, languages: {de: de}}, 'a [de]': {data: c}}", "'a [de]' is there twice"),
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


def test_settings_that_are_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "suite.yaml").write_text(
        "tasks: [linear_probe, knn]\ndatasets: {a: {data: b}}\n"
        "settings: {linear_probe: {train: more, train_classes: names.txt}, knn: {train: 'demo:emoji'}}"
    )
    probe, knn = read_plan(tmp_path / "suite.yaml").evaluations
    assert (probe.train, probe.train_classes) == (str(tmp_path / "more"), str(tmp_path / "names.txt"))
    assert knn.train == "demo:emoji"


def test_one_dataset_a_language(tmp_path):
    (tmp_path / "suite.yaml").write_text("tasks: [cost]\ndatasets: {shop: {data: shop.jsonl, languages: {en: caption, de: lang.de}}}")
    datasets = read_plan(tmp_path / "suite.yaml").datasets
    assert list(datasets) == ["shop [en]", "shop [de]"]
    german = datasets["shop [de]"]
    assert (german.caption_column, german.language, german.family) == ("lang.de", "de", "shop")
    assert german.data == str(tmp_path / "shop.jsonl")


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
