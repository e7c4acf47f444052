"""The page in a real browser. Without Chromium the tests are skipped, unless REQUIRE_CHROMIUM is set."""

import os
import shutil
from pathlib import Path

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
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and not os.environ.get("REQUIRE_CHROMIUM"):
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def runs(mnist, tmp_path_factory):
    """A full run and a quick trial."""
    trials = {"full": {}, "trial": {"folds": 12, "epochs": 1, "rows": 1200, "held_out": False, "tests": 2000}}
    runs = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, values in trials.items():
            monkeypatch.chdir(tmp_path_factory.mktemp(name))
            runs[name] = Finished(Path.cwd(), mnist).write(**values)
            runs[name].report()
    return runs


@pytest.fixture
def opened(browser, runs):
    """Opens the page of a run."""

    def run(width=1280, trial="full", **context):
        page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.goto(f"file://{runs[trial].folder}/metrics/report.html")
        return page

    return run


def test_it_opens_from_disk_asks_for_nothing_and_describes_every_picture(opened):
    page = opened()
    assert [url for url in page.requests if not url.startswith("data:")] == [page.url] and not page.complaints
    images, charts = (page.locator(kind).all() for kind in ("img", "figure svg"))
    assert len(images) > 30 and all(image.get_attribute("alt") for image in images)
    assert len(charts) == 5 and all(svg.locator("xpath=..").get_attribute("aria-label") for svg in charts)


def test_it_shows_the_numbers_of_the_metrics(opened, runs):
    page = opened()
    for name, card in {"check": "check", "oof": "oof", "ensemble": "score"}.items():
        assert page.inner_text(f"b#{card}") == f"{runs['full'].metrics(name)['accuracy']:.4f}"
    names = [*(f"folds/fold_{fold}" for fold in range(5)), "oof"]
    for row, name in zip(page.locator("#fold-table tbody tr").all(), names, strict=True):
        metrics = runs["full"].metrics(name)
        numbers = "{accuracy:.4f} {low:.4f} to {high:.4f} {log_loss:.4f} {images:,} 30 45".format(**metrics)
        assert " ".join(row.locator("td").all_inner_texts()[2:8]) == numbers


@pytest.mark.parametrize("trial", ["full", "trial"])
def test_nothing_overflows_on_a_phone(opened, trial):
    page = opened(width=360, trial=trial)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("summary").evaluate_all("all => all.forEach((summary) => summary.click())")
    assert page.evaluate(TOO_WIDE, 360) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(opened, scheme):
    contrasts = opened(color_scheme=scheme).evaluate(CONTRAST)
    assert len(contrasts) > 500 and contrasts[0][0] >= 4.5, contrasts[:5]


def test_it_prints_on_a4_without_cut_tables(opened):
    page = opened(width=A4_WITHOUT_MARGINS)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(TOO_WIDE, A4_WITHOUT_MARGINS) == []
    assert page.evaluate(CONTRAST)[0][0] >= 4.5
    assert page.pdf(format="A4").startswith(b"%PDF")
