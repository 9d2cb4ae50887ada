"""The page of a suite in a browser: nothing is loaded or fails, every picture shows, nothing sticks out, light and dark."""

from __future__ import annotations

import shutil

import pytest

from clipling.evals.suite.page import write_page
from tests.evals.suite.page_fakes import suite

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
VIEWS = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page moved to a folder of its own: what it needs must be in it."""
    folder = tmp_path_factory.mktemp("suite")
    models, comparison = suite(folder / "data")
    path = tmp_path_factory.mktemp("alone") / "page.html"
    write_page(path, models, comparison)
    shutil.rmtree(folder)
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture
def opened(browser, page):
    """Opens the page at a width, in a scheme; at the end nothing may have been logged or asked for."""
    contexts, trouble = [], []

    def route(route):
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            trouble.append(f"asked for {route.request.url}")
            route.abort()

    def open_at(width: int, scheme: str, javascript: bool = True):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript)
        contexts.append(context)
        context.route("**/*", route)
        shown = context.new_page()
        shown.on("console", lambda message: trouble.append(f"console: {message.text}"))
        shown.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        shown.on("requestfailed", lambda request: trouble.append(f"failed: {request.url[:80]}"))
        shown.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else trouble.append(request.url))
        shown.goto(page.as_uri())
        return shown

    yield open_at
    for context in contexts:
        context.close()
    assert not trouble


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_nothing_sticks_out(opened, width, scheme):
    """Folded parts are opened too. Tables may be wider than the page, inside their own box."""
    shown = opened(width, scheme)
    shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    wide, room = shown.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert room == width
    assert wide <= room + 1
    out = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('pre') && !e.closest('svg')
        && e.getBoundingClientRect().width > 0 && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.tagName + '.' + e.className)"""
    assert shown.evaluate(out) == []


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_labels_of_plots_stay_on_the_page(opened, width, scheme):
    """Text in an SVG may overflow its box, by the reader's font; not the page."""
    shown = opened(width, scheme)
    out = """[...document.querySelectorAll('svg text')].map(t => [t.textContent, t.getBoundingClientRect()])
        .filter(([_, box]) => box.width > 0 && (box.left < -1 || box.right > innerWidth + 1)).map(([text]) => text)"""
    assert shown.evaluate("document.querySelectorAll('svg text').length") > 200
    assert shown.evaluate(out) == []


def test_every_picture_shows(opened):
    shown = opened(1400, "light")
    shown.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    shown.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    shown.wait_for_function("[...document.images].every(i => i.complete)")
    sizes = shown.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(sizes) > 50
    assert min(sizes) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened, scheme):
    """Contrast of 4.5 to 1 (WCAG 2.2, 1.4.3) of the ink, the soft ink and every colour that words are set in."""
    shown = opened(1400, scheme)
    ratios = shown.evaluate(
        """() => {
        const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ['h1', '.note', '.best', '.side h3', '.remarks .warned', '.guesses .yes', 'td small', '.fold summary', 'svg text'].map(s => {
            const e = document.querySelector(s), style = getComputedStyle(e);
            const ink = light(s.startsWith('svg') ? style.fill : style.color);
            return [s, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)] }) }"""
    )
    assert not [(what, round(ratio, 2)) for what, ratio in ratios if ratio < 4.5]


def test_dark_is_dark(opened):
    papers = [opened(400, scheme).evaluate("getComputedStyle(document.body).backgroundColor") for scheme in ("light", "dark")]
    assert papers == ["rgb(253, 252, 250)", "rgb(22, 22, 20)"]


def test_links_and_folds_work_without_scripts(opened):
    shown = opened(1400, "light", javascript=False)
    shown.click("nav a[href='#again']")
    assert shown.url.endswith("#again")
    summary = shown.locator("#again > .body summary").first
    summary.click()
    assert shown.locator("#again details[open]").count() == 1


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_screenshots(opened, tmp_path, width, scheme):
    """Written for people to look at; a blank one fails."""
    shown = opened(width, scheme)
    height = shown.evaluate("document.documentElement.scrollHeight")
    for number, share in enumerate((0.0, 0.2, 0.5, 0.8)):
        shown.evaluate(f"window.scrollTo(0, {int(share * height)})")
        path = tmp_path / f"{width}-{scheme}-{number}.png"
        shown.screenshot(path=path)
        assert path.stat().st_size > 10_000
