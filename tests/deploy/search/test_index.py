"""What an index holds after pictures came, changed, moved, broke and went."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clipling.deploy.search import index, sources
from clipling.deploy.search.catalogue import Catalogue
from clipling.deploy.search.index import update
from clipling.deploy.search.search import Search
from clipling.errors import UserError
from tests.deploy.search.making import ABOUT, COLOURS, ColourModel, folder_of, picture


@pytest.fixture(autouse=True)
def files_are_old(monkeypatch):
    """As if everything had been written long ago: otherwise fresh files are looked at again."""
    monkeypatch.setattr(sources, "_FRESH", 0)


@pytest.fixture
def photos(tmp_path):
    return folder_of(tmp_path / "photos", 40)


@pytest.fixture
def run(tmp_path, photos):
    """Indexes, and says what the model saw beside the result."""

    def call(images=photos, about=ABOUT, **options):
        model = ColourModel()
        return {**update(model, about, str(images), tmp_path / "index", **options), "seen": model.seen}

    return call


def held(tmp_path):
    """key -> embedding, as a reader of the index finds them."""
    catalogue = Catalogue(tmp_path / "index")
    ids, rows = catalogue.embeddings()
    found = {file.key: rows[list(ids).index(shown.id)] for shown in catalogue.shown(ids.tolist()) for file in shown.files}
    catalogue.close()
    return found


def expected(photos):
    model = ColourModel()
    paths = sorted(p for p in photos.rglob("*") if p.suffix == ".png")
    return {p.relative_to(photos).as_posix(): model.encode_image([Image.open(p)])[0] for p in paths}


def assert_true(tmp_path, photos):
    found, wanted = held(tmp_path), expected(photos)
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], abs=1e-6) for key in wanted)


def test_first_and_second_run(run, tmp_path, photos):
    first = run()
    assert (first["seen"], first["encoded"], first["pictures"], first["files"], first["broken"]) == (40, 40, 40, 40, 0)
    assert_true(tmp_path, photos)
    second = run()
    assert (second["seen"], second["unchanged"], second["removed"], second["recognised"]) == (0, 40, 0, 0)


def test_new_changed_deleted(run, tmp_path, photos):
    run()
    picture(photos / "new" / "one.png", COLOURS["red"], mark=999)
    picture(photos / "red" / "0.png", COLOURS["blue"], mark=998)
    (photos / "green" / "1.png").unlink()
    result = run()
    assert (result["seen"], result["encoded"], result["removed"], result["pictures"]) == (2, 2, 1, 40)
    assert_true(tmp_path, photos)


def test_renamed_files_are_not_encoded_again(run, tmp_path, photos):
    run()
    (photos / "red").rename(photos / "rouge")
    result = run()
    assert (result["seen"], result["recognised"], result["removed"], result["pictures"]) == (0, 4, 4, 40)
    assert_true(tmp_path, photos)


def test_a_touched_file_is_read_and_not_encoded(run, tmp_path, photos):
    run()
    os.utime(photos / "red" / "0.png", (1, 1))
    result = run()
    assert (result["seen"], result["recognised"], result["unchanged"]) == (0, 1, 39)
    assert run()["unchanged"] == 40


def test_a_change_that_keeps_size_and_time_of_a_fresh_file_is_found(run, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(sources, "_FRESH", 10**13)
    path = photos / "bmp.bmp"
    picture(path, COLOURS["red"])
    state = path.stat()
    run()
    picture(path, COLOURS["blue"])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert run()["seen"] == 1


def test_equal_files_share_a_picture(run, tmp_path, photos):
    shutil.copy(photos / "red" / "0.png", photos / "copy.png")
    result = run()
    assert (result["files"], result["pictures"], result["seen"]) == (41, 40, 40)
    hit = Search(tmp_path / "index", model=ColourModel()).query("red", 1)[0]
    assert hit.key == "copy.png"
    (photos / "copy.png").unlink()
    assert run()["pictures"] == 40
    assert Search(tmp_path / "index", model=ColourModel()).query("red", 1)[0].key == "red/0.png"


def test_broken_pictures_are_listed_counted_and_not_tried_again(run, tmp_path, photos, monkeypatch):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    (photos / "empty.png").write_bytes(b"")
    whole = (photos / "red" / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = run()
    assert (result["broken"], result["encoded"]) == (3, 40)
    lines = (tmp_path / "index" / "problems.tsv").read_text().splitlines()
    assert lines[0] == "kind\twhere\tdetail"
    assert sorted(line.split("\t")[1] for line in lines[1:]) == ["broken.jpg", "cut.png", "empty.png"]
    calls = []
    monkeypatch.setattr(index, "decode", lambda data: calls.append(data))
    assert run()["broken"] == 3
    assert not calls
    monkeypatch.undo()
    for name in ("broken.jpg", "empty.png", "cut.png"):
        picture(photos / name, COLOURS["red"], mark=50)
    assert run()["broken"] == 0
    assert not (tmp_path / "index" / "problems.tsv").exists()


def test_a_model_that_gives_nan_is_a_problem_of_the_picture(tmp_path, photos):
    class Odd(ColourModel):
        def encode_image(self, images):
            rows = super().encode_image(images)
            rows[rows[:, 9] > 0.4] = np.nan
            return rows

    result = update(Odd(), ABOUT, str(photos), tmp_path / "index")
    assert 0 < result["broken"] < 40
    assert result["broken"] + result["pictures"] == 40
    assert all(np.isfinite(row).all() for row in held(tmp_path).values())


def test_another_model_is_refused(run, tmp_path, photos):
    run()
    with pytest.raises(UserError, match=r"made with another model \(colours\).*--overwrite"):
        run(about={"fingerprint": "other", "model": "another"})
    assert_true(tmp_path, photos)
    assert run(about={"fingerprint": "other", "model": "another"}, overwrite=True)["seen"] == 40
    with pytest.raises(UserError, match="another model"):
        run()


def test_another_folder_is_refused_a_moved_one_is_not(run, tmp_path, photos):
    run()
    other = folder_of(tmp_path / "other", 3)
    with pytest.raises(UserError, match="is the index of"):
        run(other)
    photos.rename(tmp_path / "moved")
    result = run(tmp_path / "moved")
    assert (result["seen"], result["unchanged"]) == (0, 40)
    assert Search(tmp_path / "index", model=ColourModel()).query("red", 1)[0].path.startswith(str(tmp_path / "moved"))


def test_numbers_are_never_given_twice(run, tmp_path, photos):
    run()
    before = {hit.id for hit in Search(tmp_path / "index", model=ColourModel()).query("red", 40)}
    run(overwrite=True)
    after = {hit.id for hit in Search(tmp_path / "index", model=ColourModel()).query("red", 40)}
    assert not before & after


def test_a_folder_without_pictures_leaves_the_index(run, tmp_path, photos):
    run()
    for path in photos.iterdir():
        shutil.rmtree(path)
    with pytest.raises(UserError, match="holds no pictures"):
        run()
    assert len(held(tmp_path)) == 40


@pytest.mark.parametrize("images", ["nowhere", "a.csv"])
def test_what_is_no_source(tmp_path, images):
    (tmp_path / "a.csv").write_text("filepath,title\nx.jpg,y\n")
    with pytest.raises(UserError):
        update(ColourModel(), ABOUT, str(tmp_path / images), tmp_path / "index")


def test_links_out_of_the_folder_are_refused_and_those_inside_followed(run, tmp_path, photos):
    picture(tmp_path / "secret" / "s.png", COLOURS["pink"], mark=5)
    (photos / "file.png").symlink_to(tmp_path / "secret" / "s.png")
    (photos / "folder").symlink_to(tmp_path / "secret")
    (photos / "inside.png").symlink_to(photos / "red" / "0.png")
    (photos / "dangling.png").symlink_to(photos / "nothing.png")
    (photos / "loop").symlink_to(photos)
    (photos / "up").symlink_to(tmp_path)  # one row, and no walk through what lies there
    result = run()
    assert result["files"] == 41
    assert not [key for key in held(tmp_path) if "s.png" in key or key == "file.png"]
    assert "inside.png" in held(tmp_path)
    assert (tmp_path / "index" / "problems.tsv").read_text().count("leads out") == 3


def test_an_index_inside_the_folder_does_not_index_itself(photos):
    folder_of(photos / "index" / "model", 2)
    assert update(ColourModel(), ABOUT, str(photos), photos / "index")["files"] == 40


def test_names_that_are_not_utf8(run, tmp_path, photos):
    odd = os.path.join(os.fsencode(photos), b"caf\xe9.png")
    shutil.copy(photos / "red" / "0.png", photos / "x.png")
    picture(photos / "x.png", COLOURS["red"], mark=77)
    os.rename(photos / "x.png", odd)
    run()
    hit = next(h for h in Search(tmp_path / "index", model=ColourModel()).query("red", 41) if h.key.startswith("caf"))
    assert os.fsencode(hit.path) == odd
    hit.key.encode()


def test_tars(tmp_path, photos):
    with tarfile.open(tmp_path / "p-0.tar", "w") as tar:
        for path in sorted(photos.rglob("*.png")):
            tar.add(path, path.relative_to(photos).as_posix())
    result = update(ColourModel(), ABOUT, str(tmp_path / "p-{0..0}.tar"), tmp_path / "index")
    assert result["pictures"] == 40
    wanted = expected(photos)
    assert {key.removeprefix("p-0.tar/") + ".png": True for key in held(tmp_path)} == dict.fromkeys(wanted, True)
    search = Search(tmp_path / "index", model=ColourModel())
    shown = search.shown([search.query("red", 1)[0].id])[0]
    assert sources.read(search.root, shown.files[0]) == (photos / (shown.files[0].key.removeprefix("p-0.tar/") + ".png")).read_bytes()
    # More at the end: every place in the tar is new to the index by its time, no content is.
    picture(tmp_path / "more.png", COLOURS["red"], mark=1234)
    with tarfile.open(tmp_path / "p-0.tar", "a") as tar:
        tar.add(tmp_path / "more.png", "more.png")
    model = ColourModel()
    again = update(model, ABOUT, str(tmp_path / "p-0.tar"), tmp_path / "index")
    assert (model.seen, again["recognised"], again["pictures"]) == (1, 40, 41)


def test_two_at_a_time_are_refused(tmp_path, photos):
    going, go_on = threading.Event(), threading.Event()

    class Slow(ColourModel):
        def encode_image(self, images):
            going.set()
            go_on.wait(10)
            return super().encode_image(images)

    first = threading.Thread(target=update, args=(Slow(), ABOUT, str(photos), tmp_path / "index"))
    first.start()
    going.wait(10)
    try:
        with pytest.raises(UserError, match="another process is indexing"):
            update(ColourModel(), ABOUT, str(photos), tmp_path / "index")
    finally:
        go_on.set()
        first.join()
    assert_true(tmp_path, photos)


def test_what_was_encoded_before_an_interruption_stays(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(index, "PICTURES", 8)

    class Stopped(ColourModel):
        def encode_image(self, images):
            if self.seen >= 16:
                raise KeyboardInterrupt
            return super().encode_image(images)

    with pytest.raises(KeyboardInterrupt):
        update(Stopped(), ABOUT, str(photos), tmp_path / "index")
    search = Search(tmp_path / "index", model=ColourModel())
    assert len(search) == 16
    assert search.finished is None
    model = ColourModel()
    update(model, ABOUT, str(photos), tmp_path / "index")
    assert model.seen == 24
    assert search.refresh()
    assert len(search) == 40
    assert search.finished is not None


def test_few_pixels_at_a_time(tmp_path, photos, monkeypatch):
    """Memory is bounded by pixels, not by files."""
    monkeypatch.setattr(index, "PIXELS", 3 * 40 * 30)
    batches = []

    class Counting(ColourModel):
        def encode_image(self, images):
            batches.append(len(images))
            return super().encode_image(images)

    update(Counting(), ABOUT, str(photos), tmp_path / "index")
    assert max(batches) == 3


def test_an_index_above_the_exact_size_has_a_graph_that_is_kept_up(run, tmp_path, photos):
    first = run(exact_up_to=10)
    assert first["ranking"] == "hnsw"
    assert first["recall@10"] > 0.9
    made = (tmp_path / "index" / "pictures.usearch").stat().st_mtime_ns
    run(exact_up_to=10)
    assert (tmp_path / "index" / "pictures.usearch").stat().st_mtime_ns == made
    (photos / "red" / "0.png").unlink()
    run(exact_up_to=10)
    assert (tmp_path / "index" / "pictures.usearch").stat().st_mtime_ns != made


def test_thumbnails_keep_the_shape_and_are_small(tmp_path):
    picture(tmp_path / "photos" / "wide.png", COLOURS["red"], size=(3000, 30))
    picture(tmp_path / "photos" / "small.png", COLOURS["red"], size=(10, 20))
    update(ColourModel(), ABOUT, str(tmp_path / "photos"), tmp_path / "index")
    search = Search(tmp_path / "index", model=ColourModel())
    sizes = {hit.key: Image.open(__import__("io").BytesIO(search.thumbnail(hit.id))).size for hit in search.query("red", 2)}
    assert sizes == {"wide.png": (384, 4), "small.png": (10, 20)}


def test_damaged_and_foreign_catalogues(tmp_path, run):
    with pytest.raises(UserError, match="is not a search index"):
        Search(tmp_path / "nothing")
    run()
    db = sqlite3.connect(tmp_path / "index" / "catalogue.sqlite")
    db.execute("UPDATE about SET value = '99' WHERE name = 'format'")
    db.commit()
    db.close()
    with pytest.raises(UserError, match="another version"):
        Search(tmp_path / "index", model=ColourModel())
    (tmp_path / "index" / "catalogue.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        Search(tmp_path / "index", model=ColourModel())


def test_progress_ends_at_all(run, photos):
    told = []
    run(progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 40)
    assert told[-1] == (40, 40)
    assert told == sorted(told)


def test_a_read_only_index_can_be_searched(run, tmp_path, photos):
    run()
    for path in (tmp_path / "index").iterdir():
        path.chmod(0o444)
    (tmp_path / "index").chmod(0o555)
    try:
        assert Search(tmp_path / "index", model=ColourModel()).query("red", 1)[0].key == "red/0.png"
    finally:
        (tmp_path / "index").chmod(0o755)


def test_searching_while_indexing_is_not_in_the_way(run, tmp_path, photos):
    run()
    search = Search(tmp_path / "index", model=ColourModel())
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            hits = search.query("red", 3)
            if not hits:
                wrong.append(hits)
            search.thumbnail(hits[0].id)
            time.sleep(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    for i in range(5):
        picture(photos / f"more{i}.png", COLOURS["green"], mark=300 + i)
        run()
        search.refresh()
    stop.set()
    asking.join()
    assert not wrong
    assert len(search) == 45
