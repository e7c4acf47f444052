"""Links and commands in the documentation."""

import re

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

from pipeline.params import load_params

PATTERNS = ("*.md", "docs/**/*.md", "*/README.md", "packages/*/*.md")
PAGES = sorted({page for pattern in PATTERNS for page in ROOT.glob(pattern)})
# Commands of the log belong to the version of their time.
USE = [page for page in PAGES if page.parent.name != "log"]
SHELL = "".join(
    block for page in USE for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, heading in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not heading or heading in anchors(path.read_text()), f"{target}#{heading}"


def anchors(text):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([\w-]+)", SHELL, re.MULTILINE))
    assert {"repro", "test", "submit"} <= named <= targets


def test_parameters_exist_and_accept_the_values():
    settings = re.findall(r"-S '?([\w.]+)=([^\s']+)", SHELL)
    assert len(settings) > 10
    for name, values in settings:
        for value in values.split(","):
            load_params(ROOT / "params.yaml").with_values({name: YAML(typ="safe").load(value)})


def test_stages_exist():
    text = "".join(page.read_text() for page in PAGES)
    for name in re.findall(r"pipeline\.stages\.(\w+)", text):
        assert (ROOT / f"pipeline/stages/{name}.py").exists()
