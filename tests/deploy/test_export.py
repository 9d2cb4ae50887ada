"""The exported folder: whole or absent, checked against torch, with a kit that the runtime passes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import clipling
from clipling.cli import main
from clipling.data.images import decode
from clipling.deploy import export as making
from clipling.deploy import parity
from clipling.deploy.export import export, model_name, weights_hash
from clipling.deploy.fixtures import photos
from clipling.deploy.folder import check_place, made_whole
from clipling.deploy.readme import without_opening
from clipling.errors import UserError
from clipling.models.hub import save_student
from tests.deploy.making import tiny_export

KIT_FILES = ("README.md", "Sample.kt", "Sample.swift", "sample.mjs", "fixtures.json")


def read(kit: Path, array: dict) -> np.ndarray:
    return np.frombuffer((kit / array["file"]).read_bytes(), np.dtype(array["dtype"]).newbyteorder("<")).reshape(array["shape"])


@pytest.fixture(scope="module")
def kit() -> tuple[Path, dict]:
    folder = tiny_export()[1] / "kit"
    return folder, json.loads((folder / "fixtures.json").read_text())


def test_what_a_folder_holds():
    student, folder = tiny_export()
    files = ["README.md", "clipling.json", "gate.json", "image.onnx", "kit", "text.onnx", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == files
    assert "came without a card" in (folder / "README.md").read_text()
    assert set(KIT_FILES) <= {p.name for p in (folder / "kit").iterdir()}
    gate = json.loads((folder / "gate.json").read_text())["fp32"]
    assert gate["image"]["max_error"] < 1e-5
    assert gate["text"]["cosine"] > 0.99999
    manifest = clipling.load(folder, threads=1).manifest
    assert manifest.source == {"clipling": clipling.__version__, "weights": weights_hash(student)}
    assert (manifest.text.clean, manifest.text.start, manifest.text.end, manifest.text.pad) == ("lower", 49406, 49407, 0)


def test_the_kit_passes_the_runtime(kit):
    folder, fixtures = kit
    model = clipling.load(folder.parent, threads=1)
    for photo in fixtures["photos"]:
        allowed = fixtures["tolerance"][photo["tolerance"]]
        image = decode((folder / photo["file"]).read_bytes())
        assert image.size == (photo["width"], photo["height"])
        expected = read(folder, photo["embedding"])
        for given in (read(folder, photo["pixels"]), folder / photo["file"]):
            got = model.encode_image(given)[0]
            assert np.abs(got - expected).max() <= allowed["max_error"]
            assert got @ expected >= allowed["cosine"]
    for text in fixtures["texts"]:
        assert model.tokens([text["text"]])[0].tolist() == text["tokens"]
        assert np.abs(model.encode_text(text["text"])[0] - read(folder, text["embedding"])).max() < 1e-5


def test_fixtures_are_the_same_every_time_and_of_every_kind(kit):
    _, fixtures = kit
    assert [p.data for p in photos(32)] == [p.data for p in photos(32)]
    sizes = {p["file"]: (p["width"], p["height"]) for p in fixtures["photos"]}
    assert sizes == {
        "exact.png": (32, 32),
        "large.png": (224, 224),
        "odd.png": (157, 101),
        "tall.jpg": (160, 224),
        "turned.jpg": (120, 200),
    }


def test_samples_are_short_and_say_what_is_untested(kit):
    folder, _ = kit
    for name in ("sample.mjs", "Sample.kt", "Sample.swift"):
        assert len((folder / name).read_text().splitlines()) <= 80
    for name in ("Sample.kt", "Sample.swift"):
        assert (folder / name).read_text().startswith("// UNTESTED")
    assert (folder / "README.md").read_text().count("untested: written against") == 2


@pytest.mark.slow
def test_the_javascript_sample_runs(kit, tmp_path):
    """Needs node and the npm registry."""
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        pytest.skip("needs Node.js")
    shutil.copy(kit[0] / "sample.mjs", tmp_path)
    # Without scripts: they fetch GPU libraries, which a CPU does not need.
    got = subprocess.run([npm, "install", "--ignore-scripts", "onnxruntime-node"], cwd=tmp_path, capture_output=True, text=True)
    if got.returncode:
        pytest.skip("onnxruntime-node cannot be installed here")
    done = subprocess.run(["node", "sample.mjs", str(kit[0].parent)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 10


def test_a_model_that_differs_is_refused(monkeypatch, tmp_path):
    student, folder = tiny_export()

    def export_other(student, out, name, source=None):
        """The graphs of another model."""
        for path in folder.iterdir():
            if path.is_file():
                shutil.copy(path, out)

    monkeypatch.setattr(making, "export_fp32", export_other)
    monkeypatch.setattr(type(student), "encode_texts_in_batches", lambda self, texts, batch=256: np.eye(len(texts), 64, dtype=np.float32))
    with pytest.raises(UserError, match=r"differs from the torch model \(text\): cosine .* expected cosine 0.99999 or more"):
        export(student, tmp_path / "out", name="x")
    assert not list(tmp_path.iterdir())


def test_other_tokens_are_refused(monkeypatch):
    student, folder = tiny_export()
    model = clipling.load(folder, threads=1)
    parity.check_tokens(student, model)
    monkeypatch.setattr(model, "tokens", lambda texts: np.array([[1, 2]]))
    with pytest.raises(UserError, match="the exported tokenizer gives"):
        parity.check_tokens(student, model)


def test_places(tmp_path):
    (tmp_path / "mine").mkdir()
    check_place(tmp_path / "mine", False)
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is no exported folder"):
            check_place(tmp_path / "mine", overwrite)
    with made_whole(tmp_path / "out") as folder:
        (folder / "clipling.json").write_text("old")
    with pytest.raises(UserError, match="Use --overwrite"):
        check_place(tmp_path / "out", False)
    with pytest.raises(RuntimeError), made_whole(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "out" / "clipling.json").read_text() == "old"
    with made_whole(tmp_path / "out", overwrite=True) as folder:
        (folder / "clipling.json").write_text("new")
    assert (tmp_path / "out" / "clipling.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/ping", "ping"),
        ("runs/ping/model", "ping"),
        ("local-dir:/a/b/", "b"),
        ("ViT-B-32@openai", "ViT-B-32@openai"),
        ("model", "model"),
    ],
)
def test_names(model, name):
    assert model_name(model) == name


def test_the_verb(capsys, tmp_path):
    save_student(tiny_export()[0], tmp_path / "run" / "model", card="# Mine\n\nLicence: mine\n")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "text.onnx" in printed
    assert "largest error" in printed
    assert clipling.load(tmp_path / "out", threads=1).manifest.name == "run"
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Mine\n\nLicence: mine\n\n## Exported to ONNX")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_overwriting_never_takes_what_no_export_made(tmp_path):
    """Notes, photos and an index of the user's may lie in an exported folder: it is refused as a whole."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("clipling.json", "README.md", "image.onnx", "image.int8.onnx"):
        (out / name).write_text("{}")
    check_place(out, True)
    (out / "my_notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what no export made \(my_notes.txt\)"), made_whole(out, overwrite=True):
        pass
    assert (out / "my_notes.txt").read_text() == "mine"


def test_of_a_link_what_it_leads_to_is_replaced(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "clipling.json").write_text("old")
    link.symlink_to(real)
    with made_whole(link, overwrite=True) as folder:
        (folder / "clipling.json").write_text("new")
    assert link.is_symlink()
    assert (real / "clipling.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a link to .*nowhere, which does not exist"):
        check_place(tmp_path / "lost", False)


def test_the_card_of_an_export_does_not_say_how_to_open_weights_that_are_not_there():
    card = "# x\n\n## Open it\n\n    open_clip.create_model(...)\n\n## What taught it\n\nmuch\n"
    assert "open_clip" not in without_opening(card)
    assert "## What taught it\n\nmuch" in without_opening(card)
    assert without_opening("# x\n\n## Open it\n\nend") == "# x\n\n"
