"""The static web folder in a real browser, with the network off: dropping, typing, clicking, going back, keeping, a narrow screen."""

from __future__ import annotations

import numpy as np
import pytest

import clipling
from tests.browser.web_folder import CHROMIUM, Pages, drop, files, needs_chromium, needs_npm, served, site
from tests.toy import toy_folder

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [needs_chromium, needs_npm]
COUNT = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def address(folder):
    with served(site(folder)) as address:
        yield address


@pytest.fixture(scope="module")
def photos(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(toy_folder(folder / "photos", COUNT).glob("*.png"))}


@pytest.fixture(scope="module")
def model(folder):
    return clipling.load(folder / "models" / "fp32", threads=1)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(browser, address):
    made = Pages(browser, address)
    yield made
    made.close()
    assert not made.trouble


@pytest.fixture(scope="module")
def shared(pages, photos):
    """A page with all photos in it, the network off."""
    page = pages.open()
    page.context.set_offline(True)
    drop(page, photos)
    page.wait_for_selector(f"#heading:text-is('{COUNT} photos')")
    page.wait_for_selector("#cancel", state="hidden")
    return page


@pytest.fixture
def filled(shared):
    """The shared page as it was at first: nothing is searched."""
    if shared.is_visible("#clear"):
        shared.click("#clear")
        shared.wait_for_selector(f"#heading:text-is('{COUNT} photos')")
    return shared


def names(page) -> list[str]:
    return page.locator("#results .name").all_inner_texts()


def ranking(vector, model, photos) -> list[str]:
    scores = model.encode_image(list(photos.values())) @ vector
    return [list(photos)[place] for place in np.argsort(-scores, kind="stable")]


def test_typing_finds_what_the_runtime_finds(filled, model, photos):
    filled.fill("#text", "a red disc on white")
    filled.press("#text", "Enter")
    filled.wait_for_selector("#heading:text-is('Closest to “a red disc on white”')")
    expected = ranking(model.encode_text("a red disc on white")[0], model, photos)
    assert names(filled)[:10] == expected[:10]
    best = float(filled.locator("#results .score").first.inner_text())
    assert best == pytest.approx(
        float((model.encode_image(list(photos.values())) @ model.encode_text("a red disc on white")[0]).max()), abs=1e-3
    )


def test_a_click_finds_similar_and_back_returns(filled, model, photos):
    first = names(filled)[0]
    filled.click(f"[title='{first}'].photo")
    filled.wait_for_selector(f"#heading:text-is('Similar to {first}')")
    expected = [name for name in ranking(model.encode_image(photos[first])[0], model, photos) if name != first]
    assert names(filled)[:10] == expected[:10]
    filled.go_back()
    filled.wait_for_selector(f"#heading:text-is('{COUNT} photos')")
    filled.go_forward()
    filled.wait_for_selector(f"#heading:text-is('Similar to {first}')")
    filled.keyboard.press("Escape")
    filled.wait_for_selector(f"#heading:text-is('{COUNT} photos')")


def test_searching_by_a_picture(filled, model, photos):
    """Dropped on the search, and picked; a picture of the index finds itself first."""
    third = list(photos)[2]
    for give in (lambda: drop(filled, {"asked.png": photos[third]}, "[data-drop=query]"),
                 lambda: filled.set_input_files("#query-file", files({"asked.png": photos[third]}))):  # fmt: skip
        give()
        filled.wait_for_selector("#heading:text-is('Closest to your picture')")
        assert names(filled)[0] == ranking(model.encode_image(photos[third])[0], model, photos)[0]
        filled.click("#clear")
        filled.wait_for_selector(f"#heading:text-is('{COUNT} photos')")


def test_more_results_keys_and_the_large_view(filled):
    assert len(names(filled)) == 60
    filled.click("#more")
    assert len(names(filled)) == COUNT
    filled.keyboard.press("/")
    filled.keyboard.press("ArrowDown")
    filled.keyboard.press("ArrowRight")
    assert filled.evaluate("document.activeElement.title") == names(filled)[1]
    filled.keyboard.press("o")
    filled.wait_for_selector("#large[open]")
    assert (
        filled.evaluate(
            "document.getElementById('large-picture').decode().then(() => document.getElementById('large-picture').naturalWidth)"
        )
        == 40
    )
    filled.keyboard.press("Escape")
    filled.keyboard.press("Enter")
    filled.wait_for_selector(".score")


def test_files_that_are_no_pictures_or_there_already(filled, photos):
    first = next(iter(photos))
    drop(filled, {first: photos[first], "notes.txt": b"hello", "broken.png": photos[first][:60], "empty.png": b""})
    filled.wait_for_selector("#unread summary:text-is('2 files could not be read')")
    filled.wait_for_selector("#status-text:has-text('1 photo already there, 1 file without a picture left out.')")
    filled.click("#unread summary")
    assert "empty.png: the file is empty" in filled.inner_text("#unread")
    assert filled.inner_text("#heading") == f"{COUNT} photos"


def test_cancel_stops_between_photos(pages, photos):
    """Pressed as soon as it shows: what is on its way then is finished, and nothing else is begun."""
    page = pages.open()
    page.evaluate("""() => { const cancel = document.getElementById('cancel');
        new MutationObserver(() => cancel.hidden || cancel.click()).observe(cancel, { attributes: true }) }""")
    page.set_input_files("#files", files(photos))
    page.wait_for_selector("#found:visible")
    page.wait_for_selector("#cancel", state="hidden")
    page.wait_for_timeout(1000)
    assert 1 <= len(names(page)) <= 4


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_text_can_be_read(filled, width, scheme):
    filled.set_viewport_size({"width": width, "height": 800})
    filled.emulate_media(color_scheme=scheme)
    filled.click("#results .photo >> nth=0")
    filled.wait_for_selector(".score")
    out = """[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().width > 0 && !e.closest('#drop')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""
    assert filled.evaluate(out) == []
    ratios = filled.evaluate("""() => {
        const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ['h1', '.private', '.name', '.score', '#hint', 'footer a', '#more'].map(s => {
            const style = getComputedStyle(document.querySelector(s));
            const ground = s === '#more' ? light(style.backgroundColor) : paper, ink = light(style.color);
            return [s, (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)] }) }""")
    assert not [(what, round(ratio, 2)) for what, ratio in ratios if ratio < 4.5]


def test_the_index_is_kept_by_wish_and_forgotten(filled, photos, pages):
    filled.check("#keep")
    filled.wait_for_timeout(500)
    filled.context.set_offline(False)
    again = pages.open(context=filled.context)
    again.wait_for_selector(f"#heading:text-is('{COUNT} photos')")
    assert again.is_checked("#keep")
    other = pages.open("/some/where/int8/", context=filled.context)
    assert other.is_visible("#empty")
    assert not other.is_checked("#keep")
    again.click("#forget")
    again.wait_for_selector("#empty:visible")
    again.reload()
    again.wait_for_selector("html[data-ready=yes]", state="attached")
    assert again.is_visible("#empty")
