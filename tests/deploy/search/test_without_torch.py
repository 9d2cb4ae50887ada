"""From an exported folder to answers over the network, in a process that cannot import torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from clipling.errors import UserError
from tests.deploy.search.making import folder_of
from tests.models.making import tiny

for package in ("onnx", "onnxscript", "onnxruntime", "fastapi", "usearch"):
    pytest.importorskip(package)

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'open_clip', 'transformers', 'pyarrow', 'sklearn', 'scipy', 'onnx'):
            raise ModuleNotFoundError(name + ' is blocked', name=name)
sys.meta_path.insert(0, Block())
from clipling.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    import torch

    from clipling.deploy.export import export
    from clipling.models.dual import Student

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(Student(tiny()), folder, name="tiny")
    return folder


def call(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, **options
    )


def test_index_and_serve(exported, tmp_path):
    photos, out = folder_of(tmp_path / "photos", 12), tmp_path / "index"
    done = call("search", "index", exported, photos, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["encoded"] == 12
    again = call("search", "index", exported, photos, "--out", out)
    assert again.returncode == 0, again.stderr
    # Files of this second are read again, for their date proves nothing yet; none is encoded again.
    assert "12 unchanged" in again.stdout or "12 known by their bytes" in again.stdout
    assert " new" not in again.stdout
    assert not (out / "model" / "kit").exists()
    serving = subprocess.Popen(
        [sys.executable, "-c", BLOCK, "search", "serve", str(out), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        line = serving.stderr.readline()
        assert line.startswith("12 pictures at http://127.0.0.1:"), line
        address = line.split()[3]
        with urllib.request.urlopen(f"{address}/api/search?{urllib.parse.urlencode({'text': 'a red dog', 'k': 3})}", timeout=60) as answer:
            hits = json.load(answer)["results"]
    finally:
        serving.send_signal(signal.SIGINT)
        code, said = serving.wait(30), serving.stderr.read()
    assert code in (0, 130), said  # Ctrl-C is how it is stopped
    assert "Traceback" not in said
    assert len(hits) == 3
    # The same as the runtime says, asked directly.
    import clipling

    assert [hit["id"] for hit in hits] == [hit.id for hit in clipling.Search(out).query("a red dog", k=3)]
    model = clipling.load(exported)
    scores = model.encode_text(["a red dog"]) @ model.encode_image([photos / hit["key"] for hit in hits]).T
    assert [hit["score"] for hit in hits] == pytest.approx(scores[0].tolist(), abs=1e-4)


def test_a_run_cannot_be_exported_without_torch(tmp_path):
    folder_of(tmp_path / "photos", 2)
    (tmp_path / "run").mkdir()
    done = call("search", "index", tmp_path / "run", tmp_path / "photos", "--out", tmp_path / "index")
    assert done.returncode == 2
    assert "is not an exported folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_models_of_an_index(exported, tmp_path):
    """A copy lies in the index; another model is refused before anything of it is touched; --overwrite takes it."""
    import shutil

    from clipling.deploy.search.making import make_index

    photos, out = folder_of(tmp_path / "photos", 3), tmp_path / "index"
    given = Path(shutil.copytree(exported, tmp_path / "given"))
    make_index(str(given), str(photos), out)
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    manifest = json.loads((other / "clipling.json").read_text())
    manifest["text"]["pad"] = 1
    (other / "clipling.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in (out / "model").iterdir()}
    with pytest.raises(UserError, match="another model"):
        make_index(str(other), str(photos), out)
    assert {path.name: path.read_bytes() for path in (out / "model").iterdir()} == before
    assert make_index(str(given), str(photos), out)["encoded"] == 0
    made = make_index(str(other), str(photos), out, overwrite=True)
    assert made["encoded"] == 3
    # A half-done replacement is told of.
    shutil.rmtree(out / "model")
    shutil.copytree(given, out / "model")
    import clipling

    with pytest.raises(UserError, match="interrupted"):
        clipling.Search(out)
