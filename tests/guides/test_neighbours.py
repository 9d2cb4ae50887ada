"""Neighbour tables: exact, whatever the block size and the number of processes; nothing held out, ever; goldens."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipling.errors import UserError
from clipling.guides.neighbours import Table, build_table, rows_digest
from tests.guides.making import brute_force, rows_of, unit_rows

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def no_links(count: int) -> list[list[int]]:
    return [[] for _ in range(count)]


def same(one: Table, other: Table) -> bool:
    return one.ids.tobytes() == other.ids.tobytes() and one.sims.tobytes() == other.sims.tobytes() and one.hubness == other.hubness


def awkward(count: int, dim: int, seed: int = 0):
    """Features with exact duplicates, near duplicates and a coarse grid (many exact ties), links, failed rows, a split."""
    rng = np.random.default_rng(seed)
    features = unit_rows(count, dim, seed).astype(np.float32)
    features[: count // 4] = np.sign(features[: count // 4]) / np.sqrt(dim)  # ties: few different inner products
    features[count // 4 : count // 2] = features[rng.integers(0, count // 20 + 1, count // 2 - count // 4)]
    features = features.astype(np.float16)
    links: list[list[int]] = no_links(count)
    for number in range(count // 10):
        for member in rng.choice(count, rng.integers(2, 5), replace=False):
            links[member].append(number)
    valid = rng.random(count) > 0.02
    features[~valid] = 0
    rows = np.sort(rng.permutation(count)[: int(0.9 * count)])
    return features, rows, links, valid


def test_equals_brute_force_on_10000_rows_with_duplicates_and_ties():
    """Every row against all others in fp64."""
    features, rows, links, valid = awkward(10_000, 12)
    k = 5
    table = build_table(features, rows, links, valid, k, block=1024)
    usable = rows[valid[rows]]
    exact = features.astype(np.float64)
    member: dict[int, list[int]] = {}
    for pair in usable.tolist():
        for link in links[pair]:
            member.setdefault(link, []).append(pair)
    # Inner products of fp16 rows are exact in fp64 (products of 22 bits, sums of 12): any order of summing gives them.
    for start in range(0, len(usable), 500):
        queries = usable[start : start + 500]
        dots = exact[queries] @ exact[usable].T
        dots[np.arange(len(queries)), np.searchsorted(usable, queries)] = -np.inf
        for row, query in enumerate(queries.tolist()):
            for link in links[query]:
                dots[row, np.searchsorted(usable, member[link])] = -np.inf
        worst = np.partition(dots, -k, axis=1)[:, -k]
        for row, query in enumerate(queries.tolist()):
            near = np.flatnonzero(dots[row] >= worst[row])
            best = near[np.argsort(-dots[row, near], kind="stable")[:k]]  # stable: ties go to the smaller pair
            assert table.ids[query].tolist() == usable[best].tolist()
            assert table.sims[query].tolist() == dots[row, best].tolist()
    assert (table.sims[usable][:, :-1] == table.sims[usable][:, 1:]).mean() > 0.2  # there were ties
    held_out = np.setdiff1d(np.arange(10_000), usable)
    assert (table.ids[held_out] == -1).all()
    assert not np.isin(table.ids, held_out).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_does_not_depend_on_block_size_threads_or_storage(dtype):
    features, rows, links, valid = awkward(400, 40)
    features = np.where(valid[:, None], features.astype(np.float64), 0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    features = features.astype(dtype)
    first = build_table(features, rows, links, valid, 4, block=2048)
    for block in (1, 7, 64, 333):
        assert same(build_table(features, rows, links, valid, 4, block=block), first)
    torch.set_num_threads(2)
    assert same(build_table(features, rows, links, valid, 4, block=100), first)
    if dtype == np.float16:
        assert same(build_table(rows_of(features), rows, links, valid, 4), first)
    ids, sims = brute_force(features, rows, links, valid, 4)
    assert np.array_equal(first.ids, ids)
    np.testing.assert_allclose(first.sims, sims, rtol=0, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5), st.integers(1, 9))
def test_equals_brute_force_on_any_small_source(seed, count, k, block):
    rng = np.random.default_rng(seed)
    features = rng.choice([-1.0, 1.0], (count, 4)) / 2  # at most 16 different rows: ties everywhere
    links = [sorted({int(c) for c in rng.integers(0, 5, rng.integers(0, 3))}) for _ in range(count)]
    valid = rng.random(count) > 0.2
    rows = np.flatnonzero(rng.random(count) > 0.3)
    table = build_table(features, rows, links, valid, k, block=block)
    ids, _ = brute_force(features, rows, links, valid, k)
    assert np.array_equal(table.ids, ids)
    allowed = set(rows[valid[rows]].tolist()) | {-1}
    assert set(table.ids.ravel().tolist()) <= allowed  # nothing held out, nothing failed
    for pair in range(count):
        for other in table.ids[pair][table.ids[pair] >= 0].tolist():
            assert other != pair
            assert not set(links[pair]) & set(links[other])


def test_toy_banks_of_the_specification():
    n_image, n_text = np.arange(30.0).reshape(6, 5), np.arange(42.0).reshape(6, 7)
    image, text = np.sin(0.7 * n_image + 0.2), np.cos(0.4 * n_text + 0.9)
    sims = [0.719254567, 0.752120495, 0.781769384, 0.796487755, 0.781769384, 0.796487755]
    for bank, expected in ((image, sims), (text, None)):
        bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        table = build_table(bank, np.arange(6), no_links(6), np.ones(6, bool), 1)
        assert table.ids[:, 0].tolist() == [2, 3, 4, 5, 2, 3]
        if expected:
            np.testing.assert_allclose(table.sims[:, 0], expected, rtol=0, atol=5e-10)


def test_neighbours_by_caption_are_pairs_and_never_the_own_one():
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    features = unit_rows(len(owner), 6, 3)
    links = [[p % 11] if p % 4 == 0 else [] for p in range(60)]
    valid, rows = rng.random(60) > 0.1, np.flatnonzero(rng.random(60) > 0.2)
    table = build_table(features, rows, links, valid, 4, block=13, owner=owner)
    ids, sims = brute_force(features, rows, links, valid, 4, owner)
    assert table.ids.shape == (len(owner), 4)
    assert table.info["by_caption"]
    assert np.array_equal(table.ids, ids)
    np.testing.assert_allclose(table.sims, sims, rtol=0, atol=1e-15)
    assert (table.ids != owner[:, None]).all()


def test_rows_of_zeros_take_no_part():
    features = unit_rows(20, 6)
    features[[2, 11]] = 0
    table = build_table(features, np.arange(20), no_links(20), np.ones(20, bool), 3)
    assert (table.ids[[2, 11]] == -1).all()
    assert not np.isin(table.ids, [2, 11]).any()
    assert (table.ids[3] >= 0).all()


def test_a_permutation_of_the_source_permutes_the_table():
    features = unit_rows(80, 9, 5)
    order = np.random.default_rng(0).permutation(80)
    plain = build_table(features, np.arange(80), no_links(80), np.ones(80, bool), 3)
    shuffled = build_table(features[order], np.arange(80), no_links(80), np.ones(80, bool), 3)
    assert np.array_equal(order[shuffled.ids], plain.ids[order])


def test_saved_tables_come_back_and_know_their_split(tmp_path):
    features, rows, links, valid = awkward(120, 8)
    table = build_table(features, rows, links, valid, 3)
    table.save(tmp_path / "t.npz")
    again = Table.load(tmp_path / "t.npz", rows[::-1])  # a set of rows: the order says nothing
    assert same(table, again)
    assert again.info == table.info
    assert again.rows_hash == rows_digest(rows)
    with pytest.raises(UserError, match="another training split"):
        Table.load(tmp_path / "t.npz", rows[1:])
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Table.load(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="cannot be read"):
        Table.load(tmp_path / "absent.npz")


def test_a_folder_keeps_tables_apart_by_what_they_were_made_from(tmp_path):
    features, rows, links, valid = awkward(150, 8)
    first = build_table(features, rows, links, valid, 3, folder=tmp_path)
    assert same(first, build_table(features, rows, links, valid, 3))
    assert len(list(tmp_path.iterdir())) == 1
    said = []
    again = build_table(features, rows, links, valid, 3, folder=tmp_path, progress=lambda *seen: said.append(seen))
    assert same(first, again)
    assert not said
    changed = features.copy()
    changed[rows[0]] = features[rows[1]]
    fewer = [list(ids) for ids in links]
    fewer[next(i for i in rows.tolist() if links[i])] = []
    for other in (
        build_table(changed, rows, links, valid, 3, folder=tmp_path),
        build_table(features, rows[1:], links, valid, 3, folder=tmp_path),
        build_table(features, rows, fewer, valid, 3, folder=tmp_path),
        build_table(features, rows, links, valid, 2, folder=tmp_path),
        build_table(features, rows, links, valid, 3, cap=9, folder=tmp_path),
    ):
        assert other.info["digest"] != first.info["digest"]
    assert len(list(tmp_path.iterdir())) == 6


def damages(whole: bytes, count: int):
    """Truncated, empty, zeroed, and with one wrong byte."""
    rng = np.random.default_rng(0)
    yield from (b"", whole[: len(whole) // 2], whole[:-1], bytes(len(whole)), b"[]")
    for place in rng.permutation(len(whole))[:count].tolist():
        yield whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :]


def test_a_damaged_table_is_named_when_loaded_and_made_again_in_a_folder(tmp_path):
    features, rows, links, valid = awkward(60, 8)

    def made():
        return build_table(features, rows, links, valid, 3, folder=tmp_path)

    first = made()
    (file,) = tmp_path.iterdir()
    whole, refused = file.read_bytes(), 0
    for damaged in damages(whole, 80):
        file.write_bytes(damaged)
        try:
            found, message = Table.load(file), None
        except UserError as error:
            found, message = made(), str(error)
            refused += 1
        assert same(found, first)  # also where a byte says nothing, as in a date of the zip
        if message:
            assert str(file) in message
            assert file.read_bytes() == whole
            assert list(tmp_path.iterdir()) == [file]
    assert refused > 60
    np.savez(tmp_path / "other.npz", ids=first.ids, sims=first.sims, about=np.frombuffer(b"[]", np.uint8))
    np.save(tmp_path / "array.npy", first.ids)
    for name in ("other.npz", "array.npy"):
        with pytest.raises(UserError, match=name):
            Table.load(tmp_path / name)


def test_damaged_blocks_of_a_table_are_made_again(tmp_path):
    features, rows, links, valid = awkward(60, 8)
    first = build_table(features, rows, links, valid, 3, folder=tmp_path / "whole", block=16)
    (final,) = (tmp_path / "whole").iterdir()
    parts = tmp_path / "killed" / f"{final.stem}.parts"
    parts.mkdir(parents=True)
    (parts / "0000000000-16.npz").write_bytes(b"")
    (parts / "0000000016-16.npz").write_bytes(b"PK")
    assert same(build_table(features, rows, links, valid, 3, folder=tmp_path / "killed", block=16), first)


@needs_fork
def test_several_processes_make_a_damaged_table_again(tmp_path):
    features, rows, links, valid = awkward(200, 16)
    alone = build_table(features, rows, links, valid, 4, block=37, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    children = []
    for rank in range(3):
        child = os.fork()
        if child == 0:
            made = build_table(features, rows, links, valid, 4, block=37, folder=tmp_path, rank=rank, world=3)
            os._exit(0 if same(made, alone) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    assert file.read_bytes() == whole


@needs_fork
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_make_the_same_table(tmp_path, world):
    features, rows, links, valid = awkward(400, 16)
    alone = build_table(features, rows, links, valid, 4, block=37, folder=tmp_path / "alone")
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            made = build_table(features, rows, links, valid, 4, block=37, folder=tmp_path / "shared", rank=rank, world=world)
            os._exit(0 if same(made, alone) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    names = [p.name for p in (tmp_path / "alone").iterdir()]
    assert [p.name for p in (tmp_path / "shared").iterdir()] == names
    assert (tmp_path / "shared" / names[0]).read_bytes() == (tmp_path / "alone" / names[0]).read_bytes()


def test_mistakes_are_named():
    features, rows, links, valid = awkward(40, 8)
    with pytest.raises(UserError, match="at least 1"):
        build_table(features, rows, links, valid, 0)
    with pytest.raises(UserError, match="below k = 3"):
        build_table(features, rows, links, valid, 3, cap=2)
    with pytest.raises(UserError, match="expected exact, faiss or auto"):
        build_table(features, rows, links, valid, 3, method="fast")
    with pytest.raises(ValueError, match="unit rows"):
        build_table(features.astype(np.float32) * 2, rows, links, valid, 3)
    with pytest.raises(ValueError, match="need a folder"):
        build_table(features, rows, links, valid, 3, world=2)
    with pytest.raises(ValueError, match="feature rows"):
        build_table(features[1:], rows, links, valid, 3)
