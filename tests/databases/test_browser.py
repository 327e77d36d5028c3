"""The page of `st-llm2vec explore` in a real browser: click, type, a result appears; texts stay texts."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import sync_playwright

from faiss_llm2vec import FaissStore
from st_llm2vec.cli import main

PATIENCE = 300_000  # milliseconds, for a busy machine
EVIL = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>"
TEXTS = [
    "Bears hibernate in winter.",
    "Squirrels bury nuts in autumn.",
    "Rates rose again.",
    "The bank cut rates.",
    EVIL,
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    with FaissStore.create(folder / "store", None) as store:
        topics = ["animals", "animals", "money", "money", EVIL]
        store.add(
            TEXTS,
            ids=[f"d{n}" for n in range(5)],
            metadata=[{"topic": topic} for topic in topics],
            vectors=[[1, 0.1, 0], [1, 0.2, 0.1], [0, 1, 0.1], [0.1, 1, 0], [0.3, 0.3, 1]],
        )
    assert main(["explore", str(folder / "store"), "-o", str(folder / "page.html"), "--color-by", "topic"]) == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    assert executable, "these tests drive Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, page_file):
    """The page, from the disk, without a network; an error in its script fails the test, and so does a request."""
    errors, requests = [], []
    page = browser.new_page(viewport={"width": 1100, "height": 700}, offline=True)
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    assert page.title() == "store"
    assert page.locator("img").count() == 0
    page.close()
    assert not errors
    assert requests == [page_file.as_uri()]


def point(page, row):
    """Where a document is drawn."""
    return page.evaluate(
        "row => { const box = canvas.getBoundingClientRect(), [x, y] = place(row); return [box.x + x, box.y + y]; }",
        row,
    )


def test_typing_finds_texts_and_what_is_near_them(page):
    page.get_by_label("Search the texts").fill("hibernate bears")
    assert page.locator("#found h2").first.inner_text() == "1 with all these words"
    assert TEXTS[0] in page.locator("#found li").first.inner_text()
    assert "Near those in meaning" in page.locator("#found").inner_text()
    assert page.locator("#found ol").nth(1).locator("li").count() == 4
    page.get_by_label("Search the texts").fill("zzz")
    assert page.locator("#found h2").first.inner_text() == "0 with this word"


def test_clicking_a_point_shows_its_text_and_neighbours(page):
    page.mouse.click(*point(page, 2))
    assert page.locator("#found .whole").inner_text() == TEXTS[2]
    assert page.locator("#found li").count() == 4
    nearest = page.locator("#found li").first
    name = nearest.inner_text()
    nearest.click()
    assert page.locator("#found .whole").inner_text() in name


def test_hovering_shows_a_text_and_markup_in_it_is_text(page):
    page.mouse.move(*point(page, 4))
    assert EVIL in page.locator("#tip").inner_text()
    assert "topic" in page.locator("#tip").inner_text()
    page.get_by_label("Search the texts").fill("onerror")
    page.locator("#found li").first.click()
    assert page.locator("#found .whole").inner_text() == EVIL


def test_the_legend_names_the_values(page):
    legend = page.locator("#legend").inner_text()
    assert "animals (2)" in legend
    assert "money (2)" in legend


def test_zooming_keeps_what_is_under_the_pointer(page):
    x, y = point(page, 1)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    page.wait_for_function("view.zoom > 2")
    # A pointer stands on whole pixels: what it misses the point by grows with the zoom, 2.7 here.
    assert point(page, 1) == pytest.approx([x, y], abs=1.8)


def test_a_phone_in_the_dark_has_room_for_everything(browser, page_file):
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", offline=True)
    page.set_default_timeout(PATIENCE)
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(27, 29, 33)"
    plot, legend, found = (page.locator(name).bounding_box() for name in ("#plot", "#legend", "#found"))
    assert plot["height"] > 250
    assert plot["y"] + plot["height"] <= legend["y"]
    assert legend["y"] + legend["height"] <= found["y"]
    assert "Choose a point" in page.locator("#found .hint").inner_text()
    page.close()
