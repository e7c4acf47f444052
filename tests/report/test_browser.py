"""The page in a real browser. Without Chromium the tests are skipped, unless REQUIRE_CHROMIUM is set."""

import os
import shutil

import pytest
from finished_run import Finished
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.slow

A4_WITHOUT_MARGINS = 688  # pixels: 182 mm at 96 dpi
CONTRAST = """() => {
  const channels = (text) => {
    const numbers = text.match(/-?[\\d.]+/g).map(Number);
    const rgb = text.startsWith("color(") ? numbers : numbers.map((n, i) => (i < 3 ? n / 255 : n));
    return [...rgb.slice(0, 3), rgb.length > 3 ? rgb[3] : 1];
  };
  const over = (front, back) => back.map((b, i) => front[3] * front[i] + (1 - front[3]) * b);
  const background = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(channels(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [0, 0, 0]);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const element = nodes.currentNode.parentElement, text = nodes.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("script, style, defs")) continue;
    const style = getComputedStyle(element), back = background(element);
    const front = channels(element.closest("svg") ? style.fill : style.color);
    const [low, high] = [luminance(over(front, back)), luminance(back)].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), text]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
TOO_WIDE = """(width) => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return element.checkVisibility() && box.width && (box.right > width + 1 || box.left < -1);
}).map((element) => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None and not os.environ.get("REQUIRE_CHROMIUM"):
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def runs(mnist, tmp_path_factory):
    """A run like a full one, and a trial."""
    trials = {"full": {}, "trial": {"folds": 12, "epochs": 1, "rows": 1200, "held_out": False}}
    made = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, values in trials.items():
            folder = tmp_path_factory.mktemp(name)
            monkeypatch.chdir(folder)
            made[name] = Finished(folder, mnist).write(**values)
            made[name].report()
    return made


@pytest.fixture
def opened(browser, runs):
    """Opens the page of a run."""

    def run(width=1280, trial="full", **context):
        page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"file://{runs[trial].folder}/metrics/report.html")
        return page

    return run


def test_it_opens_from_disk_and_asks_for_nothing(opened):
    page = opened()
    assert [url for url in page.requests if not url.startswith("data:")] == [page.url] and not page.complaints
    assert page.locator("svg").count() > 10 and page.locator("img").count() > 30
    assert not page.locator("script").count()


def test_its_tables_hold_the_numbers_of_the_metrics(opened, runs):
    page, finished = opened(), runs["full"]
    for name in ("check", "oof"):
        assert page.inner_text(f"b#{name}") == f"{finished.json(f'{name}.json')['accuracy']:.4f}"
    assert page.inner_text("b#score") == f"{finished.json('ensemble.json')['accuracy']:.4f}"
    names = [*(f"folds/fold_{fold}.json" for fold in range(5)), "oof.json"]
    for row, name in zip(page.locator("#fold-table tbody tr").all(), names, strict=True):
        cells, metrics = row.locator("td").all_inner_texts(), finished.json(name)
        assert cells[2:8] == [
            f"{metrics['accuracy']:.4f}",
            f"{metrics['low']:.4f} to {metrics['high']:.4f}",
            f"{metrics['log_loss']:.4f}",
            f"{metrics['images']:,}",
            str(metrics["epochs"]),
            f"{metrics['seconds']:,.0f}",
        ]


def test_every_picture_says_what_it_shows(opened):
    page = opened()
    assert all(image.get_attribute("alt") for image in page.locator("img").all())
    for svg in page.locator("figure svg").all():
        assert svg.locator("xpath=..").get_attribute("aria-label")


@pytest.mark.parametrize("trial", ["full", "trial"])
def test_nothing_overflows_on_a_phone(opened, trial):
    page = opened(width=360, trial=trial)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("summary").evaluate_all("all => all.forEach((one) => one.click())")
    assert page.evaluate(TOO_WIDE, 360) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(opened, scheme):
    found = opened(color_scheme=scheme).evaluate(CONTRAST)
    assert len(found) > 500 and found[0][0] >= 4.5, found[:5]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_on_a4_without_cut_tables(opened, scheme):
    page = opened(width=A4_WITHOUT_MARGINS, color_scheme=scheme)
    page.emulate_media(media="print", color_scheme=scheme)
    assert page.evaluate(TOO_WIDE, A4_WITHOUT_MARGINS) == []
    assert page.evaluate(CONTRAST)[0][0] >= 4.5
    assert page.pdf(format="A4").startswith(b"%PDF")
