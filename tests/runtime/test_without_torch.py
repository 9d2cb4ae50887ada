"""An exported folder runs where nothing of the training side can be imported."""

from __future__ import annotations

import subprocess
import sys

from tests.deploy.making import tiny_export

CODE = """
import sys
BLOCKED = ("torch", "torchvision", "timm", "open_clip", "transformers", "pyarrow", "scipy", "sklearn", "safetensors", "onnx", "onnxscript")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import clipling
model = clipling.load(sys.argv[1], threads=1)
image = model.encode_image(sys.argv[2])
text = model.encode_text(["a dog", "caf\\u00e9 &amp; \\U0001f415"])
assert image.shape == (1, 64) and text.shape == (2, 64)
(best, *_), = model.predict(sys.argv[2], ["dog", "cat"])
assert best[0] in ("dog", "cat") and 0.5 <= best[1] <= 1
assert not [name for name in BLOCKED if name in sys.modules]
print("ran")
"""


def test_load_encode_and_predict():
    folder = tiny_export()[1]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(folder / "kit" / "turned.jpg")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran\n"
