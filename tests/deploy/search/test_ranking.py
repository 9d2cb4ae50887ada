"""Ranking against a loop over all pictures."""

from __future__ import annotations

import numpy as np
import pytest

from clipling.deploy.search import ranking
from clipling.deploy.search.ranking import GRAPH, Ranking, open_ranking, write_graph


def rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def by_hand(ids, embeddings, query, k, without=()):
    scored = [
        (-float(np.dot(row.astype(np.float64), query.astype(np.float64))), int(i)) for i, row in zip(ids, embeddings) if i not in without
    ]
    return [i for _, i in sorted(scored)[:k]]


@pytest.mark.parametrize("k", [1, 5, 299, 300, 1000])
def test_exact_ranking_is_that_of_a_loop(k):
    ids, embeddings, query = np.arange(300) * 7 + 3, rows(300), rows(1, seed=1)[0]
    found, scores = Ranking(ids, embeddings).search(query, k)
    assert found.tolist() == by_hand(ids, embeddings, query, k)
    assert scores == pytest.approx([float(embeddings[(i - 3) // 7] @ query) for i in found.tolist()], abs=1e-6)


def test_what_is_left_out_makes_room_for_others():
    ids, embeddings, query = np.arange(300) + 1, rows(300), rows(1, seed=1)[0]
    best = by_hand(ids, embeddings, query, 4)
    found, _ = Ranking(ids, embeddings).search(query, 5, without=[best[0], best[2], 999, -1, 2**70])
    assert found.tolist() == by_hand(ids, embeddings, query, 5, (best[0], best[2]))


def test_equal_pictures_come_by_number_also_at_the_cut():
    same = np.repeat(rows(1), 50, axis=0)
    found, _ = Ranking(np.arange(50) + 10, same).search(same[0], 7)
    assert found.tolist() == list(range(10, 17))


def test_an_empty_ranking_finds_nothing():
    empty = Ranking(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    assert empty.search(np.ones(4, np.float32), 5)[0].tolist() == []
    assert empty.embedding(1) is None


def test_embeddings_by_number():
    ranking = Ranking(np.asarray([2, 5, 9]), rows(3))
    assert ranking.embedding(5) is not None
    assert np.array_equal(ranking.embedding(9), rows(3)[2])
    assert [ranking.embedding(i) for i in (0, 1, 3, 10, -5, 2**63, 2**80)] == [None] * 7


def recall(ranking, ids, embeddings, queries):
    hits = [len(set(ranking.search(q, 10)[0].tolist()) & set(by_hand(ids, embeddings, q, 10))) for q in queries]
    return np.mean(hits) / 10


def test_the_graph_finds_nearly_all_of_the_nearest_and_follows_the_pictures(tmp_path):
    ids, embeddings, queries = np.arange(1500) + 1, rows(1500), rows(30, seed=2)
    assert write_graph(tmp_path, ids, embeddings, exact_up_to=2000) == {"ranking": "exact"}
    assert not (tmp_path / GRAPH).exists()
    said = write_graph(tmp_path, ids, embeddings, exact_up_to=1000)
    assert said["ranking"] == "hnsw"
    assert said["recall@10"] > 0.95
    ranking = open_ranking(tmp_path, ids, embeddings, exact_up_to=1000)
    assert not ranking.exact
    assert recall(ranking, ids, embeddings, queries) > 0.95
    # 100 have gone, 100 are new; the file on disk is the old one, as after a kill.
    ids2, embeddings2 = np.concatenate([ids[100:], np.arange(100) + 5000]), np.concatenate([embeddings[100:], rows(100, seed=3)])
    behind = open_ranking(tmp_path, ids2, embeddings2, exact_up_to=1000)
    found = {i for q in queries for i in behind.search(q, 50)[0].tolist()}
    assert found <= set(ids2.tolist())
    assert recall(behind, ids2, embeddings2, queries) > 0.95


def test_graph_scores_are_exact_and_exclusions_hold(tmp_path):
    ids, embeddings, query = np.arange(500) + 1, rows(500), rows(1, seed=4)[0]
    write_graph(tmp_path, ids, embeddings, exact_up_to=10)
    ranking = open_ranking(tmp_path, ids, embeddings, exact_up_to=10)
    best = by_hand(ids, embeddings, query, 3)
    found, scores = ranking.search(query, 8, without=best)
    assert len(found) == 8
    assert not set(found.tolist()) & set(best)
    assert scores == pytest.approx([float(embeddings[i - 1] @ query) for i in found], abs=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\0" * 5000])
def test_a_damaged_graph_is_made_again(tmp_path, content):
    (tmp_path / GRAPH).write_bytes(content)
    ids, embeddings = np.arange(200) + 1, rows(200)
    assert write_graph(tmp_path, ids, embeddings, exact_up_to=10)["recall@10"] > 0.95
    assert open_ranking(tmp_path, ids, embeddings, exact_up_to=10).search(embeddings[7], 1)[0].tolist() == [8]


@pytest.mark.parametrize(("removed", "anew"), [(50, False), (200, True)])
def test_a_graph_of_which_much_has_gone_is_built_anew(tmp_path, monkeypatch, removed, anew):
    """Removed nodes stay in a graph as holes: above a fifth of them it is made again."""
    made = []
    fresh = ranking._new
    monkeypatch.setattr(ranking, "_new", lambda dim: made.append(dim) or fresh(dim))
    ids, embeddings = np.arange(500, dtype=np.int64), rows(500)
    graph, changed = ranking._graph(tmp_path / GRAPH, ids, embeddings)
    assert changed
    graph.save(str(tmp_path / GRAPH))
    made.clear()
    graph, changed = ranking._graph(tmp_path / GRAPH, ids[removed:], embeddings[removed:])
    assert changed
    assert len(made) == (2 if anew else 1)  # one to read the file into
    assert sorted(np.asarray(graph.keys).tolist()) == list(range(removed, 500))
