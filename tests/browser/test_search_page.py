"""The search page in a real browser: typing, dropping, clicking, going back, labels, thumbs, keys, a narrow screen."""

from __future__ import annotations

import base64
import io
import shutil
import time

import pytest
from PIL import Image

from clipling.deploy.search.index import update
from clipling.deploy.search.search import Search
from tests.deploy.search.making import ABOUT, COLOURS, ColourModel, folder_of

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from tests.deploy.search.live import served

    folder = tmp_path_factory.mktemp("page")
    update(ColourModel(), ABOUT, str(folder_of(folder / "photos", 60)), folder / "index")
    with served(Search(folder / "index", model=ColourModel())) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield made
        made.close()


class Shown:
    """An open page, and how to ask what it shows. The page's policy forbids eval, so waiting is done from here."""

    def __init__(self, page, address):
        self.page, self.address = page, address

    def go(self, path="/"):
        self.page.goto(self.address + path)
        self.settled()
        return self

    def until(self, script, wanted=True):
        end = time.monotonic() + 30
        while (found := self.page.evaluate(script)) != wanted:
            assert time.monotonic() < end, f"{script} is {found!r}, not {wanted!r}"
            self.page.wait_for_timeout(30)

    def settled(self):
        self.page.wait_for_timeout(30)
        self.until("document.getElementById('grid').ariaBusy", "false")

    def files(self):
        return self.page.eval_on_selector_all(".thumb", "all => all.map(one => one.title.split(' ')[0])")

    def first(self, colour):
        """Waits until the nearest results are of a colour, and says which colour the nearest then has."""
        nearest = "document.querySelector('.thumb')?.title.split('/')[0]"
        self.until(nearest, colour)
        self.settled()
        return self.page.evaluate(nearest)

    def type(self, text):
        self.page.fill("#text", text)
        self.first(text.split()[-1])


@pytest.fixture
def open_page(browser, address):
    """Opens at a width; at the end nothing may have gone wrong in the page or been asked of elsewhere."""
    contexts, trouble = [], []

    def make(width=1200, height=800, scheme="light", expect_errors=False, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        if not expect_errors:
            page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda r: None if r.url.startswith((address, "blob:")) else trouble.append(r.url))
        return Shown(page, address)

    yield make
    for context in contexts:
        context.close()
    assert not trouble


def drop(shown, data, name="mine.png", kind="image/png"):
    """A file dropped on the middle of the page, as a browser tells of it."""
    transfer = shown.page.evaluate_handle(
        """([data, name, type]) => { const made = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
        made.items.add(new File([bytes], name, { type })); return made }""",
        [base64.b64encode(data).decode(), name, kind],
    )
    for event in ("dragenter", "dragover", "drop"):
        shown.page.dispatch_event("main", event, {"dataTransfer": transfer})


def png(colour):
    held = io.BytesIO()
    Image.new("RGB", (50, 40), colour).save(held, "PNG")
    return held.getvalue()


def test_it_opens_with_pictures_and_the_cursor_in_the_box(open_page):
    shown = open_page().go()
    assert len(shown.files()) == 40
    assert shown.page.evaluate("document.activeElement.id") == "text"
    assert "60 pictures" in shown.page.inner_text("#about")
    shown.until("[...document.querySelectorAll('.thumb img')].every(i => i.complete && i.naturalWidth > 0)")


def test_typing_searches_and_says_how_long_it_took(open_page):
    shown = open_page().go()
    shown.page.keyboard.type("red", delay=20)
    shown.first("red")
    assert shown.files()[0] == "red/0.png"
    assert shown.page.locator(".score").first.inner_text() == "1.00"
    status = shown.page.inner_text("#status")
    assert status.startswith("The nearest 40 of 60 pictures, in ")
    assert status.endswith(" ms")
    assert shown.page.url.endswith("/?text=red")


def test_back_and_forward(open_page):
    shown = open_page().go()
    shown.type("red")
    shown.page.keyboard.press("Enter")
    shown.type("blue")
    shown.page.locator(".thumb").nth(2).click()
    shown.until("location.search.startsWith('?similar=')")
    shown.settled()
    shown.page.go_back()
    shown.first("blue")
    assert shown.page.input_value("#text") == "blue"
    shown.page.go_back()
    shown.first("red")
    assert shown.page.input_value("#text") == "red"
    shown.page.go_back()
    shown.until("document.getElementById('text').value", "")
    shown.until("location.search", "")
    shown.page.go_forward()
    shown.first("red")


def test_a_reload_and_a_sent_link_show_the_same(open_page):
    shown = open_page().go("/?text=green&label=x&labels=red,green")
    shown.first("green")
    before = shown.files()
    shown.page.reload()
    shown.first("green")
    assert shown.files() == before
    assert shown.page.input_value("#labels") == "red,green"


def test_clicking_a_result_finds_similar_ones(open_page):
    shown = open_page().go("/?text=purple")
    shown.first("purple")
    clicked = shown.files()[1]
    shown.page.locator(".thumb").nth(1).click()
    shown.until("document.querySelectorAll('#asked li').length", 1)
    shown.settled()
    assert shown.page.input_value("#text") == ""
    assert clicked not in shown.files()
    assert all(name.startswith("purple/") for name in shown.files()[:3])
    shown.page.locator("#asked button").click()
    shown.until("document.querySelectorAll('#asked li').length", 0)


def test_dropping_a_picture(open_page):
    shown = open_page().go()
    drop(shown, png(COLOURS["yellow"]))
    shown.first("yellow")
    assert "upload=" in shown.page.url
    assert shown.page.locator("#drop").is_hidden()
    shown.until("document.querySelector('#asked img').naturalWidth > 0")
    # Reload and Back work as long as the service remembers the upload.
    shown.page.reload()
    shown.first("yellow")


def test_dropping_what_is_no_picture_says_so(open_page):
    shown = open_page(expect_errors=True).go()
    drop(shown, b"hello", "notes.txt", "text/plain")
    shown.until("document.getElementById('trouble').hidden", False)
    assert "not a picture" in shown.page.inner_text("#trouble")
    shown.type("red")
    assert shown.page.locator("#trouble").is_hidden()


def test_pasting_a_picture(open_page):
    shown = open_page().go()
    shown.page.evaluate(
        """data => { const made = new DataTransfer();
        made.items.add(new File([Uint8Array.from(atob(data), l => l.charCodeAt(0))], 'p.png', { type: 'image/png' }));
        dispatchEvent(new ClipboardEvent('paste', { clipboardData: made, bubbles: true, cancelable: true })) }""",
        base64.b64encode(png(COLOURS["orange"])).decode(),
    )
    assert shown.first("orange") == "orange"


def test_choosing_a_file(open_page, tmp_path):
    shown = open_page().go()
    (tmp_path / "mine.png").write_bytes(png(COLOURS["cyan"]))
    shown.page.set_input_files("#file", tmp_path / "mine.png")
    assert shown.first("cyan") == "cyan"


def test_labels_show_on_every_result(open_page):
    shown = open_page().go("/?text=red&k=60")
    shown.page.fill("#labels", "blue")
    shown.until("document.getElementById('hint').hidden", False)
    shown.page.fill("#labels", "blue, red, green")
    shown.until("document.querySelectorAll('.card .share:not([hidden])').length", 60)
    said = shown.page.eval_on_selector_all(".card .said", "all => all.map(one => one.textContent)")
    names = shown.files()
    for colour in ("red", "blue", "green"):
        assert said[next(i for i, name in enumerate(names) if name.startswith(colour + "/"))] == colour
    shown.page.locator(".open").first.click(force=True)
    shown.until("document.querySelectorAll('#shares li').length", 3)
    assert shown.page.locator("#shares .said").first.inner_text() == "red"


def test_thumbs_refine(open_page):
    shown = open_page().go("/?text=red&k=60")
    shown.first("red")
    names = shown.files()
    place = next(i for i, name in enumerate(names) if name.startswith("blue/"))
    liked = names[place]
    shown.page.locator(".card .up").nth(place).click()
    shown.until("document.querySelectorAll('#rated .mini').length", 1)
    shown.settled()
    assert shown.files().index(liked) < place
    pressed = shown.page.eval_on_selector_all(".card .up[aria-pressed=true]", "all => all.length")
    assert pressed == 1
    worst = shown.files()[0]
    shown.page.locator(".card .down").first.click()
    shown.until("document.querySelectorAll('#rated .mini').length", 2)
    shown.settled()
    assert worst not in shown.files()
    shown.page.go_back()
    shown.until("document.querySelectorAll('#rated .mini').length", 1)
    shown.page.click("#rated >> text=Forget")
    shown.until("document.getElementById('rated').hidden")
    shown.settled()
    assert shown.files() == names[:40]
    # Another text is another search.
    shown.page.locator(".card .up").first.click()
    shown.type("green")
    assert shown.page.locator("#rated").is_hidden()


def test_keys(open_page):
    shown = open_page().go("/?text=red")
    shown.first("red")
    press, at = shown.page.keyboard.press, "document.activeElement.closest('.card')?.dataset.id"
    ids = shown.page.eval_on_selector_all(".card", "all => all.map(one => one.dataset.id)")
    tops = shown.page.eval_on_selector_all(".card", "all => all.map(one => one.offsetTop)")
    columns = tops.count(tops[0])
    press("ArrowDown")
    assert shown.page.evaluate(at) == ids[0]
    press("ArrowRight")
    press("ArrowDown")
    assert shown.page.evaluate(at) == ids[columns + 1]
    assert shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Enter")
    shown.until("document.getElementById('viewer').open")
    assert f"view={ids[columns + 1]}" in shown.page.url
    press("ArrowRight")
    shown.until("new URLSearchParams(location.search).get('view')", ids[columns + 2])
    press("Escape")
    shown.until("document.getElementById('viewer').open", False)
    shown.until(at, ids[columns + 2])
    press("+")
    shown.until("document.querySelectorAll('#rated .mini.up').length", 1)
    press("/")
    assert shown.page.evaluate("document.activeElement.id") == "text"
    press("Escape")
    shown.until("location.search", "")
    assert shown.page.input_value("#text") == ""


def test_back_closes_the_viewer(open_page):
    shown = open_page().go("/?text=red")
    shown.page.locator(".thumb").first.hover()
    shown.page.locator(".open").first.click()
    shown.until("document.getElementById('viewer').open")
    shown.until("document.getElementById('photo').naturalWidth", 40)
    shown.page.go_back()
    shown.until("document.getElementById('viewer').open", False)
    assert shown.page.url.endswith("/?text=red")


def test_show_more(open_page):
    shown = open_page().go("/?text=red")
    shown.page.click("#more")
    shown.until("document.querySelectorAll('.card').length", 60)
    assert shown.page.locator("#more").is_hidden()


def test_an_upload_that_is_forgotten(open_page):
    shown = open_page(expect_errors=True).go("/?upload=gone")
    shown.until("document.getElementById('trouble').hidden", False)
    shown.page.click("text=Start over")
    shown.until("document.querySelectorAll('.card').length", 40)
    assert shown.page.locator("#trouble").is_hidden()


def test_a_service_that_does_not_answer(open_page):
    shown = open_page(expect_errors=True).go()
    shown.page.route("**/api/search*", lambda route: route.abort())
    shown.page.fill("#text", "red")
    shown.until("document.getElementById('trouble').hidden", False)
    assert "Is it running?" in shown.page.inner_text("#trouble")
    shown.page.unroute("**/api/search*")
    shown.page.click("text=Try again")
    shown.first("red")


def test_names_are_text_not_markup(open_page, address):
    shown = open_page().go("/?" + "text=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&labels=%3Cb%3Ea%3C%2Fb%3E,%3Ci%3Eb%3C%2Fi%3E")
    assert shown.page.locator(".card b").count() == 0
    assert shown.page.locator(".said").first.inner_text() in ("<b>a</b>", "<i>b</i>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_and_text_can_be_read(open_page, width, scheme, tmp_path):
    shown = open_page(width=width, height=740, scheme=scheme).go("/?text=red&labels=red,blue&like=3&unlike=9")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    out = """[...document.querySelectorAll('body *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert shown.page.evaluate(out) == []
    ratios = shown.page.evaluate(
        """() => {
        const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ['#about', '#status', '.file', '.score', '.said', '#text', '#labels', '.name', '.thumbs .icon'].map(s => {
            const ink = light(getComputedStyle(document.querySelector(s)).color);
            return [s, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)] }) }"""
    )
    assert not [(what, round(ratio, 2)) for what, ratio in ratios if ratio < 4.5]
    path = tmp_path / f"search-{width}-{scheme}.png"
    shown.page.screenshot(path=path)
    assert path.stat().st_size > 10_000


def test_a_phone(open_page):
    shown = open_page(width=360, height=740, has_touch=True, is_mobile=True).go("/?text=red")
    shown.first("red")
    tops = shown.page.eval_on_selector_all(".card", "all => all.map(one => one.offsetTop)")
    assert tops.count(tops[0]) == 2
    small = shown.page.eval_on_selector_all(
        ".card button", "all => all.map(b => b.getBoundingClientRect()).filter(b => b.width < 24 || b.height < 24).length"
    )
    assert small == 0  # WCAG 2.2, 2.5.8
    shown.page.locator(".open").nth(1).tap()
    shown.until("document.getElementById('viewer').open")
    assert shown.page.evaluate("document.getElementById('viewer').getBoundingClientRect().right") <= 360
    shown.page.locator("#alike").tap()
    shown.until("location.search.startsWith('?similar=')")


def test_everything_to_press_has_a_name(open_page):
    shown = open_page().go("/?text=red&labels=a,b")
    shown.page.wait_for_timeout(300)
    nameless = """[...document.querySelectorAll('button, a, input:not([hidden])')]
        .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    assert shown.page.evaluate(nameless) == []
