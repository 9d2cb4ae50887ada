"""The model in the browser against clipling.runtime: token ids, texts, pictures; fp32 and int8; one thread and several."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

import clipling
from clipling.deploy.fixtures import TEXTS, photos
from tests.browser.odd_texts import odd_texts
from tests.browser.web_folder import CHROMIUM, OPEN, Pages, needs_chromium, needs_npm, served, site

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [needs_chromium, needs_npm, pytest.mark.slow]
BOUND = {"fp32": 0.9999, "int8": 0.98}  # int8: the gate's own, clipling/deploy/gate.py
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
PICTURE = """async files => { const found = []; for (const data of files) {
    const file = new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], 'x'); found.push([...(await engine.picture(file)).vector]) }
    return found }"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    site(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture(scope="module", params=["fp32", "int8"])
def both(request, folder, browser):
    """(precision, the runtime, a page with `engine`)."""
    with served(folder / "root") as address:
        pages = Pages(browser, address)
        page = pages.open(f"/some/where/{request.param}/")
        page.evaluate(OPEN)
        yield request.param, clipling.load(folder / "models" / request.param, request.param, threads=1), page
        pages.close()
        assert not pages.trouble


def captions() -> list[str]:
    """A hundred ordinary ones, and the app kit's."""
    found = odd_texts()
    return [*(text for text in found["words"] if len(text) > 3)][:100] + list(TEXTS)


def test_texts(both):
    """One at a time, as they are typed: int8 rounds by the greatest value of a batch."""
    precision, model, page = both
    got = np.array(
        page.evaluate(
            "async texts => { const f = []; for (const t of texts) f.push([...(await engine.texts([t]))[0]]); return f }", captions()
        )
    )
    expected = np.stack([model.encode_text(text)[0] for text in captions()])
    assert (got * expected).sum(axis=1).min() >= BOUND[precision]
    if precision == "fp32":
        batch = np.array(page.evaluate("async texts => (await engine.texts(texts)).map(v => [...v])", captions()))
        assert np.abs(batch - model.encode_text(captions())).max() < 1e-5


def test_pictures(both):
    precision, model, page = both
    files = [photo.data for photo in photos(model.manifest.image.size)] + variants()
    got = np.array(page.evaluate(PICTURE, [base64.b64encode(data).decode() for data in files]))
    expected = np.stack([model.encode_image(data)[0] for data in files])
    assert (got * expected).sum(axis=1).min() >= BOUND[precision]


def variants() -> list[bytes]:
    """A scene turned in all eight ways, in grey, CMYK, with transparency, a palette, 16 bits."""
    scene = photos(48)[1].image
    clear = scene.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(scene.size))
    made = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        made.append((scene, "JPEG", {"exif": exif, "quality": 95}))
    made += [
        (scene.convert("L"), "PNG", {}),
        (scene.convert("CMYK"), "JPEG", {"quality": 95}),
        (clear, "PNG", {}),
        (clear, "WEBP", {"lossless": True}),
    ]
    made += [(scene.convert("P"), "PNG", {}), (Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257), "PNG", {})]
    return [_saved(image, kind, options) for image, kind, options in made]


def _saved(image, kind, options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_very_large_picture_is_averaged_first(both):
    """Above 8 megapixels; what that costs is small, and the same area average in numpy gives the same pixels."""
    precision, model, page = both
    scene = photos(48)[1].image.resize((3600, 2404), Image.Resampling.BICUBIC)
    data = _saved(scene, "PNG", {"compress_level": 1})
    got = np.array(page.evaluate(PICTURE, [base64.b64encode(data).decode()]))[0]
    halves = np.asarray(scene).astype(np.float64).reshape(1202, 2, 1800, 2, 3).mean(axis=(1, 3))
    assert got @ model.encode_image(np.rint(halves).astype(np.uint8))[0] >= BOUND[precision]
    assert got @ model.encode_image(scene)[0] >= min(BOUND[precision], 0.999)


def test_token_ids(both):
    """Equal but for mojibake, which the runtime repairs and JavaScript has no library for."""
    _, model, page = both
    for name, texts in odd_texts().items():
        got = page.evaluate(
            "async texts => { const f = []; for (const t of texts) f.push((await engine.tokens([t]))[0]); return f }", texts
        )
        differing = [text for text, ids in zip(texts, got) if ids != model.tokens([text])[0].tolist()]
        if name == "mojibake":
            assert differing
        else:
            assert len(differing) <= (1 if name == "compatibility" else 0), (name, differing[:3])


def test_the_policy_holds_in_the_page_and_in_the_worker(folder, browser):
    with served(folder / "root") as address, served(folder / "root") as elsewhere:
        pages = Pages(browser, address)
        page = pages.open()
        ask = "address => fetch(address).then(() => 'went through', () => 'refused')"
        assert page.evaluate(ask, f"{elsewhere}/some/where/fp32/folder.json") == "refused"
        (worker,) = page.workers
        assert worker.evaluate(ask, f"{address}/some/where/fp32/folder.json") == "went through"
        assert worker.evaluate(ask, f"{elsewhere}/some/where/fp32/folder.json") == "refused"
        pages.close()
        assert all("Content Security Policy" in line or "violates" in line for line in pages.trouble), pages.trouble


def test_several_threads_where_the_server_isolates_the_page(folder, browser):
    with served(folder / "root", ISOLATED) as address:
        pages = Pages(browser, address)
        page = pages.open()
        page.evaluate(OPEN)
        model = clipling.load(folder / "models" / "fp32", threads=1)
        got = np.array(page.evaluate("async text => [...(await engine.texts([text]))[0]]", "a dog"))
        assert "1 thread)" not in page.inner_text("#about")
        assert got @ model.encode_text("a dog")[0] >= BOUND["fp32"]
        pages.close()
        assert not pages.trouble


def test_a_missing_file_is_said(folder, browser):
    (folder / "root" / "some" / "where" / "fp32" / "model" / "image.onnx").rename(folder / "away")
    with served(folder / "root") as address:
        pages = Pages(browser, address)
        page = pages.open(ready="no")
        assert "model/image.onnx is missing from the folder of this page (HTTP 404)" in page.inner_text("#trouble")
        pages.close()


def test_folders_are_walked_to_their_end(folder, browser):
    """A browser hands out a hundred entries at a time."""
    with served(folder / "root") as address:
        pages = Pages(browser, address)
        page = pages.open("/some/where/int8/")
        found = page.evaluate("""async () => { const { dropped } = await import(new URL('intake.js', location.href));
            const leaf = (path) => ({ isFile: true, name: path, fullPath: path, file: (done) => done(new File(['x'], path)) });
            const tree = (path, children) => ({ isFile: false, name: path, fullPath: path, createReader() { let at = 0; return {
                readEntries: (done) => done(children.slice(at, at += 100)) } } });
            const inner = tree('/a/b', [leaf('/a/b/z.png')]);
            const top = tree('/a', [inner, ...Array.from({ length: 250 }, (_, n) => leaf(`/a/${n}.png`))]);
            const found = []; const items = [{ kind: 'string' }, { kind: 'file', webkitGetAsEntry: () => top }];
            for await (const { path } of dropped({ items })) found.push(path); return found }""")
        assert sorted(found) == sorted([*(f"a/{n}.png" for n in range(250)), "a/b/z.png"])
        pages.close()
