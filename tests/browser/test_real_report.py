"""A report of three models of this project on Flickr8k dev and CIFAR-10, made by the verbs and opened in a browser."""

from __future__ import annotations

import shutil

import pytest

import clipling

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
SUITE = """
tasks: [zeroshot_retrieval, zeroshot_classification, calibration, geometry, cost]
datasets:
  flickr8k-dev: {{data: {data}/flickr8k/dev-00000.tar}}
  cifar10: {{data: {data}/cifar10}}
"""
WIDE = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def page(shared_data, tmp_path_factory):
    """Three students of a step or two each: what the page shows is real, its numbers are near chance."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "suite.yaml").write_text(SUITE.format(data=shared_data))
    models = ("mobilenetv3_small_64_text128", "tiny_vit_32", "mobilenetv3_small_64")
    for number, student in enumerate(models):
        run = folder / f"run-{number}"
        train = f"{shared_data}/flickr8k/train-00005.tar"
        clipling.train("clip", data=train, student=student, batch=64, seed=number, out=run, set=("max_steps=2",), threads=1, json=True)
        results = folder / f"results-{number}"
        clipling.evaluate(str(run), suite=str(folder / "suite.yaml"), out=results, untrained=number == 0, ready=(), threads=1, json=True)
    path = tmp_path_factory.mktemp("alone") / "report.html"
    clipling.report(tuple(folder / f"results-{number}" for number in range(len(models))), out=path)
    return path


@pytest.mark.parametrize("width", [400, 1400])
def test_three_models_on_real_data(page, width):
    trouble: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        shown = browser.new_page(viewport={"width": width, "height": 900})
        shown.on("console", lambda message: trouble.append(message.text))
        shown.on("pageerror", lambda error: trouble.append(str(error)))
        shown.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else trouble.append(asked.url))
        shown.goto(page.as_uri())
        shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        shown.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        shown.wait_for_function("[...document.images].every(i => i.complete)")
        sizes = shown.evaluate("[...document.images].map(i => i.naturalWidth)")
        text, (wide, room) = shown.evaluate("document.body.innerText"), shown.evaluate(WIDE)
        browser.close()
    assert not trouble
    assert len(sizes) > 20
    assert min(sizes) > 0
    assert wide <= room + 1
    for expected in ("clip seed0", "clip seed1", "clip seed2", "random weights", "flickr8k-dev", "cifar10", "2,000 pictures of 10 classes"):
        assert expected in text
